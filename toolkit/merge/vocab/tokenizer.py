"""The merged model's tokenizer files and chat template: whose they are, and their writing."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.side_files import copy_side_files, copy_tokenizer_files
from toolkit.checkpoint.tokens import own_template, read_tokens
from toolkit.errors import ConfigError, MergeError, ToolkitError, did_you_mean, note, sentence_end
from toolkit.library_errors import missing_library
from toolkit.load_yaml import JsonObject, JsonView, read_object
from toolkit.merge.vocab.special_ids import drop_ids_beyond
from toolkit.stage import write_atomically, write_json
from toolkit.tokenizer_files import load_tokenizer

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
    num_kept: int | None = None,
) -> None:
    """Write tokenizer, chat template and what else stands beside weights into the merged folder.

    Args:
        config: whose they are.
        models: where those stand.
        target: the merged folder.
        united: tokenizer.json with tokens added or left out; None where the tokenizer is copied as
            it is.
        num_kept: ids from 0 on that still mean the owner's tokens; None where all do.

    Raises:
        MergeError: the united tokenizer does not load, or has other tokens then.
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
        _check_united(models.token_folder(owner_name), target)
    generation_path = target / "generation_config.json"
    if num_kept is not None and generation_path.is_file():
        values = read_object(generation_path, MergeError)
        if drop_ids_beyond(values, num_kept):
            write_json(generation_path, values)
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
    added_by_text = {token["content"]: token for token in united["added_tokens"]}
    for file_name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (target / file_name).is_file():
            continue
        values = read_object(target / file_name, MergeError)
        # transformers reads this table before tokenizer.json: a token missing from it loses its
        # flags, and one that was left out would come back.
        if isinstance(added_by_id := values.get("added_tokens_decoder"), dict):
            texts_by_id = {str(token["id"]): text for text, token in added_by_text.items()}
            for token_id in [i for i, t in added_by_id.items() if _text(t) != texts_by_id.get(i)]:
                del added_by_id[token_id]
            for token in added_by_text.values():
                flags = {key: value for key, value in token.items() if key != "id"}
                added_by_id.setdefault(str(token["id"]), flags)
            write_json(target / file_name, values)
    known_texts = read_tokens(target).ids
    for file_name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (target / file_name).is_file():
            values = read_object(target / file_name, MergeError)
            if dropped := _drop_unknown_roles(values, known_texts):
                write_json(target / file_name, values)
                note(f"{file_name}: names no more what is no token: {', '.join(dropped)}")


def _text(token: object) -> object:
    """The text of a token that stands by itself or with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _drop_unknown_roles(values: JsonObject, known: JsonView) -> list[str]:
    """Take special tokens that are no tokens out of a tokenizer's settings, and give their keys:
    loading would add them again, with ids beyond the model's rows."""
    dropped_keys: list[str] = []
    for key, value in values.items():
        if key.endswith("_token") and isinstance(text := _text(value), str) and text not in known:
            values[key] = None
            dropped_keys.append(key)
        elif key in ("additional_special_tokens", "extra_special_tokens") and value:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            kept = {name: token for name, token in items if _text(token) in known}
            if len(kept) < len(value):
                values[key] = kept if isinstance(value, dict) else list(kept.values())
                dropped_keys.append(key)
    return dropped_keys


def _check_united(owner_folder: Path, target: Path) -> None:
    """Load what was written, and look for tokens that were moved or came in, without a row."""
    try:
        loaded_ids = load_tokenizer(target).get_vocab()
    except ToolkitError as error:
        try:
            load_tokenizer(owner_folder)
        except ToolkitError:
            return  # a tokenizer that does not load by itself, as of code of its own
        raise MergeError(
            f"{owner_folder}: its tokenizer does not load any more with other tokens ({error}); "
            "take the tokenizer of another model."
        ) from error
    if wrong := sorted(loaded_ids.items() ^ read_tokens(target).ids.items()):
        raise MergeError(
            f"{owner_folder}: its tokenizer cannot be extended or cut, as {wrong[0][0]!r} (id "
            f"{wrong[0][1]}) is lost or added when it is loaded again; take the tokenizer of "
            "another model."
        )


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
