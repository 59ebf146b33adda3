"""Names of tensors in files against names of the same tensors in a loaded model.

transformers stores some models under other names than it computes with (a language model within a
vision-language one, the router of a mixture), and joins some tensors on loading. Adapters speak of
names in memory. The library's own conversion says which is which.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MemoryNames:
    """The tensors of a model as they are named in memory.

    Attributes:
        stored: name in the files by name in memory, of tensors that are stored as they are.
        joined: names in memory of tensors that are made of several stored ones, such as all experts
            of a layer.
        tied: names in memory of tensors that are another one, by the name of that one.
    """

    stored: Mapping[str, str]
    joined: frozenset[str]
    tied: Mapping[str, str]


def read_memory_names(folder: Path, names: Iterable[str]) -> MemoryNames | None:
    """Ask transformers what it calls the tensors of a model.

    Args:
        folder: with the model's config.json.
        names: of its tensors in the files.

    Returns:
        None where transformers does not know the model.
    """
    from toolkit.checkpoint.stored_names import read_renaming

    if (model := build_on_meta(folder)) is None:
        return None
    rename, _ = read_renaming(model)
    state = model.state_dict()
    stored: dict[str, str] = {}
    joined: set[str] = set()
    for name in names:
        found, pattern = rename(name)
        if found not in state and name in state:
            found, pattern = name, None
        if pattern is None:
            stored[found] = name
        else:
            joined.add(found)
    return MemoryNames(stored, frozenset(joined), dict(getattr(model, "all_tied_weights_keys", {})))


def build_on_meta(folder: Path) -> Any | None:
    """A model of a folder's config on torch's meta device: no memory, no weights.

    Returns:
        None where transformers does not know it, or cannot build it; its own code is never run.
    """
    import torch
    import transformers

    from toolkit.checkpoint.loadable import class_of

    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values.pop("quantization_config", None)
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "config.json").write_text(json.dumps(values), encoding="utf-8")
            config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        with torch.device("meta"):
            return class_of(config)._from_config(config, dtype=torch.float32)
    except Exception:  # classes check their configs in their own ways
        return None
