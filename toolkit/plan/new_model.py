"""The model that a user brings, for a new recipe: what its folder, or the hub, says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from toolkit.checkpoint.load import load_model_config
from toolkit.checkpoint.models import has_tokenizer
from toolkit.checkpoint.read import lacks_shards
from toolkit.checkpoint.references import name_siblings
from toolkit.errors import ConfigError, ToolkitError
from toolkit.load_yaml import read_object, read_text
from toolkit.plan.model import Located, fetch_small_files
from toolkit.plan.words import FolderTokenizer
from toolkit.tokenizer_files import has_chat_template

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|eot|>",
    "<|end_of_turn|>",
)  # fmt: skip
"""End-of-sequence tokens of instruct models that end a turn of chat."""

_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>")
"""Tokens that stood between documents when models were first trained."""

_LICENSE_TEXTS: Mapping[str, str] = {
    r"apache license\s+version 2\.0": "apache-2.0",
    r"llama 3\.1 community license": "llama3.1",
    r"llama 3\.2 community license": "llama3.2",
    r"llama 3\.3 community license": "llama3.3",
    r"llama 3 community license": "llama3",
    r"llama 2 community license": "llama2",
    r"gemma terms of use": "gemma",
    r"\bmit license\b": "mit",
    r"bsd 3-clause": "bsd-3-clause",
}
"""How the texts of licenses begin, and what the hub calls these."""


@dataclass
class DraftModel:
    """The model of the new recipe.

    Attributes:
        values: keys of `model`, or of `specialist`.
        reasons: why, by key.
        located: what of it is on this machine.
        end_of_document: token between documents, where the tokenizer's own end does not do.
        has_chat_template: whether conversations can be written for it.
        notes: what is worth knowing and is no setting.
    """

    values: dict[str, object]
    reasons: dict[str, str] = field(default_factory=dict)
    located: Located = field(default_factory=Located)
    end_of_document: tuple[str, str] | None = None
    has_chat_template: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called in descriptions."""
        place = self.values.get("path") or self.values.get("adapter")
        return str(self.values.get("hub") or Path(str(place)).resolve().name)


def draft_model(given: str, option: str = "--model") -> DraftModel:
    """Look at a model: a folder, or a repository of the hub.

    Raises:
        ConfigError: there is no such folder, or it lacks what a model needs.
    """
    folder = Path(given).expanduser()
    # A folder goes before a name on the hub, as it does in transformers.
    if folder.exists():
        draft = _in_folder(given, folder, option)
    elif HUB_NAME.fullmatch(given) and not given.startswith((".", "~")):
        draft = _on_hub(given)
    else:
        raise ConfigError(
            f"{option} {given}: there is no such folder, and a name on the hub is org/name."
            f"{name_siblings(folder)}"
        )
    if draft.located.tokenizer is not None:
        _look_at_tokenizer(draft, draft.located.tokenizer, option)
    return draft


def draft_specialist(given: str, model: DraftModel | None) -> DraftModel:
    """Look at a finished specialist: a folder, a repository of the hub, or an adapter's folder.

    Args:
        given: as on the command line.
        model: the general model, where it is named anew.

    Raises:
        ConfigError: there is no such folder, or it is of another model.
    """
    option = "--specialist"
    folder = Path(given).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _adapter(given, folder, model)
    draft = draft_model(given, option)
    # Documents are cut by the general model's tokens alone.
    draft.end_of_document = None
    general = model.located if model is not None else Located()
    places = (draft.located.weights, general.weights)
    if None not in places and len({place.resolve() for place in places if place}) == 1:
        raise ConfigError(f"{option} {given}: is the general model itself.")
    if (ours := draft.located.shape) is not None and (theirs := general.shape) is not None:
        for measure in ("num_hidden_layers", "hidden_size", "intermediate_size"):
            one, other = getattr(ours, measure), getattr(theirs, measure)
            if one != other:
                raise ConfigError(
                    f"{option} {given}: its {measure} is {one}, that of the general model {other}; "
                    "models that are merged have one architecture."
                )
    return draft


def _adapter(given: str, folder: Path, model: DraftModel | None) -> DraftModel:
    if not any((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        raise ConfigError(f"--specialist {given}: holds no weights of the adapter.")
    try:
        settings = read_object(folder / "adapter_config.json")
    except ToolkitError as error:
        raise ConfigError(f"--specialist {error}") from error
    draft = DraftModel({"adapter": given})
    kind = "DoRA" if settings.get("use_dora") else "LoRA"
    draft.reasons["adapter"] = (
        f"a {kind} of rank {settings.get('r')}, merged into the general model"
    )
    _look_at_license(draft, folder)
    base = settings.get("base_model_name_or_path")
    # Last parts only: what was a folder there may be a hub name here.
    if isinstance(base, str) and model is not None and Path(base).name != Path(model.name).name:
        draft.notes.append(
            f"{given}: says that it was trained on {base}; the general model must be that one"
        )
    return draft


def _in_folder(given: str, folder: Path, option: str) -> DraftModel:
    if not folder.is_dir():
        advice = (
            "convert it by transformers (from_pretrained(folder, gguf_file=…).save_pretrained)"
            if folder.suffix == ".gguf"
            else "give the folder that it lies in"
        )
        raise ConfigError(f"{option} {given}: is a file; {advice}.")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{option} {given}: is an adapter; give the model that it was trained on as --model, "
            "and the adapter as --specialist."
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{option} {given}: holds no config.json; give the folder of a model in the "
            f"transformers layout.{name_siblings(folder)}"
        )
    try:
        load_model_config(folder)
        located = Located.in_folder(folder)
        if not any((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
            raise ConfigError(f"{folder}: holds no weights (.safetensors); fetch its files again.")
        if lacks_shards(folder):
            raise ConfigError(f"{folder}: lacks weights that its index names; fetch them again.")
        if not has_tokenizer(folder):
            raise ConfigError(
                f"{folder}: holds no tokenizer; put the model's tokenizer.json there."
            )
    except ToolkitError as error:
        raise ConfigError(f"{option} {error}") from error
    draft = DraftModel({"path": given}, located=located)
    _look_at_license(draft, folder)
    return draft


def _on_hub(name: str) -> DraftModel:
    draft = DraftModel({"hub": name})
    snapshot = fetch_small_files(name, None)
    if snapshot is None:
        draft.notes.append(
            f"{name}: is no folder here, and the hub does not have it or cannot be reached: "
            "nothing was seen of it, and what follows from a model is a default"
        )
        return draft
    # The cache names snapshots by their commit.
    if re.fullmatch("[0-9a-f]{40}", snapshot.name):
        draft.values["revision"] = snapshot.name
        draft.reasons["revision"] = "the newest there is here: pinned, a run can be repeated"
    has_weights = any(snapshot.glob("*.safetensors")) and not lacks_shards(snapshot)
    in_folder = Located.in_folder(snapshot)
    draft.located = Located(
        in_folder.shape,
        snapshot if has_tokenizer(snapshot) else None,
        snapshot if has_weights else None,
        model_type=in_folder.model_type,
    )
    _look_at_license(draft, snapshot)
    return draft


def _look_at_tokenizer(draft: DraftModel, folder: Path, option: str) -> None:
    draft.has_chat_template = has_chat_template(folder)
    try:
        tokenizer = FolderTokenizer(folder).text
    except ToolkitError as error:
        raise ConfigError(f"{option} {error}") from error
    end = tokenizer.end_of_sequence
    separator = next((token for token in _SEPARATORS if token in tokenizer.vocabulary), None)
    # A token that the vocabulary lacks cannot stand between documents.
    if separator is None or separator == end:
        return
    if end is None:
        draft.end_of_document = separator, "the tokenizer names no end-of-sequence token"
    elif end in _TURN_ENDS:
        draft.end_of_document = separator, f"the tokenizer's own, {end}, ends a turn of chat"


def _look_at_license(draft: DraftModel, folder: Path) -> None:
    """The license that a model card or a license file beside the model names."""
    card = _model_card(folder / "README.md")
    found = card.get("license")
    if isinstance(found, str) and found and found != "other":
        draft.values["license"] = found
        draft.reasons["license"] = "as its model card says"
        return
    for path in sorted(folder.glob("LICENSE*")):
        try:
            # Line breaks of license texts differ from copy to copy.
            text = " ".join(read_text(path, size=1 << 20)[:3000].lower().split())
        except ToolkitError:
            continue
        for pattern, name in _LICENSE_TEXTS.items():
            if re.search(pattern, text):
                draft.values["license"] = name
                draft.reasons["license"] = f"as {path.name} beside it begins"
                return
    named = card.get("license_name")
    said = f" but {named!r}, which is none of the known ones," if isinstance(named, str) else ""
    draft.notes.append(
        f"{draft.name}: no license{said} was found beside it; publishing asks for `license`"
    )


def _model_card(path: Path) -> dict[str, object]:
    """The values at the head of a model card; empty where there is none that can be read."""
    try:
        found = re.match(r"\A---\r?\n(.*?)\r?\n---\r?\n", read_text(path, size=1 << 22), re.DOTALL)
        values = yaml.safe_load(found.group(1)) if found else None
    except (ToolkitError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
