"""The models of a configuration, opened as far as they can be; what cannot be is a finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.lora import open_adapter
from toolkit.checkpoint.model_values import read_model_values
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import Checkpoint
from toolkit.checkpoint.references import find_folder, parse_reference
from toolkit.errors import CheckpointError, ConfigError, Fault, MergeError, ToolkitError
from toolkit.load_yaml import JsonView, read_object
from toolkit.merge.check.findings import from_message, summarize_names
from toolkit.merge.config import MergeConfig


@dataclass(frozen=True)
class Model:
    """One model that could be opened.

    Attributes:
        name: in the configuration.
        checkpoint: with its adapter, where that fits.
        config: its config.json; empty where there is none.
    """

    name: str
    checkpoint: Checkpoint
    config: JsonView

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.checkpoint.info(tensor).shape


@dataclass(frozen=True)
class Survey:
    """What the checks look at.

    Attributes:
        config: the merge configuration; None where it has faults of its own.
        names: of all models that it names, in file order.
        base: the base model's name, where there is one.
        models: those that could be opened, in file order.
        leader: the one whose config and tokenizer the merge has, if it could be opened, else the
            first that could; the others are compared with it.
    """

    config: MergeConfig | None
    names: list[str]
    base: str | None
    models: list[Model]
    leader: Model | None

    @property
    def others(self) -> list[Model]:
        """All models but the leader."""
        return [model for model in self.models if model is not self.leader]

    @property
    def tokenizer_source(self) -> str | None:
        """Whose vocabulary the configuration asks for."""
        if self.config is None:
            return None
        tokenizer = self.config.tokenizer
        return tokenizer.source if tokenizer is not None else self.config.tokenizer_source


def survey_models(
    config: MergeConfig | None, data: JsonView, models: Models
) -> tuple[Survey, list[Fault]]:
    """Open every model that a configuration names.

    Args:
        config: as parsed, or None where it has faults.
        data: its plain values, from which names are taken where it has faults.
        models: where they are opened.

    Returns:
        The models, and a finding for each that is missing or damaged.
    """
    model_names = list(dict.fromkeys(_names_in(data))) if config is None else config.model_names()
    base = data.get("base_model") if config is None else config.base_model
    leader_name = config.leader() if config is not None else base
    opened: list[Model] = []
    findings: list[Fault] = []
    for name in model_names:
        try:
            opened.append(Model(name, models.checkpoint(name), models.config(name)))
        except ToolkitError as error:
            findings += _why_not(name, error)
            if (stand_in := _without_adapter(name)) is not None:
                opened.append(stand_in)
    lead_model = next((m for m in opened if m.name == leader_name), opened[0] if opened else None)
    return Survey(config, model_names, str(base) if base else None, opened, lead_model), findings


def _names_in(node: Any) -> Iterator[str]:
    """Names of models in plain values that are no valid configuration; the base model last."""
    if isinstance(node, list):
        for item in node:
            yield from _names_in(item)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key == "model" and isinstance(value, str) and value:
                yield value
            elif key not in {"base_model", "tokenizer", "parameters"}:
                yield from _names_in(value)
        if isinstance(node.get("base_model"), str):
            yield node["base_model"]


def _why_not(name: str, error: ToolkitError) -> list[Fault]:
    message = str(error)
    if lacking_names := _lacking_targets(name):
        return [
            Fault(
                name,
                f"its adapter changes {summarize_names(lacking_names)}, which the model has not",
                "give the model that the adapter was trained on",
            )
        ]
    name_prefix = "" if message.startswith(name) else f"{name}: "
    return [from_message(name_prefix + message)]


def _without_adapter(name: str) -> Model | None:
    """The model under an adapter that does not fit it, so that the rest can be checked."""
    try:
        reference = parse_reference(name)
        if reference.adapter is None:
            return None
        checkpoint = open_checkpoint(find_folder(reference.model))
        return Model(name, checkpoint, read_model_values(checkpoint.folder))
    except ToolkitError:
        return None


def _lacking_targets(name: str) -> list[str]:
    """All tensors that an adapter changes and its model has not."""
    try:
        reference = parse_reference(name)
        if reference.adapter is None:
            return []
        model = open_checkpoint(find_folder(reference.model))
        adapter = open_adapter(find_folder(reference.adapter))
    except (ConfigError, MergeError, CheckpointError):
        return []
    return [tensor for tensor in adapter.changed if tensor not in model]


def check_adapters(survey: Survey) -> Iterator[Fault]:
    """Adapters that say they were trained on another model than the one they stand behind."""
    for name in survey.names:
        try:
            reference = parse_reference(name)
            if reference.adapter is None:
                continue
            config_path = find_folder(reference.adapter) / "adapter_config.json"
            trained_on = read_object(config_path).get("base_model_name_or_path")
        except ToolkitError:
            continue  # said when it was opened
        if isinstance(trained_on, str) and _are_different(trained_on, reference.model.path):
            yield Fault(
                name,
                f"its adapter was trained on {trained_on}, not on {reference.model.path}",
                "put that model before the +, or make sure that they are the same",
                "warning",
            )


def _are_different(a: str, b: str) -> bool:
    """Whether two references surely mean different models; a folder may be a copy of a hub's."""
    if Path(a).is_dir() and Path(b).is_dir():
        return Path(a).resolve() != Path(b).resolve()
    if Path(b).is_dir():
        return False
    # A name on the hub has one slash; all else may be a folder of the machine that trained it.
    return a.count("/") == 1 and a.lower() != b.lower()
