"""Training SmolLM2: this toolkit's loop against transformers' Trainer, in turn, process by process.

Same model, same blocks in the same order, 2,048 tokens a step, the same precision, AdamW with the
same settings; the Trainer is set up as transformers' own causal-language-modeling example does it.
Prints tokens a second and peak memory of each process, ratios pair by pair, and how far the losses
differ.

    make bench-train                     # needs runs/finance/general, which `make cpt` leaves

A processor without bfloat16 is emulated by `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from child import MARK, figures_of

SEQUENCE, BLOCKS_PER_STEP, SKIPPED = 512, 4, 2
LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/finance/general"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=4, help="blocks a forward pass, of both")
    parser.add_argument(
        "--checkpointing", default="selective", help="none, selective or full, of our side"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="of both sides; auto is the type that this machine multiplies faster in",
    )
    parser.add_argument("--only", choices=["ours", "theirs"], help="leave the other side out")
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        given = (
            arguments.model,
            arguments.folder,
            arguments.steps,
            arguments.micro_batch,
            arguments.precision,
        )
        if arguments.side == "ours":
            figures = ours(*given, arguments.checkpointing)
        else:
            figures = theirs(*given)
        figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(MARK + json.dumps(figures))
        return
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from toolkit.machine import choose_training_precision

    if not arguments.model.is_dir():
        sys.exit(f"{arguments.model}: no model there; run `make cpt` first, or give --model.")
    arguments.precision = choose_training_precision(arguments.precision)
    print(f"{arguments.precision} on {torch.backends.cpu.get_cpu_capability()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_blocks(folder, arguments.model, arguments.steps)
        pairs = []
        for number in range(arguments.pairs):
            sides = ("ours", "theirs") if number % 2 else ("theirs", "ours")
            chosen = [side for side in sides if arguments.only in (None, side)]
            pairs.append({side: run(side, folder, arguments) for side in chosen})
            print(line(f"pair {number + 1}", pairs[-1]), flush=True)
    if arguments.only is None:
        show(pairs)


def write_blocks(folder: Path, model: Path, steps: int) -> None:
    """One long document of this repository's own text, cut into blocks."""
    from tests.helpers.token_blocks import make_blocks
    from toolkit.data.encode import TextTokenizer

    text = "\n\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path("toolkit").rglob("*.py"))
    )
    ids, _ = TextTokenizer(model).encode(text)
    needed = steps * BLOCKS_PER_STEP * SEQUENCE
    make_blocks(folder, {"text": [(ids * (needed // len(ids) + 1))[: needed - 1]]}, SEQUENCE)


def ours(
    model: Path,
    folder: Path,
    steps: int,
    micro_batch: int,
    precision: str,
    checkpointing: str,
) -> dict[str, Any]:
    import torch

    from toolkit.checkpoint.load import load_causal_model
    from toolkit.data.blocks import Blocks
    from toolkit.train.config import TrainSection
    from toolkit.train.loop import train
    from toolkit.train.metrics import MetricsLog
    from toolkit.train.trainable import prepare_model

    section = TrainSection.model_validate(
        {
            "global_batch_size": BLOCKS_PER_STEP,
            "micro_batch_size": micro_batch,
            "gradient_checkpointing": checkpointing,
            "precision": precision,
            "schedule": {"kind": "constant", "peak_lr": LEARNING_RATE, "warmup_fraction": 0.0},
            "save_steps": 10_000,
        }
    )
    with tempfile.TemporaryDirectory() as work:
        loaded = prepare_model(load_causal_model(model, torch.float32), section)
        processor: list[float] = []
        write = MetricsLog.write

        def write_and_look(self: MetricsLog, **row: Any) -> None:
            processor.append(time.process_time())
            write(self, **row)

        with patch.object(MetricsLog, "write", write_and_look):
            train(loaded, Blocks.open(folder), section, seed=1, work=Path(work))
        rows = [json.loads(row) for row in (Path(work) / "metrics.jsonl").open()]
    return {
        "losses": [row["loss"] for row in rows[:steps]],
        "tokens_per_second": statistics.median(r["tokens_per_second"] for r in rows[SKIPPED:]),
        "processor_seconds": between(processor),
    }


def theirs(
    model: Path, folder: Path, steps: int, micro_batch: int, precision: str
) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    from toolkit.data.blocks import Blocks

    stage = Blocks.open(folder).stages[0]
    rows = []
    for position in range(stage.num_positions):
        ids = stage.read([position]).input_ids[0].astype(np.int64)
        rows.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids.copy()})
    times: list[float] = []
    processor: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] = time.perf_counter() - times[-1]
            processor.append(time.process_time())

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(rows)

    with tempfile.TemporaryDirectory() as work:
        settings = TrainingArguments(
            output_dir=work,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=BLOCKS_PER_STEP // micro_batch,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=precision == "bf16",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=settings,
            train_dataset=rows,
            data_collator=default_data_collator,
            callbacks=[Clock()],
        )
        trainer.train()
    tokens = BLOCKS_PER_STEP * SEQUENCE
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "tokens_per_second": tokens / statistics.median(times[SKIPPED:]),
        "processor_seconds": between(processor),
    }


def between(seconds: list[float]) -> float:
    """Median processor time of a step, all threads, given the clock at the end of each."""
    return statistics.median(b - a for a, b in pairwise(seconds[SKIPPED - 1 :]))


def run(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [__file__, "--side", side, "--folder", str(folder)]
    command += ["--model", str(arguments.model), "--steps", str(arguments.steps)]
    command += ["--micro-batch", str(arguments.micro_batch)]
    command += ["--checkpointing", arguments.checkpointing, "--precision", arguments.precision]
    return figures_of(side, command, pause=2.0)


def line(name: str, pair: dict[str, Any]) -> str:
    return f"{name}: " + "; ".join(
        f"{side} {figures['tokens_per_second']:.0f} tokens/s, "
        f"{figures['processor_seconds']:.2f} processor seconds a step, "
        f"{figures['peak_bytes'] / 1e9:.2f} GB"
        for side, figures in sorted(pair.items())
    )


def show(pairs: list[dict[str, Any]]) -> None:
    speed = [p["ours"]["tokens_per_second"] / p["theirs"]["tokens_per_second"] for p in pairs]
    work = [p["theirs"]["processor_seconds"] / p["ours"]["processor_seconds"] for p in pairs]
    memory = [p["ours"]["peak_bytes"] / p["theirs"]["peak_bytes"] for p in pairs]
    differences = [
        abs(a - b)
        for p in pairs
        for a, b in zip(p["ours"]["losses"], p["theirs"]["losses"], strict=True)
    ]
    first, last = pairs[0]["ours"]["losses"], pairs[0]["theirs"]["losses"]
    print(f"speed {statistics.median(speed):.2f} times, {min(speed):.2f} to {max(speed):.2f}")
    print(f"processor time {statistics.median(work):.2f} times less")
    print(f"peak memory {statistics.median(memory):.2f} times")
    print(f"losses ours    {' '.join(f'{value:.3f}' for value in first)}")
    print(f"losses Trainer {' '.join(f'{value:.3f}' for value in last)}")
    print(f"largest difference of a step's loss {max(differences):.4f}")


if __name__ == "__main__":
    main()
