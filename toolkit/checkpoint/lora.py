"""Adapter folders as peft writes them: settings and factors, read lazily."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from toolkit.checkpoint.read import Checkpoint, read_header
from toolkit.checkpoint.usable import refuse_unusable
from toolkit.errors import CheckpointError
from toolkit.load_yaml import JsonObject, JsonView, read_object

NamesT = TypeVar("NamesT", str, Mapping[str, str])

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
_BIAS = re.compile(r"^(?P<module>.+)\.lora_B\.bias$")
_FACTOR = re.compile(r"^(?P<path>.+)\.lora_[AB]\.weight$")
_ROWS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta$")
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
"""Settings under which the change is not `scale * B A` added to the weight of a module."""

_KNOWN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "use_dora", "velora_config", "qalora_group_size"),
    *("lora_bias", "ensure_weight_tying", "runtime_config", "enable_lora", "merge_weights"),
    *("target_parameters", *_UNSUPPORTED),
}
"""Settings whose meaning for the weights is known; another one may change what `B A` means."""


_PEFT_ALPHA = 8
"""`lora_alpha` where the settings do not give it, as in peft's `LoraConfig`."""

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
        rows: its names of rows that take the place of some of the model's (see `token_rows`).
        biases: its names of what is added to the model's biases, by the model's names.
        wrapped: its names of factors of parameters (`target_parameters`), by peft's path of the
            wrapper, then by part.
        memory_names: the names that peft knows the model's tensors by, where they are others.
    """

    folder: Path
    settings: JsonView
    tensors: Checkpoint
    parts: Mapping[str, Mapping[str, str]]
    saved: Mapping[str, str]
    rows: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    wrapped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    memory_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """The model's tensors that it changes or replaces."""
        return [*self.parts, *self.saved, *self.rows, *self.biases]

    def own_name(self, name: str) -> str:
        """A name of its own for one of the tensors that it changes, for messages."""
        if name in self.parts:
            return next(iter(self.parts[name].values()))
        return next(group[name] for group in (self.saved, self.rows, self.biases) if name in group)

    def renamed(self, names: Mapping[str, str]) -> AdapterFolder:
        """The same adapter with the model's tensors by other names; those not given stay."""

        def by_name(group: Mapping[str, NamesT]) -> dict[str, NamesT]:
            return {names.get(name, name): value for name, value in group.items()}

        return replace(
            self,
            parts=by_name(self.parts),
            saved=by_name(self.saved),
            rows=by_name(self.rows),
            biases=by_name(self.biases),
            memory_names={new: old for old, new in names.items()},
        )

    def only(self, names: Collection[str]) -> AdapterFolder:
        """The same adapter with its changes to some of the model's tensors alone."""

        def given(group: Mapping[str, NamesT]) -> dict[str, NamesT]:
            return {name: value for name, value in group.items() if name in names}

        return replace(
            self,
            parts=given(self.parts),
            saved=given(self.saved),
            rows=given(self.rows),
            biases=given(self.biases),
        )

    def without(self, names: Collection[str]) -> AdapterFolder:
        """The same adapter without its changes to some of the model's tensors."""
        return self.only({*self.changed} - {*names})

    def without_saved(self, names: Collection[str]) -> AdapterFolder:
        """The same adapter without some of the tensors that it stores whole."""
        return replace(self, saved={n: own for n, own in self.saved.items() if n not in names})

    def token_rows(self, name: str) -> list[int]:
        """Which rows of the model's tensor `rows` takes the place of."""
        token_indices = self.settings.get("trainable_token_indices")
        if isinstance(token_indices, Mapping):
            module = self.memory_names.get(name, name).removesuffix(".weight")
            token_indices = next(
                (v for k, v in token_indices.items() if f".{module}".endswith(f".{k}")), None
            )
        if not isinstance(token_indices, list) or not all(map(_is_count, token_indices)):
            raise CheckpointError(
                f"{self.folder / SETTINGS_FILE}: trainable_token_indices does not say which rows "
                f"of {name} are meant; download or copy the file again."
            )
        return [int(number) for number in token_indices]

    @property
    def file(self) -> Path:
        """The file of its tensors."""
        safe_file = self.folder / WEIGHTS_FILE
        return safe_file if safe_file.is_file() else self.folder / PICKLED_FILE

    def says_turned(self, name: str) -> bool:
        """Whether the model's tensor is the transpose of `B A` by the settings: embeddings, and
        GPT-2's layers. Of a model at hand `adapted.is_turned` knows better."""
        return "lora_embedding_A" in self.parts[name] or bool(self.settings.get("fan_in_fan_out"))

    def factor_names(self, name: str) -> tuple[str, str]:
        """The adapter's names of A and B for one of the model's tensors."""
        own_parts = self.parts[name]
        factor_kind = "lora_embedding" if "lora_embedding_A" in own_parts else "lora"
        return own_parts[f"{factor_kind}_A"], own_parts[f"{factor_kind}_B"]

    def scale(self, name: str) -> float:
        """What `B A` is multiplied with for one of the model's tensors."""
        # From the tensor: `r` does not hold where a `rank_pattern` gives modules ranks of their
        # own.
        rank = self.tensors.info(self.factor_names(name)[0]).shape[0]
        module_name = self.memory_names.get(name, name).removesuffix(".weight")
        alpha = float(self.settings.get("lora_alpha", _PEFT_ALPHA))
        # As in peft: a pattern is matched against the end of the module's name, and the first one
        # counts.
        for pattern, pattern_alpha in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module_name):
                alpha = float(pattern_alpha)
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
    weights_file, adapter_tensors = _open_tensors(folder)
    refuse_unusable(folder, {name: adapter_tensors.info(name) for name in adapter_tensors.names})
    sorted_tensors = _SortedTensors(weights_file, adapter_tensors, settings)
    for own_name in adapter_tensors.names:
        sorted_tensors.add(own_name)
    sorted_tensors.refuse_halves()
    return AdapterFolder(
        folder,
        settings,
        adapter_tensors,
        sorted_tensors.parts,
        sorted_tensors.saved,
        sorted_tensors.rows,
        sorted_tensors.biases,
        sorted_tensors.wrapped,
    )


def _open_tensors(folder: Path) -> tuple[Path, Checkpoint]:
    weights_file = folder / WEIGHTS_FILE
    if weights_file.is_file():
        return weights_file, Checkpoint(folder, read_header(weights_file))
    from toolkit.checkpoint.pickled import open_pickled

    if (pickled_tensors := open_pickled(folder, PICKLED_FILE)) is None:
        raise CheckpointError(f"{folder}: has neither {WEIGHTS_FILE} nor {PICKLED_FILE}.")
    return folder / PICKLED_FILE, pickled_tensors


class _SortedTensors:
    """The tensors of an adapter by what they do, which their names tell.

    Attributes:
        parts, saved, rows, biases, wrapped: as of an `AdapterFolder`.
    """

    def __init__(self, file: Path, tensors: Checkpoint, settings: JsonView) -> None:
        self._file, self._tensors, self._settings = file, tensors, settings
        self.parts: dict[str, dict[str, str]] = {}
        self.saved: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.biases: dict[str, str] = {}
        self.wrapped: dict[str, dict[str, str]] = {}

    def add(self, own_name: str) -> None:
        """Sort one tensor in.

        Raises:
            CheckpointError: another one is meant for the same place, and differs.
        """
        if path := _wrapper_path(own_name, self._settings):
            part = "lora_A" if ".lora_A." in own_name else "lora_B"
            self.wrapped.setdefault(path, {})[part] = own_name
            return
        # peft wraps modules that it adapts or stores whole, which shows in their names.
        model_name = own_name.removeprefix(PREFIX)
        model_name = model_name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if ".original_module." in model_name:
            return  # the model's own weights once more, which the saved ones take the place of
        if name_match := _PART.match(model_name):
            own_parts = self.parts.setdefault(f"{name_match['module']}.weight", {})
            self._put(own_parts, name_match["part"], own_name)
        elif name_match := _ROWS.match(model_name):
            self._put(self.rows, f"{name_match['module']}.weight", own_name)
        elif name_match := _BIAS.match(model_name):
            self._put(self.biases, f"{name_match['module']}.bias", own_name)
        else:
            self._put(self.saved, model_name, own_name)

    def _put(self, group: dict[str, str], name: str, own_name: str) -> None:
        if name in group and not _are_equal(self._tensors, group[name], own_name):
            raise CheckpointError(
                f"{self._file}: {group[name]} and {own_name} are both meant for {name}, and "
                "differ; merge the adapter with peft, or save it again with the peft of today."
            )
        group[name] = own_name

    def refuse_halves(self) -> None:
        """Refuse an adapter that changes nothing, or holds one factor without the other.

        Raises:
            CheckpointError: names the tensor.
        """
        if not (self.parts or self.saved or self.rows or self.wrapped):
            raise CheckpointError(
                f"{self._file}: holds no tensor of an adapter, so it would change nothing; save it "
                "again, under ZeRO-3 or FSDP with all its weights gathered."
            )
        for wrapper_path, parts in self.wrapped.items():
            self._refuse_half(wrapper_path, parts, "lora")
        for name in self.biases:
            self._refuse_half(
                name, self.parts.get(f"{name.removesuffix('.bias')}.weight", {}), "lora"
            )
        for name, parts in self.parts.items():
            factor_kind = "lora_embedding" if any("embedding" in part for part in parts) else "lora"
            self._refuse_half(name, parts, factor_kind)
            a_shape, b = (self._tensors.info(parts[f"{factor_kind}_{part}"]).shape for part in "AB")
            if len(a_shape) < 2 or len(b) < 2 or b[1] != a_shape[0] or a_shape[0] == 0:
                raise CheckpointError(
                    f"{self._file}: the parts of the change to {name} are {list(a_shape)} and "
                    f"{list(b)}, which share no rank; download or copy the file again."
                )
            self._refuse_unlike_settings(name, parts, a_shape[0])

    def _refuse_unlike_settings(self, name: str, parts: Mapping[str, str], rank: int) -> None:
        """Refuse what peft would make of the settings otherwise than of the tensors: of another
        rank it refuses it, and of DoRA's lengths it makes up those that the file has not."""
        pattern_ranks = (self._settings.get("rank_pattern") or {}).values()
        # Where nothing names a rank, the tensors' own leaves no doubt.
        ranks = sorted({self._settings.get("r", rank), *pattern_ranks})
        if rank not in ranks:
            raise CheckpointError(
                f"{self._file}: the change to {name} has rank {rank}, and {SETTINGS_FILE} names "
                f"{', '.join(map(str, ranks))}; its scale is not known. Give the settings that it "
                "was saved with."
            )
        has_lengths, is_dora = "lora_magnitude_vector" in parts, self._settings.get("use_dora")
        if has_lengths != bool(is_dora):
            raise CheckpointError(
                f"{self._file}: the change to {name} has {'a' if has_lengths else 'no'} "
                f"lora_magnitude_vector, and use_dora in {SETTINGS_FILE} is {is_dora!r}; give the "
                "settings that it was saved with."
            )

    def _refuse_half(self, name: str, parts: Mapping[str, str], kind: str) -> None:
        if not {f"{kind}_A", f"{kind}_B"} <= set(parts):
            raise CheckpointError(
                f"{self._file}: holds only half of the change to {name} ({sorted(parts)}); copy "
                "the file again."
            )


def _wrapper_path(own: str, settings: JsonView) -> str | None:
    """peft's path of the wrapper of a parameter, where a tensor is one of its factors."""
    factor_match = _FACTOR.match(own.removeprefix(PREFIX))
    if factor_match is None:
        return None
    module = "." + factor_match["path"].replace(".base_layer", "")
    owners = (str(name).rpartition(".")[0] for name in settings.get("target_parameters") or ())
    return factor_match["path"] if any(module.endswith(f".{owner}") for owner in owners) else None


def _are_equal(tensors: Checkpoint, one: str, other: str) -> bool:
    a, b = tensors.info(one), tensors.info(other)
    is_alike = (a.dtype, a.shape) == (b.dtype, b.shape)
    return is_alike and bool((tensors.raw(one) == tensors.raw(other)).all())


def _load_settings(path: Path) -> JsonObject:
    settings = read_object(path, CheckpointError, "give an adapter folder")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: is a {kind} adapter; only LORA (and DoRA) can be merged.")
    _refuse_mistyped(path, settings)
    if given := [key for key in _UNSUPPORTED if settings.get(key)]:
        raise CheckpointError(f"{path}: {given[0]} is not supported; merge it with peft.")
    # peft writes every key of its version, most of them off; only what is set has an effect.
    if unknown_keys := [key for key, value in settings.items() if key not in _KNOWN and value]:
        raise CheckpointError(
            f"{path}: {unknown_keys[0]} is no setting known here, and may change what the adapter "
            "does; merge it with peft, or set it to null if it means nothing."
        )
    initialization = settings.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(_CHANGED_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {initialization!r}, which changed the model's own "
            "weights too; convert it with peft (path_initial_model_for_weight_conversion) to a "
            "plain LoRA."
        )
    return dict(settings)


def _refuse_mistyped(path: Path, settings: JsonView) -> None:
    """Refuse settings that the change is computed from, if they are of another type than peft's.

    Raises:
        CheckpointError: names the setting.
    """
    pattern_alphas = settings.get("alpha_pattern") or {}
    pattern_ranks = settings.get("rank_pattern") or {}
    is_right = {
        "r": _is_count(settings.get("r", 8)),
        "rank_pattern": isinstance(pattern_ranks, Mapping)
        and all(map(_is_count, pattern_ranks.values())),
        "lora_alpha": _is_number(settings.get("lora_alpha", _PEFT_ALPHA)),
        "alpha_pattern": isinstance(pattern_alphas, Mapping)
        and all(map(_is_number, pattern_alphas.values()))
        and all(map(_is_pattern, pattern_alphas)),
        "target_parameters": _is_words(settings.get("target_parameters") or []),
        "base_model_name_or_path": isinstance(settings.get("base_model_name_or_path") or "", str),
    }
    for key, holds in is_right.items():
        if not holds:
            raise CheckpointError(
                f"{path}: {key} is {settings.get(key)!r:.80}, which peft does not write; download "
                "or copy the file again."
            )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True
