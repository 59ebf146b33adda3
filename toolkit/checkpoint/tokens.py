"""The tokens of a model folder, read from its tokenizer's files without loading the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import MergeError, ToolkitError
from toolkit.library_errors import reading
from toolkit.load_yaml import JsonObject, JsonView, read_object, read_text
from toolkit.stage import hash_file
from toolkit.tokenizer_files import check_tokenizer_file

SENTENCEPIECE = "tokenizer.model"


@dataclass(frozen=True)
class Tokens:
    """What tokens there are.

    Attributes:
        folder: of the tokenizer.
        ids: by token; of a sentencepiece model alone, its hash.
        added: entries of `added_tokens` in tokenizer.json (their ids and flags), by token; those
            too that stand only in tokenizer_config.json or added_tokens.json.
        is_fast: whether there is a tokenizer.json, which can be extended.
        beyond: tokens that were left out, as the model has no rows for their ids.
    """

    folder: Path
    ids: JsonView
    added: Mapping[str, JsonView]
    is_fast: bool
    beyond: tuple[str, ...] = ()

    def within(self, num_rows: int) -> Tokens:
        """The tokens that a model with so many rows can be asked for; as under mergekit, those
        beyond are no tokens of it."""
        if not self.are_listed or all(int(number) < num_rows for number in self.ids.values()):
            return self
        texts_beyond = tuple(text for text, number in self.ids.items() if int(number) >= num_rows)
        return replace(
            self,
            ids={text: number for text, number in self.ids.items() if int(number) < num_rows},
            added={text: item for text, item in self.added.items() if text not in texts_beyond},
            beyond=texts_beyond,
        )

    @property
    def are_listed(self) -> bool:
        """Whether every token and its id is known."""
        return SENTENCEPIECE not in self.ids


def read_tokens(folder: Path) -> Tokens:
    """What tokens a model folder's tokenizer has.

    Raises:
        MergeError: the folder has no tokenizer, or a damaged one.
    """
    tokenizer_path = folder / "tokenizer.json"
    if tokenizer_path.is_file():
        values = load_tokenizer(tokenizer_path)
        listed_tokens = {item["content"]: item for item in values.get("added_tokens") or ()}
        # What tokenizer.json lists itself goes before what stands beside it.
        added = {**_added_beside(folder), **listed_tokens}
        all_ids = _model_ids(values["model"]) | {token: item["id"] for token, item in added.items()}
        return Tokens(folder, all_ids, added, is_fast=True)
    found_ids: JsonObject = {}
    for file_name in ("vocab.json", "added_tokens.json"):
        if (folder / file_name).is_file():
            found_ids |= read_object(folder / file_name, MergeError)
    if (folder / SENTENCEPIECE).is_file():
        found_ids[SENTENCEPIECE] = hash_file(folder / SENTENCEPIECE)
    if not found_ids:
        raise MergeError(
            f"{folder}: has no tokenizer to compare with the others'; put it there, or leave out "
            "tokenizer_source."
        )
    return Tokens(folder, found_ids, {}, is_fast=False)


def _added_beside(folder: Path) -> dict[str, JsonObject]:
    """Added tokens that stand beside tokenizer.json, where transformers looks for them too."""
    added_tokens: dict[str, JsonObject] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        try:
            values = read_object(folder / name)
            listed = values.get("added_tokens_decoder") if name != "added_tokens.json" else None
            if name == "added_tokens.json":
                added_tokens |= {
                    text: {"id": int(i), "content": text} for text, i in values.items()
                }
            for token_id, token_entry in (listed or {}).items():
                added_tokens[token_entry["content"]] = {**token_entry, "id": int(token_id)}
        except (ToolkitError, ValueError, AttributeError, KeyError, TypeError):
            continue  # not there, or in another form: said when the tokenizer is loaded
    return added_tokens


def load_tokenizer(path: Path) -> JsonObject:
    """A tokenizer.json as plain values.

    Raises:
        MergeError: it cannot be read as one.
    """
    check_tokenizer_file(path, MergeError)
    tokenizer_json = read_object(path, MergeError)
    with reading(path, MergeError, "cannot be read as a tokenizer", "download or copy it again"):
        _model_ids(tokenizer_json["model"])
        for item in tokenizer_json.get("added_tokens") or ():
            if not isinstance(item["content"], str) or not isinstance(item["id"], int):
                raise ValueError(f"{item!r:.80} is no token with its id")
    return tokenizer_json


def _model_ids(model: JsonView) -> dict[str, int]:
    listed_tokens = model.get("vocab", {})
    if isinstance(listed_tokens, dict):
        return dict(listed_tokens)
    # Unigram models list pairs of token and score; the place in the list is the id.
    return {token: number for number, (token, *_) in enumerate(listed_tokens)}


def own_template(folder: Path) -> str | None:
    """The chat template that stands in a folder; None where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja", MergeError)
    if not (folder / "tokenizer_config.json").is_file():
        return None
    tokenizer_settings = read_object(folder / "tokenizer_config.json", MergeError)
    template_value = tokenizer_settings.get("chat_template")
    if isinstance(template_value, list):
        named_templates = [item for item in template_value if isinstance(item, dict)]
        template_value = next(
            (i.get("template") for i in named_templates if i.get("name") == "default"), None
        )
    return template_value if isinstance(template_value, str) else None
