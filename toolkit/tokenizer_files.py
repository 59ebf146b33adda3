"""Loading tokenizers: one way for all stages, and a look at what a stranger's asks for first.

A tokenizer.json can hold steps that lengthen a text a thousandfold each, or an expression that
takes years on forty letters; the library then hangs, or ends the whole process.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError, ToolkitError
from toolkit.library_errors import reading
from toolkit.limits import limit, raise_hint
from toolkit.load_yaml import read_object

_MOST_STEPS = 1000
_MOST_FRAME_TOKENS = 10_000
_RISKY = re.compile(r"\)\s*(?:[*+]|\{\d*,)|\\[1-9]|\\k<")
"""Expressions in which a repeated group, or a back reference, may take exponential time."""

# Runs of letters, spaces and digits with an end that does not fit: an expression with repeats in
# repeats then tries every way to split them.
_TRIAL = """
import sys
from tokenizers import Tokenizer
core = Tokenizer.from_file(sys.argv[1])
for text in ("a" * 48 + "!", " " * 48 + "x", "0" * 48 + "-", "ab" * 24 + "!", "It's 12,5."):
    core.encode(text)
"""


def load_tokenizer(
    folder: str | Path, kind: type[ToolkitError] = CheckpointError, **settings: Any
) -> Any:
    """The tokenizer of a model folder, by transformers.

    Args:
        folder: of the model.
        kind: of the error.
        settings: of `AutoTokenizer.from_pretrained`.

    Raises:
        kind: there is none, it is damaged, or it takes more time or memory than it may.
    """
    from transformers import AutoTokenizer

    if isinstance(folder, Path) and not folder.is_dir():
        raise kind(f"{folder}: there is no such model folder.")
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        check_tokenizer_file(path, kind)
    what = "holds no tokenizer that can be read"
    with reading(folder, kind, what, "put the model's tokenizer.json there"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        tokenizer("a")  # settings that are no numbers are first met here
        return tokenizer


def has_chat_template(folder: Path) -> bool:
    """Whether a model folder brings a chat template; one that cannot be read brings none."""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_object(folder / "tokenizer_config.json").get("chat_template"))
    except ToolkitError:
        return False


def check_tokenizer_file(path: Path, kind: type[ToolkitError] = CheckpointError) -> None:
    """Refuse a tokenizer.json that asks for more than the limits, before a library reads it.

    Raises:
        kind: it does, or is not JSON.
    """
    with reading(path, kind, "cannot be read as a tokenizer", "fetch the model's files again"):
        file_status = path.stat()
    fault = _fault_of(path.absolute(), file_status.st_size, file_status.st_mtime_ns)
    if fault:
        raise kind(f"{path}: cannot be read as a tokenizer: {fault}")


@lru_cache(maxsize=64)
def _fault_of(path: Path, size: int, changed: int) -> str:
    """What is wrong with a file of this size and time of change; nothing where all is well."""
    del size, changed  # they are there for the cache
    try:
        values = read_object(path, CheckpointError, "fetch the model's files again")
        fault = _find_fault(values)
    except ToolkitError as error:
        return str(error).removeprefix(f"{path}: ")
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return ""  # not of the form: the library says what it misses
    if not fault and any(_RISKY.search(text) for text in _expressions(values)):
        fault = _try_in_time(path)
    return fault


def _find_fault(values: Mapping[str, Any]) -> str:
    for part in ("normalizer", "decoder"):
        growth = 1.0
        for step in _steps(values.get(part)):
            # Each step works on what the one before it made, so lengths multiply.
            growth *= _growth_of(step)
            if growth > limit("TOKENIZER_GROWTH"):
                return (
                    f"its {part} lengthens a text {growth:,.0f} times or more; "
                    f"{raise_hint('TOKENIZER_GROWTH')}."
                )
    num_steps = sum(
        1 for part in ("normalizer", "pre_tokenizer", "decoder") for _ in _steps(values.get(part))
    )
    if num_steps > _MOST_STEPS:
        return f"has {num_steps:,} steps; at most {_MOST_STEPS:,} are taken."
    for step in _steps(values.get("post_processor")):
        if (size := _frame_size(step)) > _MOST_FRAME_TOKENS:
            return f"puts {size:,} tokens around a text; at most {_MOST_FRAME_TOKENS:,} are taken."
    padding = values.get("padding")
    if isinstance(padding, Mapping):
        fixed_lengths = padding.get("strategy")
        lengths: list[Any] = [padding.get("pad_to_multiple_of")]
        lengths += list(fixed_lengths.values()) if isinstance(fixed_lengths, Mapping) else []
        for length in lengths:
            if isinstance(length, int) and length > max(1 << 20, limit("PADDED_ROWS")):
                return f"pads a text to {length:,} tokens; {raise_hint('PADDED_ROWS')}."
    return _fault_of_ids(values)


def _fault_of_ids(values: Mapping[str, Any]) -> str:
    vocabulary = values["model"].get("vocab") or {}
    token_count = len(vocabulary) + len(values.get("added_tokens") or ())
    # A list of pieces has no ids of its own: they are the places in it.
    token_ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    token_ids += [item["id"] for item in values.get("added_tokens") or ()]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in token_ids):
        wrong = next(n for n in token_ids if isinstance(n, bool) or not isinstance(n, int) or n < 0)
        return f"a token has the id {wrong!r}, which is no whole number; fetch the file again."
    # Ids may have holes, so the bound is wide; it is for ids that would fill the memory.
    if token_ids and max(token_ids) > 4 * token_count + 1_000_000:
        return (
            f"a token has the id {max(token_ids):,} where there are {token_count:,} tokens; fetch "
            "it again."
        )
    return ""


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or its like, those of sequences one by one."""
    # A list in place of recursion, as sequences may hold sequences without end. It turns the order
    # around, which neither a product nor a sum minds.
    waiting_parts = [part]
    while waiting_parts:
        item = waiting_parts.pop()
        if not isinstance(item, Mapping):
            continue
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            if isinstance(item.get(key), list):
                waiting_parts += item[key]
        yield item


def _growth_of(step: Mapping[str, Any]) -> float:
    """How many times longer a step makes a text at most."""
    if step.get("type") != "Replace":
        return 1.0
    content, pattern = str(step.get("content") or ""), step.get("pattern") or {}
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if text:
        return max(1.0, len(content) / len(text))
    # An empty match stands between any two characters: the content comes in at each of them.
    matches_nothing = text == "" or _matches_empty(str(pattern.get("Regex", "")))
    return max(1.0, len(content) + float(matches_nothing))


def _matches_empty(expression: str) -> bool:
    try:
        return re.match(expression, "") is not None
    # The library's dialect is another one; what Python cannot read is taken to match something.
    except (re.error, RecursionError, OverflowError):
        return False


def _frame_size(step: Mapping[str, Any]) -> int:
    special_tokens = step.get("special_tokens")
    special_tokens = special_tokens if isinstance(special_tokens, Mapping) else {}
    largest_frame = 0
    for key in ("single", "pair"):
        frame_tokens = 0
        for piece in step.get(key) or ():
            name = piece.get("SpecialToken", {}).get("id") if isinstance(piece, Mapping) else None
            frame_tokens += (
                len(special_tokens.get(name, {}).get("ids", ())) if name is not None else 0
            )
        largest_frame = max(largest_frame, frame_tokens)
    return largest_frame


def _expressions(values: Mapping[str, Any]) -> Iterator[str]:
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(values.get(part)):
            pattern = step.get("pattern")
            if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
                yield pattern["Regex"]


def _try_in_time(path: Path) -> str:
    """Encode short texts in a process of its own, which can be ended."""
    # The library backtracks in its own code, in which no timer of Python could stop it.
    command = [sys.executable, "-c", _TRIAL, str(path)]
    try:
        trial = subprocess.run(
            command,
            timeout=limit("TOKENIZER_SECONDS"),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return (
            f"an expression in it takes more than {limit('TOKENIZER_SECONDS')} seconds on 50 "
            f"letters; seconds: {raise_hint('TOKENIZER_SECONDS')}."
        )
    # Ended by a signal, as this process would be. What is an error, the library says itself.
    if trial.returncode < 0:
        return (
            f"an expression in it ends the process that encodes 50 letters (signal "
            f"{-trial.returncode}); fetch the model's files again."
        )
    return ""
