"""The arithmetic of a run on 64 GPUs in docs/cluster.md, by the functions that `plan` uses.

python docs/tools/cluster.py           # writes it into the page
python docs/tools/cluster.py --check   # exits 1 where it is not what would be written
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from toolkit.plan.memory import training_memory  # noqa: E402  (the tree's own package)
from toolkit.plan.shape import count_parameters  # noqa: E402
from toolkit.recipe.load import load_recipe  # noqa: E402

PAGE = ROOT / "docs" / "cluster.md"
BEGIN = "<!-- written by docs/tools/cluster.py -->\n"
END = "<!-- end of what docs/tools/cluster.py writes -->"
NUM_GPUS, GROUP = 64, 8


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        print(f"docs/cluster.md: has no block that begins with {BEGIN.strip()}")
        return 1
    written = pattern.sub(lambda _: f"{BEGIN}{tables()}{END}", page)
    if written == page:
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/cluster.md: is not up to date; run `make docs`")
        return 1
    PAGE.write_text(written, encoding="utf-8")
    print("wrote docs/cluster.md")
    return 0


def tables() -> str:
    """Memory of one GPU by component, and what it receives, for each way to share 64."""
    recipe = load_recipe(ROOT / "recipes" / "llama3-sec.yaml")
    shape, train, length = recipe.model.shape, recipe.train, recipe.data.sequence_length
    if shape is None or train is None:
        raise SystemExit("recipes/llama3-sec.yaml: has no model.shape or no train")
    ways = {"a copy each (DDP)": 1, "groups of 8 (HSDP)": GROUP, "all 64 share (FSDP2)": NUM_GPUS}
    lines = [
        "| GB of one GPU | " + " | ".join(ways) + " |",
        "|---|" + "---|" * len(ways),
    ]
    memories = [
        training_memory(shape, train, length, processes=count, sharded=count > 1)
        for count in ways.values()
    ]
    for name in ("weights", "gradients", "optimizer", "activations", "logits", "runtime"):
        lines.append(_row(name, [memory.parts()[name] for memory in memories]))
    lines.append(_row("**all**", [memory.total for memory in memories]))
    num_parameters = count_parameters(shape).total
    passes = train.global_batch_size // (NUM_GPUS * train.micro_batch_size)
    tokens = train.micro_batch_size * length
    traffic = [received_bytes(num_parameters, count, passes) for count in ways.values()]
    lines += [
        "",
        f"A step is {train.global_batch_size} blocks of {length:,} tokens: {passes} passes of "
        f"{tokens:,} tokens on each GPU. What a GPU receives in a step:",
        "",
        "| GB a step | " + " | ".join(ways) + " |",
        "|---|" + "---|" * len(ways),
        _row("parameters, in bfloat16, forward and backward", [part[0] for part in traffic]),
        _row("gradients, in float32, within a group", [part[1] for part in traffic]),
        _row("gradients between groups, once a step", [part[2] for part in traffic]),
    ]
    # Forward, backward, and the forward pass again (`gradient_checkpointing: full`).
    pflop = 8 * num_parameters * tokens * passes / 1e15
    shared = sum(traffic[-1]) / 1e9
    lines += [
        "",
        f"A GPU computes {pflop:.0f} PFLOP in that step: {pflop / 0.4:.0f} s at 400 TFLOP/s. Where "
        f"all 64 share, its {shared:,.0f} GB take {shared / 50:.0f} s at 50 GB/s (400 Gbit/s) and "
        "are moved while it computes: the network is then as busy as the processors. A "
        "`micro_batch_size` of 2 halves what is moved and doubles the activations.",
        "",
    ]
    return "\n".join(lines)


def received_bytes(num_parameters: int, group: int, passes: int) -> tuple[float, float, float]:
    """What one GPU receives in a step: parameters, gradients within its group, between groups.

    A ring of n passes (n - 1)/n of what is gathered or summed through each of them, and twice that
    where all of them get the sum. Gradients are summed within a group in every pass, so that none
    is held whole; between groups (or copies) once a step.
    """
    within = (group - 1) / group
    groups = NUM_GPUS // group
    gathered = passes * 2 * 2 * num_parameters * within
    summed = passes * 4 * num_parameters * within
    between = 2 * (groups - 1) / groups * 4 * num_parameters / group
    return gathered, summed, between


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value / 1e9:,.0f}" for value in values) + " |"


if __name__ == "__main__":
    sys.exit(main())
