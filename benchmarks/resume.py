"""How long a run resumed after a million blocks takes until its next step is done.

A million different blocks of eight tokens, a state and a metrics log of as many steps, a raised
share of replay, and a tiny model, so that finding the place is all there is to do. A run from the
start is timed beside it, in the same process: the difference is what the distance costs.

    make bench-train
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

MILLION, RUNS = 1_000_000, 5


def main() -> None:
    import torch
    from accelerate.state import AcceleratorState
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.helpers.token_blocks import make_blocks
    from toolkit.checkpoint.training_state import StateWriter
    from toolkit.data.blocks import Blocks
    from toolkit.train.config import TrainSection
    from toolkit.train.loop import train
    from toolkit.train.trainable import parameter_groups

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    section = TrainSection.model_validate(
        {"global_batch_size": 1, "precision": "fp32", "forgetting_monitor": {"evaluations": 0}}
    )

    def seconds(folder: Path, work: Path) -> float:
        AcceleratorState._reset_state(reset_partial_state=True)
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            blocks = Blocks.open(folder)
            train(model, blocks, section, seed=1, work=work, general_sources=("web",))
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_blocks(root / "far", {"text": [[5] * (8 * MILLION - 1)], "web": [[6] * 7]}, 8)
        make_blocks(root / "near", {"text": [[5] * 7]}, 8)
        rows = "".join(f'{{"step": {n}, "loss": 2.5}}\n' for n in range(1, MILLION + 40))
        times: dict[str, list[float]] = {"near": [], "far": []}
        for number in range(RUNS + 1):
            for name in times:
                with tempfile.TemporaryDirectory() as work:
                    if name == "far":
                        writer = StateWriter(Path(work))
                        state: dict[str, Any] = {"bad_steps": 0, "skipped": 0, "watch_start": None}
                        state["raises"] = [[0, MILLION - 5000]]
                        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
                        writer.save(MILLION, model, optimizer, state)
                        writer.wait()
                        (Path(work) / "metrics.jsonl").write_text(rows)
                    found = seconds(root / name, Path(work))
                    if number:  # the first sets kernels up
                        times[name].append(found)
    near, far = (statistics.median(times[name]) for name in ("near", "far"))
    print(
        f"one step from position 0: {near:.3f} s; one step resumed at position {MILLION:,}: "
        f"{far:.3f} s (medians of {RUNS}, from the opening of the blocks to the end of training)"
    )


if __name__ == "__main__":
    main()
