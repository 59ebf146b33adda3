"""What no command can compute with, refused where a checkpoint is opened and not in one command.

Stored values of a packed weight are codes: averaged, subtracted or exported without their scales
they are wrong without a word. A tensor without entries is what a sharded optimizer (ZeRO-3) leaves
when a model is saved on one process alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.checkpoint.tensor_names import is_buffer, says_packed
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.checkpoint.read import TensorInfo

_CODES = ("U8", "I8", "U16", "I16", "U32", "I32")
"""Types that packed weights are stored in; positions and masks are I64 or BOOL."""


def refuse_unusable(where: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse packed weights and tensors without entries.

    Args:
        where: the folder or file, for messages.
        tensors: headers of all tensors; none is read.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for tensor_name, info in tensors.items():
        if is_packed(tensor_name, info, tensors):
            raise CheckpointError(
                f"{where}: is quantized, as {tensor_name} says ({info.dtype}, {list(info.shape)}); "
                "load it with dequantize=True, save it in bfloat16, and take that."
            )
        if info.num_bytes == 0 and info.shape != () and info.dtype.startswith(("F", "BF")):
            raise CheckpointError(
                f"{where}: {tensor_name} has no entries (shape {list(info.shape)}), as in a model "
                "that ZeRO-3 or FSDP saved without gathering it; save it again with all its "
                "weights."
            )


def is_packed(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor is, or stands beside, a weight that is stored as codes."""
    if says_packed(name):
        return True
    if info.dtype in _CODES:
        return len(info.shape) > 1 and not is_buffer(name, info.shape)
    if info.dtype.startswith("F8"):
        module = name.rpartition(".")[0]
        return any("scale" in n.rpartition(".")[2] for n in tensors if n.startswith(f"{module}."))
    return False
