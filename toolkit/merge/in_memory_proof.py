"""Whether a model can be merged in memory: known before anything is trained, by doing it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import MergeError, ToolkitError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory import LiveMerge
from toolkit.progress import say

_PIECE_ENTRIES = 1 << 22


def refuse_unless_live(general: Path, is_asked: bool) -> None:
    """Refuse a model that a search could not merge, before hours of training.

    Args:
        general: folder of the model.
        is_asked: whether it is still to be trained.

    Raises:
        MergeError: it cannot be merged in memory.
    """
    if is_asked and (why := why_not_live(general)):
        raise MergeError(
            f"{general}: its merges cannot be made in memory ({why}), which a search needs; said "
            "before hours of training. `toolkit cpt run` trains it, and `toolkit merge run` merges "
            "on disk."
        )


def note_unless_live(general: Path, is_asked: bool) -> None:
    """Say of such a model that a search will not be able to merge it; one process is asked."""
    if is_asked and (why := why_not_live(general)):
        say(f"  note: `toolkit merge choose` will not be able to merge this model ({why})")


@torch.no_grad()
def why_not_live(folder: Path) -> str:
    """Merge a model with itself in memory, and say what does not come out as it was loaded.

    Before the merge its parameters are overwritten, so that one which the merge does not reach is
    seen as well.

    Args:
        folder: of the model.

    Returns:
        What is wrong, or nothing.
    """
    model = load_causal_model(folder, stored_dtype(folder))
    before = {name: _digest(tensor) for name, tensor in model.named_parameters()}
    for parameter in model.parameters():
        # NaN in every parameter first: a parameter that the merge does not reach stays NaN, and is
        # seen.
        parameter.zero_() if not parameter.is_floating_point() else parameter.fill_(torch.nan)
    # Two halves of a number are the number, exactly: what differs afterwards was written elsewhere
    # or not at all.
    halves = [{"model": name, "parameters": {"weight": 0.5}} for name in ("general", "specialist")]
    half_config = parse_merge_config({"merge_method": "linear", "models": halves}, where="proof")
    try:
        LiveMerge({"general": folder, "specialist": folder}).apply(half_config, model)
    except ToolkitError as error:
        return str(error)
    except Exception as error:  # whatever a converter of transformers raises
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line}"
    wrong = [name for name, tensor in model.named_parameters() if _digest(tensor) != before[name]]
    if not wrong:
        return ""
    more_text = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more_text}: a merge of the model with itself does not reproduce it"


def _digest(tensor: Tensor) -> str:
    digest: Any = hashlib.blake2b(digest_size=16)
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _PIECE_ENTRIES):
        digest.update(flat[start : start + _PIECE_ENTRIES].contiguous().view(torch.uint8).numpy())
    return str(digest.hexdigest())
