"""Peak private memory of each process that takes part in training a model (FSDP2), phase by phase.

Before: every process reads the whole model in float32, states are gathered whole in each, and the
first loads the model once more to save it; that way still serves models that cannot be read in
parts. After: parts from the first byte to the last. Both in one run, on CPU processes.

Private memory is what the kernel counts as private and changed (`Private_Dirty` of
/proc/self/smaps_rollup), sampled twenty times a second in each process; the largest of all
processes stands in the table. The bound is (parameters, gradients, two moments)/N, the largest
layer and 300 MB.

    make bench-processes                                # half an hour on 2 cores
    .venv/bin/python benchmarks/processes.py --millions 170 --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from child import MARK

ROOT = Path(__file__).parent.parent

_CHILD = """
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from toolkit.checkpoint.training_state import latest_step
from toolkit.stage import Stage
from toolkit.train import loop, run, schedule, setup, state
from toolkit.train.config import TrainSection
from toolkit.train.processes import num_processes, start_processes

side, folder, mark = sys.argv[1:]
phase, peaks, began, seconds = "load", {}, time.monotonic(), {}
goes_on = False

def private_bytes():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return 1024 * sum(int(row.split()[1]) for row in rows if row.startswith("Private_Dirty"))

def sample():
    while True:
        peaks[phase] = max(peaks.get(phase, 0), private_bytes())
        time.sleep(0.05)

def enter(name):
    global phase, began
    seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - began
    phase, began = name, time.monotonic()

def report():
    enter("end")
    os.write(1, (mark + json.dumps({"peaks": peaks, "seconds": seconds}) + "\\n").encode())

class OnCpu(Accelerator):
    # accelerate itself takes FSDP on GPUs alone; from here on all is its own code.
    def __init__(self, **settings):
        super().__init__(**settings)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
        )

if num_processes() > 1:
    setup.Accelerator = OnCpu
    start_processes()
if side == "before":
    run.sharded_fault = lambda folder: "asked for"
    state.is_shared_out = lambda model: False

def load_train_state(work, saved_step, *rest):
    global goes_on
    goes_on = saved_step is not None
    enter("resume" if goes_on else "load")
    loaded = load_state(work, saved_step, *rest)
    enter("step")
    return loaded

load_state, loop.load_train_state = loop.load_train_state, load_train_state

def save(self, trained):
    enter("save")
    begin_saving(self, trained)

begin_saving, state.Checkpoints._save = state.Checkpoints._save, save

def learning_rate(step, *rest):
    if step == 3 and not goes_on:  # the step beside the writing is done
        while latest_step(stage.work) != 2:
            time.sleep(0.05)
        report()
        os._exit(0)
    return rate_of(step, *rest)

def finish(self, trained):
    enter("write")
    done(self, trained)

done, state.Checkpoints.finish = state.Checkpoints.finish, finish
rate_of, schedule.learning_rate = schedule.learning_rate, learning_rate
section = TrainSection.model_validate({
    "precision": "fp32", "global_batch_size": 4, "micro_batch_size": 1, "save_steps": 2,
    "gradient_checkpointing": "full", "forgetting_monitor": {"evaluations": 0},
})
stage = Stage(Path(folder), {}, {}, 7)
threading.Thread(target=sample, daemon=True).start()
run.run_train(section, stage, Path("model"), Path("blocks"))
report()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--millions", type=int, default=500, help="parameters of the model, at least"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sides", nargs="+", default=["before", "after"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        folder = Path(temporary)
        parameters, layer = make_inputs(folder, arguments.millions)
        print(f"{parameters / 1e6:.0f}M parameters in float32, {4 * layer / 1e6:.0f} MB a layer")
        print("| processes | side | load | step | save | resume | write | bound |")
        print("|---|---|---|---|---|---|---|---|")
        for count in arguments.processes:
            for side in arguments.sides if count > 1 else ["after"]:
                print(row(folder, parameters, layer, count, side), flush=True)


def make_inputs(folder: Path, millions: int) -> tuple[int, int]:
    """A made-up model and blocks; returns its parameters, and those of the largest layer."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(ROOT))
    from tests.helpers.token_blocks import make_blocks

    hidden = 1280 if millions >= 400 else 768
    in_layer = 4 * hidden**2 + 3 * hidden * 3 * hidden
    vocabulary = 16_000
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(
        LlamaConfig(
            hidden_size=hidden, intermediate_size=3 * hidden, num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64, vocab_size=vocabulary, max_position_embeddings=64,
            num_hidden_layers=-(-(millions * 10**6 - 2 * vocabulary * hidden) // in_layer),
        ),
        dtype=torch.bfloat16,
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    chance = np.random.default_rng(0)
    documents = chance.integers(1, vocabulary, (12, 40)).tolist()
    make_blocks(folder / "blocks", {"a": documents})
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return num_parameters, max(in_layer, vocabulary * hidden)


def row(folder: Path, parameters: int, layer: int, count: int, side: str) -> str:
    """One row of the table: a run up to a state, then one that goes on from it."""
    needed = needed_bytes(parameters, count, side)
    free = available_bytes()
    if needed > free:
        return (
            f"| {count} | {side} | not run: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free"
        )
    out = folder / f"{side}{count}"
    first, second = (figures(folder, out.name, count, side) for _ in range(2))
    shutil.rmtree(out, ignore_errors=True)
    bound = 16 * parameters / count + 4 * layer + 300e6
    cells = []
    for name, run in (
        ("load", first), ("step", first), ("save", first), ("resume", second), ("write", second),
    ):  # fmt: skip
        peak = max(process["peaks"].get(name, 0) for process in run)
        taken = max(process["seconds"].get(name, 0.0) for process in run)
        cells.append(f"{peak / 1e9:.2f} GB ({taken:.0f} s)")
    return f"| {count} | {side} | {' | '.join(cells)} | {bound / 1e9:.2f} GB |"


def needed_bytes(parameters: int, count: int, side: str) -> float:
    """What all processes together take at their peak, roughly."""
    copies = 3 * count if side == "before" else 3 if count == 1 else 0  # of parameters and moments
    return 4 * parameters * (4 + copies) + count * 0.5e9


def available_bytes() -> float:
    """Memory that can be had without writing to swap."""
    rows = Path("/proc/meminfo").read_text().splitlines()
    return next(1024.0 * int(text.split()[1]) for text in rows if text.startswith("MemAvailable"))


def figures(folder: Path, out: str, count: int, side: str) -> list[dict[str, Any]]:
    """What every process of a run reports."""
    (folder / "child.py").write_text(_CHILD)
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "child.py", side, out, MARK], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    reports = [text for text in done.stdout.splitlines() if MARK in text]
    if len(reports) != count:
        sys.exit(f"{side}, {count} processes, failed:\n{done.stderr[-4000:]}")
    return [dict(json.loads(text.split(MARK, 1)[1])) for text in reports]


if __name__ == "__main__":
    main()
