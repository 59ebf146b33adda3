"""One tokenizer for a united vocabulary: the owner's tokenizer.json with tokens of others added.

Added tokens (special ones, and those given by hand) stay what they are: found in the text before
anything else, with their flags. Tokens that another tokenizer has learned join the tokenizer's own
model: of a BPE with the merges that build them, ranked after all of the owner's, so that text is
cut as the owner cuts it and then joined further; of a Unigram with their scores. mergekit makes
added tokens of them, which are then found within words (`the` in `other`), and never where they
begin with a space.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.checkpoint.tokens import Tokens, load_tokenizer
from toolkit.errors import MergeError
from toolkit.load_yaml import JsonObject, JsonView

_PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
_LEARNED = ("BPE", "Unigram", "WordPiece", "WordLevel")


@dataclass(frozen=True)
class NewToken:
    """A token that the owner's tokenizer lacks.

    Attributes:
        text: the token.
        id: in the united vocabulary.
        donor: a model that has it; None where none has, and the configuration invents it.
        is_learned: whether the donor's tokenizer has learned it, and it is to join the model.
    """

    text: str
    id: int
    donor: str | None
    is_learned: bool


def unite_tokenizers(
    owner: str,
    tokens: Mapping[str, Tokens],
    ids: Mapping[str, int],
    new: Sequence[NewToken],
    *,
    carries_flags: bool,
) -> JsonObject | None:
    """The tokenizer.json of a united vocabulary.

    Args:
        owner: the model whose tokenizer is extended.
        tokens: of the owner, and of every model that gives tokens or flags, by name.
        ids: the united vocabulary.
        new: what the owner lacks, by rising id.
        carries_flags: whether a token that is an added one of another model alone becomes one.

    Returns:
        None where the owner's tokenizer serves as it is.

    Raises:
        MergeError: the tokenizers are of kinds that cannot be united.
    """
    flags = _flags(owner, tokens) if carries_flags else {}
    own = tokens[owner]
    if not new and not flags and not own.beyond:
        return None
    if not own.is_fast:
        raise MergeError(
            f"{own.folder}: has no tokenizer.json, so no tokens can be added to its tokenizer; "
            "load it with transformers and save it again, or take the tokenizer of another model."
        )
    values = copy.deepcopy(load_tokenizer(own.folder / "tokenizer.json"))
    _drop(values, own.beyond)
    added: list[JsonObject] = [_flagged(item) for item in own.added.values()]
    for token in new:
        if not token.is_learned:
            donor = tokens[token.donor].added if token.donor is not None else {}
            added.append({**_PLAIN, **donor.get(token.text, {}), **_named(token.text, token.id)})
    added += [{**entry, **_named(token, ids[token])} for token, entry in flags.items()]
    values["added_tokens"] = sorted(added, key=lambda item: int(item["id"]))
    if learned := [token for token in new if token.is_learned]:
        _learn(values, own, tokens, learned, ids)
    _check(values, own, ids)
    return values


def _flagged(item: JsonView) -> JsonObject:
    """An added token with every flag; beside tokenizer.json some have none."""
    return {**item, **{flag: value for flag, value in _PLAIN.items() if flag not in item}}


def _drop(values: JsonObject, beyond: Sequence[str]) -> None:
    """Take tokens without rows out of a tokenizer; they are the last ones."""
    model, lost = values["model"], set(beyond)
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {text: n for text, n in model["vocab"].items() if text not in lost}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [item for item in model["vocab"] if item[0] not in lost]
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = ((item, *_pair(item)) for item in model["merges"])
        model["merges"] = [
            item
            for item, left, right in pairs
            if not {left, right, left + right.removeprefix(prefix)} & lost
        ]


def _named(text: str, number: int) -> JsonObject:
    return {"id": number, "content": text}


def _flags(owner: str, tokens: Mapping[str, Tokens]) -> dict[str, JsonView]:
    """Tokens that the owner has, but another model alone as an added one."""
    found: dict[str, JsonView] = {}
    own = tokens[owner]
    for other in tokens.values():
        for text, entry in other.added.items():
            if text in own.ids and text not in own.added and own.is_fast:
                found.setdefault(text, entry)
    return found


def _learn(
    values: JsonObject,
    own: Tokens,
    tokens: Mapping[str, Tokens],
    learned: Sequence[NewToken],
    ids: Mapping[str, int],
) -> None:
    """Put tokens into the tokenizer's model, with what makes them found in a text."""
    model = values["model"]
    by_donor: dict[str, list[NewToken]] = {}
    for token in learned:
        by_donor.setdefault(str(token.donor), []).append(token)
    scores: dict[str, float] = {}
    for donor, group in by_donor.items():
        other = load_tokenizer(tokens[donor].folder / "tokenizer.json")
        if _family(other) != _family(values) or model["type"] not in _LEARNED:
            raise MergeError(
                f"tokenizer_source: union: {tokens[donor].folder} has {len(group)} learned tokens "
                f"that {own.folder} lacks (such as {group[0].text!r}), but the tokenizers are of "
                f"different kinds ({_family(other)}, {_family(values)}) and cannot be united; take "
                "one of them (tokenizer_source: base, or the model)."
            )
        wanted = {token.text for token in group}
        if model["type"] == "BPE":
            _add_merges(model, other["model"], wanted)
        elif model["type"] == "Unigram":
            scores |= {text: score for text, score in other["model"]["vocab"] if text in wanted}
    if model["type"] == "Unigram":
        model["vocab"] = _scored(model["vocab"], scores, own, ids)
        return
    # Every id is said here: the tokenizers library gives added tokens that the model does not know
    # the ids that follow the model's own.
    model["vocab"] |= {token["content"]: token["id"] for token in values["added_tokens"]}
    model["vocab"] |= {token.text: token.id for token in learned}


def _add_merges(model: JsonObject, other: JsonView, wanted: set[str]) -> None:
    prefix = model.get("continuing_subword_prefix") or ""
    are_pairs = not model["merges"] or not isinstance(model["merges"][0], str)
    known = {_pair(item) for item in model["merges"]}
    for item in other["merges"]:
        left, right = pair = _pair(item)
        # Only merges that make a new token: the owner's tokens stay as the owner makes them.
        if left + right.removeprefix(prefix) in wanted and pair not in known:
            model["merges"].append([left, right] if are_pairs else f"{left} {right}")


def _pair(item: str | Sequence[str]) -> tuple[str, str]:
    left, right = item.split(" ") if isinstance(item, str) else item
    return left, right


def _scored(
    listed: Sequence[Sequence[Any]],
    scores: Mapping[str, float],
    own: Tokens,
    ids: Mapping[str, int],
) -> list[list[Any]]:
    """A Unigram's list, whose places are ids: the added tokens stand in it too, as the least."""
    least = min((float(score) for _, score in listed), default=0.0)
    texts = {number: text for text, number in ids.items()}
    gaps = [number for number in range(len(listed), max(texts) + 1) if number not in texts]
    if gaps:
        raise MergeError(
            f"{own.folder}: no token has the id {gaps[0]}, and a Unigram tokenizer with a gap "
            "cannot be extended; take one tokenizer (tokenizer_source: base, or a model)."
        )
    rest = (texts[number] for number in range(len(listed), max(texts) + 1))
    return [*map(list, listed), *([text, scores.get(text, least)] for text in rest)]


def _family(values: JsonView) -> str:
    """How a tokenizer's learned tokens are written; those of one family mean the same text."""
    model = values["model"]
    kind = str(model.get("type"))
    if kind not in _LEARNED:
        return f"unknown ({kind})"
    steps = json.dumps([values.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    spelling = "plain"
    if "ByteLevel" in steps:
        spelling = "byte-level"
    elif "\\u2581" in steps or "Metaspace" in steps:
        spelling = "with \u2581"
    marks = [model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    bytes_too = ", falling back to bytes" if model.get("byte_fallback") else ""
    return " ".join(filter(None, [spelling, kind, *marks])) + bytes_too


def _check(values: JsonView, own: Tokens, ids: Mapping[str, int]) -> None:
    """Load the tokenizer, and compare what the library makes of it."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(json.dumps(values)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing narrower
        raise MergeError(
            f"{own.folder}: its tokenizer cannot be extended ({error}); take the tokenizer of "
            "another model."
        ) from error
    wrong = sorted(set(found.items()) ^ set(ids.items()))
    if wrong:
        raise MergeError(
            f"{own.folder}: its tokenizer cannot be extended, as the token {wrong[0][0]!r} would "
            f"change its id {wrong[0][1]}; take one tokenizer (tokenizer_source: base, or a model)."
        )
