"""Tokenizers as GGUF files hold them: byte-level BPE as `gpt2`, SentencePiece BPE as `llama`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.load_yaml import read_object
from toolkit.tokenizer_files import load_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")
_SPLITS = ("llama-bpe", "qwen2", "gpt-4o", "tekken")
"""Names of llama.cpp for pre-tokenizers that are one regular expression; transformers knows them
under the same names."""


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer in GGUF's terms.

    Attributes:
        model: `gpt2` or `llama`.
        pre: llama.cpp's name for how text is cut before merges.
        tokens: by id.
        types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        scores: by id, higher merges first; for `llama` only.
        merges: pairs in their order, with a space between.
        special: ids by role: bos, eos, unk, pad, eot.
        add_bos, add_eos: what encoding puts around a text.
        add_space_prefix: whether a space is put before a text.
        chat_template: Jinja.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None


def read_vocabulary(folder: Path, size: int) -> GgufVocabulary:
    """Read tokenizer.json and its settings.

    Args:
        folder: of the model.
        size: rows of its embedding; ids without a token become unused ones.

    Raises:
        CheckpointError: there is no tokenizer.json, or GGUF cannot say what it does.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no tokenizer.json; save the tokenizer as a fast one.")
    tokenizer_json = read_object(path, CheckpointError)
    model_json = tokenizer_json["model"]
    if model_json.get("type") != "BPE":
        raise CheckpointError(
            f"{path}: is a {model_json.get('type')} tokenizer; GGUF files are written with BPE "
            "only."
        )
    tokenizer: Any = load_tokenizer(folder)
    # Some classes of transformers cut text in their own way, whatever the file says; what the model
    # was given is what it is asked with.
    steps_json = json.loads(tokenizer.backend_tokenizer.to_str())
    # tokenizers wrote merges as "a b" once, and writes pairs today.
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model_json["merges"]]
    # SentencePiece models are told by their spare tokens for single bytes (`<0x0A>`), which
    # byte-level models need none of.
    is_pieces = bool(model_json.get("byte_fallback"))
    text_by_id = {int(number): token for token, number in model_json["vocab"].items()}
    added = {int(entry["id"]): entry for entry in tokenizer_json.get("added_tokens", ())}
    text_by_id |= {number: entry["content"] for number, entry in added.items()}
    if text_by_id and max(text_by_id) >= size:
        raise CheckpointError(
            f"{path}: has token {max(text_by_id)}, but the model has {size} rows."
        )
    # llama.cpp needs a token for every row; its own converter fills gaps with the same names.
    all_tokens = [text_by_id.get(number, f"[PAD{number}]") for number in range(size)]
    token_types = [_type(number, text_by_id, added, is_pieces, tokenizer) for number in range(size)]
    # What surrounds nothing surrounds every text.
    empty_ids: list[int] = tokenizer("")["input_ids"]
    add_bos = bool(empty_ids) and empty_ids[0] == tokenizer.bos_token_id
    add_eos = len(empty_ids) > add_bos and empty_ids[-1] == tokenizer.eos_token_id
    return GgufVocabulary(
        model="llama" if is_pieces else "gpt2",
        pre="default" if is_pieces else _pre(steps_json, path),
        tokens=all_tokens,
        types=token_types,
        scores=_scores(all_tokens, token_types, merges) if is_pieces else None,
        merges=[" ".join(pair) for pair in merges],
        special=_special(tokenizer, folder, text_by_id),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=is_pieces and _has_space_prefix(steps_json),
        chat_template=_template(tokenizer),
    )


def _type(
    number: int, ids: Mapping[int, str], added: Mapping[int, Any], is_pieces: bool, tokenizer: Any
) -> int:
    if number not in ids:
        return _UNUSED
    if is_pieces and _BYTE_TOKEN.match(ids[number]):
        return _BYTE
    if is_pieces and number == tokenizer.unk_token_id:
        return _UNKNOWN
    if number in added:
        return _CONTROL if added[number].get("special") else _USER
    return _NORMAL


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """SentencePiece merges what scores highest: minus the first rank that makes a token."""
    merge_ranks: dict[str, int] = {}
    for merge_rank, (left, right) in enumerate(merges):
        merge_ranks.setdefault(left + right, merge_rank)
    last_rank = len(merges)
    return [
        float(-merge_ranks.get(token, last_rank)) if kind in (_NORMAL, _USER) else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _pre(values: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for a byte-level pre-tokenizer.

    Raises:
        CheckpointError: it is none that is known by name; under a wrong one, text would be cut
            otherwise, and nothing would say so.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre_tokenizer = values.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    kinds = [step.get("type") for step in steps]
    adds_prefix = any(step.get("add_prefix_space") for step in steps)
    # llama.cpp composes no characters; nearly all text is composed (NFC) already.
    is_plain = (values.get("normalizer") or {"type": "NFC"})["type"] == "NFC"
    if is_plain and not adds_prefix and kinds and kinds[-1] == "ByteLevel":
        uses_regex = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and uses_regex:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and uses_regex and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not uses_regex:
            split_pattern = steps[0].get("pattern", {}).get("Regex")
            names = [n for n in _SPLITS if GGUF_PRE_TOKENIZER_SPLITS.get(n) == split_pattern]
            # Under this name llama.cpp takes a whole word of the vocabulary before any merge.
            if "llama-bpe" in names and not values["model"].get("ignore_merges"):
                return "dbrx"
            if names:
                return names[0]
    shown_kinds = " then ".join(str(kind) for kind in kinds) or "none"
    raise CheckpointError(
        f"{path}: its pre-tokenizer ({shown_kinds}) has no name in GGUF that is known here (gpt-2, "
        f"smollm, {', '.join(_SPLITS)}); publish the model as safetensors, or use llama.cpp's "
        "converter."
    )


def _special(tokenizer: Any, folder: Path, text_by_id: Mapping[int, str]) -> dict[str, int]:
    """Ids by role. Of the tokens that end an answer one is `eos`, and another one is `eot`."""
    found = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    stop_ids = end_tokens(folder)
    # Chat models often end at another token than the tokenizer's; llama.cpp stops at both.
    found["eot"] = next((number for number in stop_ids if number != found["eos"]), None)
    # Some classes of transformers make up tokens that the model has no row for.
    return {role: int(value) for role, value in found.items() if value in text_by_id}


def end_tokens(folder: Path) -> list[int]:
    """Ids of the tokens at which the model's generation settings end an answer."""
    path = folder / "generation_config.json"
    stop_ids = read_object(path, CheckpointError).get("eos_token_id") if path.is_file() else None
    return [stop_ids] if isinstance(stop_ids, int) else list(stop_ids or ())


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _has_space_prefix(values: Mapping[str, Any]) -> bool:
    tokenizer_parts = [values.get("normalizer") or {}, values.get("pre_tokenizer") or {}]
    steps = [s for p in tokenizer_parts for s in p.get("normalizers", p.get("pretokenizers", [p]))]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )
