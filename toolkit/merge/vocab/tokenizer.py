"""The merged model's tokenizer files and chat template: whose they are, and their writing."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.side_files import copy_side_files, copy_tokenizer_files
from toolkit.checkpoint.tokens import own_template
from toolkit.errors import ConfigError, MergeError, did_you_mean, note, sentence_end
from toolkit.library_errors import missing_library
from toolkit.load_yaml import JsonView, read_object
from toolkit.stage import write_atomically, write_json

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig

_TEMPLATE = "chat_template.jinja"
_SLOW_FILES = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)
"""What tokenizer.json says in older formats."""


def check_tokenizer(config: MergeConfig, models: Models) -> None:
    """Refuse a vocabulary or a template that is not known, before anything is merged.

    Raises:
        ConfigError: no template of this name is known, or what is no model is nearly a word for
            a vocabulary.
    """
    source = tokenizer_source(config)
    words = ["base", "union", *config.model_names()]
    if source is not None and source not in words and not Path(source).is_dir():
        key = "tokenizer_source" if config.tokenizer_source is not None else "tokenizer.source"
        if "/" not in source and (near := did_you_mean(source, words)):
            raise ConfigError(f"{key}: {source!r} is neither base, union nor a model{near}")
    _template(config, models)


def write_tokenizer(
    config: MergeConfig,
    models: Models,
    target: Path,
    united: JsonView | None = None,
) -> None:
    """Write tokenizer, chat template and what else stands beside weights into the merged folder.

    Args:
        config: whose they are.
        models: where those stand.
        target: the merged folder.
        united: tokenizer.json with tokens added; None where the tokenizer is copied as it is.
    """
    leader, owner = config.leader(), tokenizer_owner(config)
    beside = models.checkpoint(leader).folder
    if left := copy_side_files(beside, target, with_tokenizer=owner == leader):
        note(f"left in {beside}, as it is of other weights: {', '.join(left)}")
    for folder in models.tokenizer_folders(owner):
        if folder != beside:
            copy_tokenizer_files(folder, target)
            if own_template(folder) and not (folder / _TEMPLATE).is_file():
                (target / _TEMPLATE).unlink(missing_ok=True)  # it would go before the other
    if united is not None:
        _write_united(united, target)
    template = _template(config, models)
    if template is None:
        return
    with write_atomically(target / _TEMPLATE) as file:
        file.write(template)
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        values = read_object(settings, MergeError)
        if values.pop("chat_template", None) is not None:  # one place for it, not two
            write_json(settings, values)


def _write_united(united: JsonView, target: Path) -> None:
    with write_atomically(target / "tokenizer.json") as file:
        json.dump(united, file, ensure_ascii=False)
    for name in _SLOW_FILES:  # they would say the vocabulary as it was before
        (target / name).unlink(missing_ok=True)
    settings = target / "tokenizer_config.json"
    if not settings.is_file():
        return
    values = read_object(settings, MergeError)
    listed = values.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for item in united["added_tokens"]:
            flags = {key: value for key, value in item.items() if key != "id"}
            listed.setdefault(str(item["id"]), flags)
        write_json(settings, values)


def _template(config: MergeConfig, models: Models) -> str | None:
    """The template that the configuration asks for; None leaves the tokenizer's own."""
    wanted = config.chat_template
    if not wanted or "{" in wanted:
        return wanted or None
    if wanted == "auto":
        found = (_template_of(name, models) for name in config.model_names())
        common = Counter(text.strip() for text in found if text).most_common(1)
        return common[0][0] if common else None
    known = _named_templates()
    missing = None if wanted in known else missing_library("mergekit")
    if missing is not None:
        raise ConfigError(f"chat_template: a template by name, {wanted!r}, {missing}.")
    if wanted not in known:
        raise ConfigError(
            f"chat_template: {wanted!r} is neither auto, nor a template (Jinja), nor the name of "
            f"one{sentence_end(wanted, known)} Known: {', '.join(sorted(known)) or 'none'}."
        )
    return known[wanted].read_text(encoding="utf-8")


def _template_of(name: str, models: Models) -> str | None:
    """A model's template: its adapter's, where that has one."""
    found = map(own_template, reversed(models.tokenizer_folders(name)))
    return next((template for template in found if template), None)


def _named_templates() -> dict[str, Path]:
    """The templates that mergekit brings along, by name; mergekit itself is not loaded."""
    package = importlib.util.find_spec("mergekit")
    if package is None or package.origin is None:
        return {}
    folder = Path(package.origin).parent / "_data" / "chat_templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja"))}


def tokenizer_owner(config: MergeConfig) -> str:
    """The model whose tokenizer the merged model gets, with or without tokens added."""
    source = tokenizer_source(config)
    return config.leader() if source in (None, "base", "union") else str(source)


def tokenizer_source(config: MergeConfig) -> str | None:
    """`base`, `union` or a model; None where the configuration does not say."""
    return config.tokenizer.source if config.tokenizer is not None else config.tokenizer_source
