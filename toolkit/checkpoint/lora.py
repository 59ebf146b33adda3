"""Adapter folders as peft writes them: settings and factors, read lazily."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.read import Checkpoint, read_header
from toolkit.errors import CheckpointError

PREFIX = "base_model.model."
"""What peft puts before the model's own names."""

SETTINGS_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
"""What peft wrote before."""

_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(?:\.weight)?$"
)
_UNSUPPORTED = (
    "megatron_config",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
)
"""Settings under which the change is not `scale * B A` added to the weight."""

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings that also take something away from the model's own weights."""


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA or DoRA adapter, opened.

    Attributes:
        folder: where it stands.
        settings: its adapter_config.json.
        tensors: its tensors, by its own names.
        parts: its names by the model's tensor that they change, then by part (`lora_A`, ...).
        saved: its names of tensors that take the place of the model's, by the model's names.
    """

    folder: Path
    settings: Mapping[str, Any]
    tensors: Checkpoint
    parts: Mapping[str, Mapping[str, str]]
    saved: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The file of its tensors."""
        safe = self.folder / WEIGHTS_FILE
        return safe if safe.is_file() else self.folder / PICKLED_FILE

    def is_turned(self, name: str) -> bool:
        """Whether the model's tensor is the transpose of `B A`: embeddings, and GPT-2's layers."""
        return "lora_embedding_A" in self.parts[name] or bool(self.settings.get("fan_in_fan_out"))

    def factor_names(self, name: str) -> tuple[str, str]:
        """The adapter's names of A and B for one of the model's tensors."""
        found = self.parts[name]
        kind = "lora_embedding" if "lora_embedding_A" in found else "lora"
        return found[f"{kind}_A"], found[f"{kind}_B"]

    def scale(self, name: str) -> float:
        """What `B A` is multiplied with for one of the model's tensors."""
        rank = self.tensors.info(self.factor_names(name)[0]).shape[0]
        module = name.removesuffix(".weight")
        alpha = float(self.settings.get("lora_alpha", rank))
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def open_adapter(folder: Path) -> AdapterFolder:
    """Open an adapter by itself; whether it fits a model is not known yet.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, or .bin with tensors alone.

    Raises:
        CheckpointError: it is no LoRA, or is damaged.
    """
    settings = _load_settings(folder / SETTINGS_FILE)
    file = folder / WEIGHTS_FILE
    if file.is_file():
        tensors = Checkpoint(folder, read_header(file))
    else:
        from toolkit.checkpoint.pickled import open_pickled

        pickled = open_pickled(folder, PICKLED_FILE)
        if pickled is None:
            raise CheckpointError(f"{folder}: has neither {WEIGHTS_FILE} nor {PICKLED_FILE}.")
        file, tensors = folder / PICKLED_FILE, pickled
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for own in tensors.names:
        name = (
            own.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        )
        if match := _PART.match(name):
            parts.setdefault(f"{match['module']}.weight", {})[match["part"]] = own
        else:
            saved[name] = own
    for name, found in parts.items():
        kind = "lora_embedding" if any("embedding" in part for part in found) else "lora"
        if not {f"{kind}_A", f"{kind}_B"} <= set(found):
            raise CheckpointError(
                f"{file}: holds only half of the change to {name} ({sorted(found)})."
            )
        a, b = (tensors.info(found[f"{kind}_{part}"]).shape for part in "AB")
        if len(a) < 2 or len(b) < 2 or b[1] != a[0] or a[0] == 0:
            raise CheckpointError(
                f"{file}: the parts of the change to {name} are {list(a)} and {list(b)}, which "
                "share no rank; download or copy the file again."
            )
    return AdapterFolder(folder, settings, tensors, parts, saved)


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); give an adapter folder."
        ) from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{path}: is a {kind} adapter; only LORA (and DoRA) can be merged.")
    if given := [key for key in _UNSUPPORTED if settings.get(key)]:
        raise CheckpointError(f"{path}: {given[0]} is not supported; merge it with peft.")
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {begun!r}, which changed the model's own weights too; "
            "convert it with peft (path_initial_model_for_weight_conversion) to a plain LoRA."
        )
    return dict(settings)
