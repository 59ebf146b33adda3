"""What kinds of modules a model has, found by building it without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from toolkit.errors import CheckpointError
from toolkit.library_errors import reading
from toolkit.model_values import read_model_values

Kind = Literal["linear", "turned", "embedding", "other"]
"""`turned` is a linear module whose weight is `[inputs, outputs]`, as GPT-2's are."""


@dataclass(frozen=True)
class Modules:
    """The modules of a model, as peft will see them.

    Attributes:
        kinds: of every module by name.
        tied: names of tensors that are another one's, by the name of that one.
        is_causal: whether the model predicts the next token.
    """

    kinds: Mapping[str, Kind]
    tied: Mapping[str, str]
    is_causal: bool


def read_modules(folder: Path) -> Modules:
    """Build a model of a folder's config on torch's meta device: no memory, no weights.

    Raises:
        CheckpointError: transformers does not know the model; its own code is never run.
    """
    import transformers
    from transformers.pytorch_utils import Conv1D

    read_model_values(folder)
    what = "has no model configuration that transformers can build"
    advice = "an adapter is made for a model that it knows"
    with reading(folder, CheckpointError, what, advice):
        config = transformers.AutoConfig.from_pretrained(folder)
        named = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model: Any = kind._from_config(config) if named else kind.from_config(config)
    kinds: dict[str, Kind] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kinds[name] = "linear"
        elif isinstance(module, Conv1D):
            kinds[name] = "turned"
        elif isinstance(module, torch.nn.Embedding):
            kinds[name] = "embedding"
        else:
            kinds[name] = "other"
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Modules(kinds, tied, type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")))
