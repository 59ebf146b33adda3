"""An adapter of a wrapper's text side, written so that it belongs to the wrapper.

The text side has names of its own while it is trained; peft, and a merge, open the folder of the
wrapper, whose modules have others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from toolkit.checkpoint.lora import PREFIX, SETTINGS_FILE, WEIGHTS_FILE
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.errors import CheckpointError

_OWN_PART = re.compile(r"\.(?=lora_|base_layer\.|weight$)")


def place_in_wrapper(adapted: Any, folder: Path) -> None:
    """Rename an adapter's tensors and targets as the wrapper's modules are named.

    Args:
        adapted: model of peft, around a text side; others are left as they are.
        folder: of the adapter that it has written.

    Raises:
        CheckpointError: a module that it adapts is none of the wrapper's.
    """
    text = adapted.get_base_model()
    if (whole := wrapper_of(text)) is None:
        return
    names = _names_in(whole, text)
    tensors, targets = {}, set()
    for own, tensor in load_file(folder / WEIGHTS_FILE).items():
        # peft stores a head that it adapts as well (`base_layer`).
        module, part = _OWN_PART.split(own.removeprefix(PREFIX), maxsplit=1)
        if module not in names:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {own} is of no module of a {type(whole).__name__}; "
                "leave its module out of train.lora.target_modules."
            )
        targets.add(names[module])
        tensors[f"{PREFIX}{names[module]}.{part}"] = tensor
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    path = folder / SETTINGS_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Whole names: the last ones are those of modules in the towers too.
    settings["target_modules"] = sorted(targets)
    settings["base_model_name_or_path"] = (
        settings.get("base_model_name_or_path") or whole.config.name_or_path or None
    )
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _names_in(whole: Any, text: Any) -> dict[str, str]:
    """The wrapper's names of the text side's modules. Both share the modules, but for a head that
    peft has put its own in the place of."""
    known = {id(module): name for name, module in whole.named_modules()}
    found: dict[str, str] = {}
    for name, module in text.named_modules():
        for own in (module, getattr(module, "base_layer", None)):
            if own is not None and id(own) in known:
                found[name] = known[id(own)].removesuffix(".base_layer")
                break
    return found
