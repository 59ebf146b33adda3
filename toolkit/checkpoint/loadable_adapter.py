"""Whether peft can load an adapter, asked of peft itself on a model without memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.checkpoint.lora import WEIGHTS_FILE
from toolkit.checkpoint.memory_names import build_on_meta
from toolkit.checkpoint.read import read_header
from toolkit.errors import CheckpointError


def refused_modules(base: Path, modules: Sequence[str]) -> dict[str, str]:
    """Modules of a model that peft puts no LoRA on, such as those whose weight is read by a kernel.

    Args:
        base: folder of the model.
        modules: names of linear modules in memory.

    Returns:
        peft's reason, by module; empty where transformers does not know the model.
    """
    refused: dict[str, str] = {}
    left = list(modules)
    while left and (model := build_on_meta(base)) is not None:
        try:
            _wrap(model, _plain_config(left))
            break
        except ValueError as error:
            words = str(error).strip().splitlines()[0]
            named = re.search(r"[Mm]odule '?([\w.]+)'?", words)
            lost = [m for m in left if named and (m == named[1] or m.endswith(f".{named[1]}"))]
            if not lost:
                break  # of another kind; the comparison at the end will say so
            refused |= dict.fromkeys(lost, words)
            left = [module for module in left if module not in refused]
    return refused


def refuse_unloadable_adapter(folder: Path, base: Path) -> None:
    """Refuse to finish an adapter whose tensors are not those that peft makes of its settings.

    Args:
        folder: of the adapter.
        base: folder of the model it belongs to; nothing is asked where transformers does not know
            it.

    Raises:
        CheckpointError: names the first tensor, or gives peft's reason.
    """
    if (model := build_on_meta(base)) is None:
        return
    from peft import LoraConfig, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = _wrap(model, LoraConfig.from_pretrained(str(folder)))
            state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except (ValueError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{base}: peft could not load the adapter ({first}).") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: info.shape for name, info in read_header(folder / WEIGHTS_FILE).items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{base}: peft could not load the adapter: {name} is "
                f"{list(found[name]) if name in found else 'missing'}, and its settings ask for "
                f"{list(wanted[name]) if name in wanted else 'no such tensor'}. Leave the module "
                "out (--exclude)."
            )


def _plain_config(modules: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=1, target_modules=list(modules))


def _wrap(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, config, low_cpu_mem_usage=True)
