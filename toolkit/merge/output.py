"""What the merged model's config says, and the type its tensors are written in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.checkpoint.model_values import config_parts, untie
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import TORCH_NAMES, is_float, item_bytes
from toolkit.errors import MergeError
from toolkit.load_yaml import JsonObject
from toolkit.merge.layer_stacks import Layout, layer_counts
from toolkit.merge.plan import MergePlan
from toolkit.merge.task import TensorTask

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig

_STORED = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def out_dtype(config: MergeConfig, task: TensorTask, models: Models) -> str:
    """The type a merged tensor is written in, by the format's name.

    It is `out_dtype`, else `dtype`, else the narrowest that holds every input exactly.
    """
    stored = models.dtype(task.leader)
    if task.is_copied or not is_float(stored):
        return stored
    if (name := config.out_dtype or config.dtype) is not None:
        return _STORED[name]
    widest = stored
    for source in task.inputs:
        widest = promote(widest, models.dtype(source))
    return widest


def promote(a: str, b: str) -> str:
    """The narrowest of the usual types that holds the values of both.

    >>> promote("BF16", "BF16"), promote("F16", "BF16"), promote("F8_E4M3", "BF16")
    ('BF16', 'F32', 'BF16')
    """
    if a == b or not is_float(b):
        return a
    narrow, wide = sorted((a, b), key=item_bytes)
    if item_bytes(narrow) < item_bytes(wide):
        return wide
    # Equally wide: float16 has finer steps and bfloat16 more range, so only float32 holds both. The
    # two 8-bit floats both fit into bfloat16.
    return "F32" if item_bytes(wide) > 1 else "BF16"


def merged_config(
    config: MergeConfig, plan: MergePlan, models: Models, dtypes: Mapping[str, str]
) -> JsonObject:
    """The config.json of the merged model: the leading model's, with what the merge changed.

    Layers are counted anew, what is said of single layers follows them (see `moved_layers`), and
    the path that the leading model was once loaded from is left out.

    Args:
        config: the merge configuration.
        plan: what was merged.
        models: where the leading model's config.json stands.
        dtypes: types written, by the tensor's name.

    Raises:
        MergeError: the leading model has no config.json.
    """
    leader = config.leader()
    folder = models.checkpoint(leader).folder
    if not (folder / "config.json").is_file():
        raise MergeError(f"{folder}: has no config.json; give a whole model folder.")
    # A deep copy, as parts of the leading model's config are changed below.
    values: JsonObject = json.loads(json.dumps(models.config(leader)))
    layout = Layout(models.shapes(leader), layer_counts(values))
    for stack, origin in plan.stacks.items():
        stored = layout.stacks[stack]
        # Only where a layer moved: importing transformers takes longer than a small merge.
        if [layer for _, layer in origin] != list(range(stored)):
            from toolkit.merge.moved_layers import move_layers  # it asks transformers

            move_layers(values, stack, origin, models, layout.depths[stack], stored)
    values.pop("_name_or_path", None)
    values.pop("quantization_config", None)  # what is written is not: packed weights do not open
    if plan.has_own_head:
        untie(values)
    written = TORCH_NAMES[_main_dtype(plan, dtypes)]
    for part, path in config_parts(values):
        # transformers 5 says `dtype` where 4 said `torch_dtype`; a file with both may contradict
        # itself.
        if not path or "dtype" in part or "torch_dtype" in part:
            part.pop("torch_dtype", None)
            part["dtype"] = written
    return values


def _main_dtype(plan: MergePlan, dtypes: Mapping[str, str]) -> str:
    sizes: dict[str, int] = {}
    for task in plan.tasks:
        if is_float(dtypes[task.name]):
            sizes[dtypes[task.name]] = sizes.get(dtypes[task.name], 0) + task.size
    return max(sizes, key=lambda dtype: sizes[dtype], default="F32")
