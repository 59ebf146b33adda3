"""The plan's estimates beside what training really takes, on the model that `make cpt` fetched.

Memory: each configuration in a process of its own, a few steps of the real loop on made-up tokens;
its peak is the kernel's count (VmHWM), libraries and all, nothing taken off. States are not written
here, so the estimate is without their copy. Where blocks are fused, the share for the allocator was
fitted to the first and the third configuration, and in float32 to its three; elsewhere LoRA r=64
was fitted to. The last three never were.

Time: the plan's own measurement and steps of the real loop in turn, in one process after the other,
by wall clock and by processor seconds.

    make bench-plan                      # needs runs/finance/general, which `make cpt` leaves
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from child import MARK, figures_of

CONFIGURATIONS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("selective, 2 x 512", 512, {}),
    ("none", 512, {"gradient_checkpointing": "none"}),
    ("full checkpointing", 512, {"gradient_checkpointing": "full"}),
    ("LoRA r=64", 512, {"lora": {"rank": 64}}),
    ("4 x 1024", 1024, {"micro_batch_size": 4, "global_batch_size": 4}),
    ("fp32", 512, {"precision": "fp32"}),
    ("fp32, full", 512, {"precision": "fp32", "gradient_checkpointing": "full"}),
    (
        "fp32, 4 x 512",
        512,
        {"precision": "fp32", "micro_batch_size": 4, "global_batch_size": 4},
    ),
    ("two micro-batches", 512, {"micro_batch_size": 1}),
    ("not fitted: 8 x 256", 256, {"micro_batch_size": 8, "global_batch_size": 8}),
    (
        "not fitted: LoRA r=16, full, 4 x 512",
        512,
        {
            "lora": {"rank": 16},
            "gradient_checkpointing": "full",
            "micro_batch_size": 4,
            "global_batch_size": 4,
        },
    ),
    ("not fitted: 1 x 2048", 2048, {"micro_batch_size": 1, "global_batch_size": 1}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/finance/general"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of times")
    parser.add_argument("--part", choices=["memory", "time"], help="only this")
    parser.add_argument("--only", help="configurations whose name holds this")
    parser.add_argument("--child", choices=["train", "plan"], help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        act = train_steps if arguments.child == "train" else plan_steps
        print(MARK + json.dumps(act(arguments.model, json.loads(arguments.settings))))
        return
    if not arguments.model.is_dir():
        sys.exit(f"{arguments.model}: no model there; run `make cpt` first, or give --model.")
    if arguments.part != "time":
        compare_memory(arguments)
    if arguments.part != "memory":
        compare_time(arguments)


def compare_memory(arguments: argparse.Namespace) -> None:
    from toolkit.checkpoint.config import shape_of_folder
    from toolkit.plan.memory import training_memory
    from toolkit.train.config import TrainSection

    shape = shape_of_folder(arguments.model)
    worst = 0.0
    print("| configuration | estimate GB | peak GB | off |\n|---|---:|---:|---:|")
    for name, length, settings in CONFIGURATIONS:
        if arguments.only and arguments.only not in name:
            continue
        section = TrainSection.model_validate(settings)
        estimate = training_memory(shape, section, length, device="CPU").total
        given = {"train": settings, "length": length, "steps": arguments.steps}
        peak = run("train", arguments.model, given)["peak_bytes"]
        off = estimate / peak - 1.0
        worst = max(worst, abs(off))
        print(f"| {name} | {estimate / 1e9:.2f} | {peak / 1e9:.2f} | {off:+.1%} |", flush=True)
    print(f"largest: {worst:.1%}")


def compare_time(arguments: argparse.Namespace) -> None:
    given = {"train": {}, "length": 512, "steps": 6}
    wall, cpu = [], []
    for number in range(arguments.rounds):
        sides = ("plan", "train") if number % 2 == 0 else ("train", "plan")
        found = {side: run(side, arguments.model, given) for side in sides}
        plan, real = found["plan"], found["train"]
        wall.append(plan["tokens_per_second"] / real["tokens_per_second"])
        cpu.append(plan["tokens_per_cpu_second"] / real["tokens_per_cpu_second"])
        print(
            f"round {number + 1}: plan {plan['tokens_per_second']:.0f} tokens/s, loop "
            f"{real['tokens_per_second']:.0f}; by processor second "
            f"{plan['tokens_per_cpu_second']:.0f} and {real['tokens_per_cpu_second']:.0f}",
            flush=True,
        )
    print(
        f"plan / loop: {statistics.median(wall):.2f} by the clock, {statistics.median(cpu):.2f} "
        "by processor seconds"
    )


def train_steps(model: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The real loop; peak memory, and speed after the first two steps."""
    import numpy as np
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.helpers.token_blocks import make_blocks
    from toolkit.checkpoint.load import load_causal_model
    from toolkit.data.blocks import Blocks
    from toolkit.train.config import TrainSection
    from toolkit.train.loop import train
    from toolkit.train.trainable import prepare_model

    schedule = {"kind": "constant", "peak_lr": 1e-5, "warmup_fraction": 0.0}
    section = TrainSection.model_validate(
        {"schedule": schedule, "save_steps": 10_000, **given["train"]}
    )
    length, steps = given["length"], given["steps"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = steps * section.global_batch_size * length
        ids = np.random.default_rng(0).integers(10, 20_000, count - 1).tolist()
        make_blocks(folder, {"text": [ids]}, length)
        loaded = prepare_model(load_causal_model(model, torch.float32), section)
        before = cpu_seconds()
        train(loaded, Blocks.open(folder), section, seed=1, work=folder)
        spent = cpu_seconds() - before
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    later = [row["tokens_per_second"] for row in rows[2:]]
    return {
        "peak_bytes": peak_bytes(),
        "tokens_per_second": statistics.median(later),
        "tokens_per_cpu_second": count / spent,
    }


def plan_steps(model: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the plan measures."""
    import numpy as np
    import torch

    from toolkit.checkpoint.config import shape_of_folder
    from toolkit.checkpoint.load import load_causal_model
    from toolkit.plan.speed import time_steps
    from toolkit.train.config import TrainSection

    section = TrainSection.model_validate(given["train"])
    ids = np.random.default_rng(0).integers(10, 20_000, 5_000).tolist()
    loaded = load_causal_model(model, torch.float32)
    before = cpu_seconds()
    speed = time_steps(loaded, section, shape_of_folder(model), ids, given["length"], seconds=8.0)
    spent = cpu_seconds() - before
    passes = int(speed.how.split()[0]) + 1
    tokens = passes * section.micro_batch_size * given["length"]
    return {"tokens_per_second": speed.tokens_per_second, "tokens_per_cpu_second": tokens / spent}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run(side: str, model: Path, given: dict[str, Any]) -> dict[str, Any]:
    command = [__file__, "--child", side, "--model", str(model)]
    command += ["--settings", json.dumps(given)]
    return figures_of(side, command, pause=1.0)


if __name__ == "__main__":
    main()
