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
    known_words = ["base", "union", *config.model_names()]
    if source is not None and source not in known_words and not Path(source).is_dir():
        key = "tokenizer_source" if config.tokenizer_source is not None else "tokenizer.source"
        if "/" not in source and (likely_word := did_you_mean(source, known_words)):
            raise ConfigError(f"{key}: {source!r} is neither base, union nor a model{likely_word}")
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
    leader_name, owner_name = config.leader(), tokenizer_owner(config)
    leader_folder = models.checkpoint(leader_name).folder
    if left := copy_side_files(leader_folder, target, with_tokenizer=owner_name == leader_name):
        note(f"left in {leader_folder}, as it is of other weights: {', '.join(left)}")
    # An adapter's folder comes last, so that its files replace the model's.
    for tokenizer_folder in models.tokenizer_folders(owner_name):
        if tokenizer_folder != leader_folder:
            copy_tokenizer_files(tokenizer_folder, target)
            if own_template(tokenizer_folder) and not (tokenizer_folder / _TEMPLATE).is_file():
                (target / _TEMPLATE).unlink(missing_ok=True)  # it would go before the other
    if united is not None:
        _write_united(united, target)
    chat_template = _template(config, models)
    if chat_template is None:
        return
    with write_atomically(target / _TEMPLATE) as file:
        file.write(chat_template)
    settings_path = target / "tokenizer_config.json"
    if settings_path.is_file():
        values = read_object(settings_path, MergeError)
        if values.pop("chat_template", None) is not None:  # one place for it, not two
            write_json(settings_path, values)


def _write_united(united: JsonView, target: Path) -> None:
    with write_atomically(target / "tokenizer.json") as file:
        json.dump(united, file, ensure_ascii=False)
    for file_name in _SLOW_FILES:  # they would say the vocabulary as it was before
        (target / file_name).unlink(missing_ok=True)
    settings_path = target / "tokenizer_config.json"
    if not settings_path.is_file():
        return
    values = read_object(settings_path, MergeError)
    # transformers reads this table before tokenizer.json; a token missing from it loses its flags.
    added_by_id = values.get("added_tokens_decoder")
    if isinstance(added_by_id, dict):
        for added_token in united["added_tokens"]:
            flags = {key: value for key, value in added_token.items() if key != "id"}
            added_by_id.setdefault(str(added_token["id"]), flags)
        write_json(settings_path, values)


def _template(config: MergeConfig, models: Models) -> str | None:
    """The template that the configuration asks for; None leaves the tokenizer's own."""
    wanted_template = config.chat_template
    if not wanted_template or "{" in wanted_template:
        return wanted_template or None
    if wanted_template == "auto":
        # The one that most models have, whitespace at its ends aside; of equals the first.
        model_templates = (_template_of(name, models) for name in config.model_names())
        template_counts = Counter(text.strip() for text in model_templates if text)
        return template_counts.most_common(1)[0][0] if template_counts else None
    named_templates = _named_templates()
    missing = None if wanted_template in named_templates else missing_library("mergekit")
    if missing is not None:
        raise ConfigError(f"chat_template: a template by name, {wanted_template!r}, {missing}.")
    if wanted_template not in named_templates:
        raise ConfigError(
            f"chat_template: {wanted_template!r} is neither auto, nor a template (Jinja), nor the "
            f"name of one{sentence_end(wanted_template, named_templates)} "
            f"Known: {', '.join(sorted(named_templates)) or 'none'}."
        )
    return named_templates[wanted_template].read_text(encoding="utf-8")


def _template_of(name: str, models: Models) -> str | None:
    """A model's template: its adapter's, where that has one."""
    # An adapter's folder comes last and goes first: what was tuned with a template needs that one.
    own_templates = map(own_template, reversed(models.tokenizer_folders(name)))
    return next(filter(None, own_templates), None)


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
