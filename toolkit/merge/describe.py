"""What a merge would do, in words and figures, without doing it."""

from __future__ import annotations

from collections import Counter

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import item_bytes
from toolkit.checkpoint.write import bytes_text
from toolkit.merge.compute import engine_of
from toolkit.merge.config import MergeConfig
from toolkit.merge.fallback import needs_mergekit
from toolkit.merge.kernels.thinning import MASK_BYTES
from toolkit.merge.kernels.workers import BLOCK, count_cores
from toolkit.merge.output import out_dtype
from toolkit.merge.registry import Method
from toolkit.merge.task import TensorTask
from toolkit.merge.vocab.vocabulary import plan_with_vocabulary

_START_BYTES = 200e6
"""What the interpreter and the compiled kernels take before the first tensor."""

_TORCH_START_BYTES = 450e6
"""The same with torch loaded, which tensors without a kernel need."""


def describe_merge(config: MergeConfig, *, device: str = "cpu") -> str:
    """Plan a merge and say what it will do: tensors by engine, bytes, memory. Writes nothing.

    Raises:
        ConfigError: the configuration asks for what is unknown.
        MergeError: the models do not fit each other.
    """
    if needs_mergekit(config.merge_method):
        return (
            f"{config.merge_method}: the whole merge by mergekit's own engine, from "
            f"{', '.join(config.model_names())}"
        )
    plan, models, vocabulary = plan_with_vocabulary(config, Models())
    read_bytes = written_bytes = 0
    largest: dict[str, int] = {}
    engines: Counter[str] = Counter()
    setting_counts: Counter[str] = Counter()
    for task in plan.tasks:
        dtype = out_dtype(config, task, models)
        engine = engine_of(task, plan.method, models, dtype, device)
        engines[engine] += 1
        read_bytes += sum(task.size * item_bytes(models.dtype(source)) for source in task.inputs)
        written_bytes += task.size * item_bytes(dtype)
        largest[engine] = max(largest.get(engine, 0), _working_bytes(task, plan.method, engine))
        setting_counts[_settings(task)] += 1
    num_threads = count_cores()
    start = _START_BYTES if set(largest) <= {"kernel"} else _TORCH_START_BYTES
    # Tensors by a definition are computed one at a time, those by kernels in blocks on all cores.
    peak = start + max(largest.get("torch", 0), largest.get("kernel", 0) + num_threads * 4 * BLOCK)
    lines = [
        f"{plan.method.name}: {len(plan.tasks)} tensors, {plan.num_layers} layers, "
        f"from {', '.join(config.model_names())}",
        f"  read {bytes_text(read_bytes)}, write {bytes_text(written_bytes)}, "
        f"peak private memory about {peak / 1e6:.0f} MB",
        *(f"  {count:5d} tensors by {_ENGINES[name]}" for name, count in sorted(engines.items())),
        *(f"  {line}" for line in (vocabulary.describe() if vocabulary is not None else ())),
        "  parameters:",
        *(f"  {count:5d} tensors: {text}" for text, count in setting_counts.most_common(12)),
    ]
    if len(setting_counts) > 12:
        lines.append(f"        and {len(setting_counts) - 12} more combinations")
    return "\n".join(lines)


_ENGINES = {
    "kernel": "a fused kernel",
    "torch": "the torch definition",
    "copy": "copying (integers and buffers are not merged)",
}


def _working_bytes(task: TensorTask, method: Method, engine: str) -> int:
    """By the definition: float32 copies of all inputs, and about as many for what the method makes
    of them. By a kernel: masks, if they are random."""
    if engine == "torch":
        return 4 * task.size * (2 * len(task.inputs) + 2)
    masks = task.size * len(task.sources) // 8 if method.is_random and engine == "kernel" else 0
    return masks if masks <= MASK_BYTES else 0


def _settings(task: TensorTask) -> str:
    shown_settings = []
    for name, value in task.parameters.items():
        numbers = value if isinstance(value, tuple) else (value,)
        text = " ".join(f"{n:.4g}" if isinstance(n, float) else str(n).lower() for n in numbers)
        shown_settings.append(f"{name.rstrip('_')} {text}")
    return ", ".join(shown_settings) or "none"
