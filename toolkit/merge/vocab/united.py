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
    flags_by_text = _flags(owner, tokens) if carries_flags else {}
    owner_tokens = tokens[owner]
    if not new and not flags_by_text and not owner_tokens.beyond:
        return None
    if not owner_tokens.is_fast:
        raise MergeError(
            f"{owner_tokens.folder}: has no tokenizer.json, so no tokens can be added to its "
            "tokenizer; load it with transformers and save it again, or take the tokenizer of "
            "another model."
        )
    tokenizer_json = copy.deepcopy(load_tokenizer(owner_tokens.folder / "tokenizer.json"))
    _drop(tokenizer_json, owner_tokens.beyond)
    added: list[JsonObject] = [_flagged(item) for item in owner_tokens.added.values()]
    for token in new:
        if not token.is_learned:
            donor = tokens[token.donor].added if token.donor is not None else {}
            # Later keys win: the donor's flags over plain ones, the united id over the donor's.
            added.append({**_PLAIN, **donor.get(token.text, {}), **_named(token.text, token.id)})
    added += [{**entry, **_named(text, ids[text])} for text, entry in flags_by_text.items()]
    tokenizer_json["added_tokens"] = sorted(added, key=lambda item: int(item["id"]))
    if learned_tokens := [token for token in new if token.is_learned]:
        _learn(tokenizer_json, owner_tokens, tokens, learned_tokens, ids)
    _check(tokenizer_json, owner_tokens, ids)
    return tokenizer_json


def _flagged(item: JsonView) -> JsonObject:
    """An added token with every flag; beside tokenizer.json some have none."""
    return {**item, **{flag: value for flag, value in _PLAIN.items() if flag not in item}}


def _drop(values: JsonObject, beyond: Sequence[str]) -> None:
    """Take tokens without rows out of a tokenizer; they are the last ones."""
    model, lost_texts = values["model"], set(beyond)
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {text: n for text, n in model["vocab"].items() if text not in lost_texts}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [item for item in model["vocab"] if item[0] not in lost_texts]
    # A merge of a token that is gone, or into one, would be refused by the tokenizers library.
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        merge_pairs = ((item, *_pair(item)) for item in model["merges"])
        model["merges"] = [
            item
            for item, left, right in merge_pairs
            if not {left, right, left + right.removeprefix(prefix)} & lost_texts
        ]


def _named(text: str, number: int) -> JsonObject:
    return {"id": number, "content": text}


def _flags(owner: str, tokens: Mapping[str, Tokens]) -> dict[str, JsonView]:
    """Tokens that the owner has, but another model alone as an added one."""
    flags_by_text: dict[str, JsonView] = {}
    own = tokens[owner]
    for other in tokens.values():
        for text, entry in other.added.items():
            if text in own.ids and text not in own.added and own.is_fast:
                flags_by_text.setdefault(text, entry)
    return flags_by_text


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
    for new_token in learned:
        by_donor.setdefault(str(new_token.donor), []).append(new_token)
    learned_scores: dict[str, float] = {}
    for donor, new_tokens in by_donor.items():
        donor_json = load_tokenizer(tokens[donor].folder / "tokenizer.json")
        if _family(donor_json) != _family(values) or model["type"] not in _LEARNED:
            raise MergeError(
                f"tokenizer_source: union: {tokens[donor].folder} has {len(new_tokens)} learned "
                f"tokens that {own.folder} lacks (such as {new_tokens[0].text!r}), but the "
                f"tokenizers are of different kinds ({_family(donor_json)}, {_family(values)}) and "
                "cannot be united; take one of them (tokenizer_source: base, or the model)."
            )
        wanted_texts = {token.text for token in new_tokens}
        if model["type"] == "BPE":
            _add_merges(model, donor_json["model"], wanted_texts)
        elif model["type"] == "Unigram":
            scored_texts = donor_json["model"]["vocab"]
            learned_scores |= {text: score for text, score in scored_texts if text in wanted_texts}
    if model["type"] == "Unigram":
        model["vocab"] = _scored(model["vocab"], learned_scores, own, ids)
        return
    # Every id is said here: the tokenizers library gives added tokens that the model does not know
    # the ids that follow the model's own.
    model["vocab"] |= {token["content"]: token["id"] for token in values["added_tokens"]}
    model["vocab"] |= {token.text: token.id for token in learned}


def _add_merges(model: JsonObject, other: JsonView, wanted: set[str]) -> None:
    prefix = model.get("continuing_subword_prefix") or ""
    are_pairs = not model["merges"] or not isinstance(model["merges"][0], str)
    known_pairs = {_pair(item) for item in model["merges"]}
    for item in other["merges"]:
        left, right = pair = _pair(item)
        # Only merges that make a new token: the owner's tokens stay as the owner makes them.
        if left + right.removeprefix(prefix) in wanted and pair not in known_pairs:
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
    least_score = min((float(score) for _, score in listed), default=0.0)
    text_by_id = {token_id: text for text, token_id in ids.items()}
    later_ids = range(len(listed), max(text_by_id) + 1)
    if missing_ids := [token_id for token_id in later_ids if token_id not in text_by_id]:
        raise MergeError(
            f"{own.folder}: no token has the id {missing_ids[0]}, and a Unigram tokenizer with a "
            "gap cannot be extended; take one tokenizer (tokenizer_source: base, or a model)."
        )
    later_texts = (text_by_id[token_id] for token_id in later_ids)
    return [*map(list, listed), *([text, scores.get(text, least_score)] for text in later_texts)]


def _family(values: JsonView) -> str:
    """How a tokenizer's learned tokens are written; those of one family mean the same text."""
    model = values["model"]
    kind = str(model.get("type"))
    if kind not in _LEARNED:
        return f"unknown ({kind})"
    steps_json = json.dumps([values.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    spelling = "plain"
    if "ByteLevel" in steps_json:
        spelling = "byte-level"
    elif "\\u2581" in steps_json or "Metaspace" in steps_json:
        spelling = "with \u2581"
    marks = [model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    byte_note = ", falling back to bytes" if model.get("byte_fallback") else ""
    return " ".join(filter(None, [spelling, kind, *marks])) + byte_note


def _check(values: JsonView, own: Tokens, ids: Mapping[str, int]) -> None:
    """Load the tokenizer, and compare what the library makes of it."""
    from tokenizers import Tokenizer

    try:
        loaded_ids = Tokenizer.from_str(json.dumps(values)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing narrower
        raise MergeError(
            f"{own.folder}: its tokenizer cannot be extended ({error}); take the tokenizer of "
            "another model."
        ) from error
    # Both ways: tokens that were lost or moved, and those that the library adds by itself.
    wrong_ids = sorted(set(loaded_ids.items()) ^ set(ids.items()))
    if wrong_ids:
        raise MergeError(
            f"{own.folder}: its tokenizer cannot be extended, as the token {wrong_ids[0][0]!r} "
            f"would change its id {wrong_ids[0][1]}; take one tokenizer (tokenizer_source: base, "
            "or a model)."
        )
