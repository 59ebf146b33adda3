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
    text_model = adapted.get_base_model()
    if (wrapper_model := wrapper_of(text_model)) is None:
        return
    wrapper_names = _names_in(wrapper_model, text_model)
    renamed_tensors, target_modules = {}, set()
    for own_name, tensor in load_file(folder / WEIGHTS_FILE).items():
        # peft stores a head that it adapts as well (`base_layer`).
        module_name, part_name = _OWN_PART.split(own_name.removeprefix(PREFIX), maxsplit=1)
        if module_name not in wrapper_names:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {own_name} is of no module of a "
                f"{type(wrapper_model).__name__}; leave its module out of "
                "train.lora.target_modules."
            )
        target_modules.add(wrapper_names[module_name])
        renamed_tensors[f"{PREFIX}{wrapper_names[module_name]}.{part_name}"] = tensor
    save_file(renamed_tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    path = folder / SETTINGS_FILE
    adapter_settings = json.loads(path.read_text(encoding="utf-8"))
    # Whole names: the last ones are those of modules in the towers too.
    adapter_settings["target_modules"] = sorted(target_modules)
    adapter_settings["base_model_name_or_path"] = (
        adapter_settings.get("base_model_name_or_path") or wrapper_model.config.name_or_path or None
    )
    path.write_text(json.dumps(adapter_settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _names_in(whole: Any, text: Any) -> dict[str, str]:
    """The wrapper's names of the text side's modules. Both share the modules, but for a head that
    peft has put its own in the place of."""
    wrapper_names = {id(module): text_name for text_name, module in whole.named_modules()}
    names_by_name: dict[str, str] = {}
    for text_name, module in text.named_modules():
        for own_module in (module, getattr(module, "base_layer", None)):
            if own_module is not None and id(own_module) in wrapper_names:
                names_by_name[text_name] = wrapper_names[id(own_module)].removesuffix(".base_layer")
                break
    return names_by_name
