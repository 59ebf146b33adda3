"""The merged model's tokenizer and chat template: whose they are, and what is not supported."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

from toolkit.checkpoint.side_files import copy_side_files
from toolkit.errors import ConfigError, MergeError, did_you_mean
from toolkit.manifest import hash_file, write_atomically, write_json
from toolkit.merge.config import MergeConfig
from toolkit.merge.models import Models

Vocabulary = dict[str, Any]
"""Ids by token; of a sentencepiece model alone, its hash."""


def check_tokenizer(config: MergeConfig, models: Models) -> None:
    """Refuse what cannot be done, before anything is merged.

    Raises:
        ConfigError: no template of this name is known, or `base` without a base model.
        MergeError: vocabularies would have to be united.
    """
    _template(config, models)
    source = _source(config)
    if source is None:
        return
    if source == "base" and config.base_model is None:
        raise ConfigError("tokenizer_source: base needs a base_model; name the model itself.")
    if config.tokenizer is not None and config.tokenizer.tokens:
        raise MergeError(
            "tokenizer.tokens: embeddings of single tokens are not supported yet; leave them out "
            "where the models share a vocabulary."
        )
    _check_one_vocabulary(config, models)
    multiple = config.tokenizer.pad_to_multiple_of if config.tokenizer is not None else None
    if multiple is not None:
        _check_padding(config, models, multiple)


def _check_one_vocabulary(config: MergeConfig, models: Models) -> None:
    names = list(dict.fromkeys([_owner(config), *config.model_names()]))
    first = vocabulary(models.checkpoint(names[0]).folder)
    for name in names[1:]:
        other = vocabulary(models.checkpoint(name).folder)
        if other != first:
            token = next(iter(sorted(set(first.items()) ^ set(other.items()))))[0]
            raise MergeError(
                f"tokenizer_source: {names[0]} has {len(first)} tokens, {name} {len(other)}, and "
                f"they differ (first at {token!r}); uniting vocabularies is not supported yet. "
                "Merge models that share a vocabulary."
            )


def _check_padding(config: MergeConfig, models: Models, multiple: int) -> None:
    rows = models.config(_owner(config)).get("vocab_size")
    if not isinstance(rows, int) or rows % multiple:
        raise MergeError(
            f"tokenizer.pad_to_multiple_of: padding {rows} rows to a multiple of {multiple} is not "
            "supported yet; leave it out."
        )


def write_tokenizer(config: MergeConfig, models: Models, target: Path) -> None:
    """Copy tokenizer, generation settings and chat template into the merged folder."""
    copy_side_files(models.checkpoint(_owner(config)).folder, target)
    template = _template(config, models)
    if template is None:
        return
    with write_atomically(target / "chat_template.jinja") as file:
        file.write(template)
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text(encoding="utf-8"))
        if values.pop("chat_template", None) is not None:  # one place for it, not two
            write_json(settings, values)


def vocabulary(folder: Path) -> Vocabulary:
    """What tokens a model folder's tokenizer has; read without loading the tokenizer.

    Raises:
        MergeError: the folder has none.
    """
    if (folder / "tokenizer.json").is_file():
        return _fast_vocabulary(folder / "tokenizer.json")
    found: Vocabulary = {}
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
    if (folder / "tokenizer.model").is_file():
        found["tokenizer.model"] = hash_file(folder / "tokenizer.model")
    if not found:
        raise MergeError(
            f"{folder}: has no tokenizer to compare with the others'; put it there, or leave out "
            "tokenizer_source."
        )
    return found


def _fast_vocabulary(path: Path) -> Vocabulary:
    values = json.loads(path.read_text(encoding="utf-8"))
    listed = values.get("model", {}).get("vocab", {})
    found: Vocabulary = (
        dict(listed)
        if isinstance(listed, dict)
        else {token: number for number, (token, *_) in enumerate(listed)}
    )
    return found | {item["content"]: item["id"] for item in values.get("added_tokens", ())}


def _template(config: MergeConfig, models: Models) -> str | None:
    """The template that the configuration asks for; None leaves the tokenizer's own."""
    wanted = config.chat_template
    if not wanted or "{" in wanted:
        return wanted or None
    if wanted == "auto":
        found = (_own_template(models.checkpoint(n).folder) for n in config.model_names())
        common = Counter(text.strip() for text in found if text).most_common(1)
        return common[0][0] if common else None
    known = _named_templates()
    if wanted not in known:
        raise ConfigError(
            f"chat_template: {wanted!r} is neither auto, nor a template (Jinja), nor the name of "
            f"one{did_you_mean(wanted, known)} Known: {', '.join(sorted(known)) or 'none'}."
        )
    return known[wanted].read_text(encoding="utf-8")


def _own_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _named_templates() -> dict[str, Path]:
    """The templates that mergekit brings along, by name; mergekit itself is not loaded."""
    package = importlib.util.find_spec("mergekit")
    if package is None or package.origin is None:
        return {}
    folder = Path(package.origin).parent / "_data" / "chat_templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja"))}


def _owner(config: MergeConfig) -> str:
    """The model whose tokenizer the merged model gets."""
    source = _source(config)
    return config.leader() if source in (None, "base", "union") else str(source)


def _source(config: MergeConfig) -> str | None:
    return config.tokenizer.source if config.tokenizer is not None else config.tokenizer_source
