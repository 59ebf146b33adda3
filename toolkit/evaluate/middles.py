"""Middles of held-out code: the exact loss of what stands between two parts, given both.

As in training, parts are encoded by themselves and stand in the order prefix, suffix, middle
(Bavarian et al. 2022); only the middle's tokens count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.config import FimSection
from toolkit.data.encode import find_fim_tokens
from toolkit.data.split import stable_unit
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.documents import grouping
from toolkit.evaluate.likelihood import read_rows
from toolkit.evaluate.prompted import Prompted, score_continuations
from toolkit.evaluate.sets import BITS, EvaluationSet
from toolkit.manifest import hash_json

MIDDLES = "middles"
"""Name of the set."""

_SHARE = 4  # a middle is a quarter of the lines


def middles_set(
    path: Path,
    sources: Collection[str],
    tokenizer: Any,
    separator: int,
    fim: FimSection,
    section: EvaluateSection,
) -> EvaluationSet:
    """A middle of each test document of these sources that has three lines or more.

    Args:
        path: of `tuning.jsonl` or `test.jsonl`.
        sources: names of those with code.
        tokenizer: of the model.
        separator: token in front, context only.
        fim: tokens that part prefix, suffix and middle.
        section: batches.

    Raises:
        EvaluationError: no document has a middle.
        DataError: the tokenizer lacks the tokens.
    """
    ids = find_fim_tokens(fim, tokenizer.get_vocab())
    items: list[Prompted] = []
    names, groups, sizes = [], [], []
    for row in read_rows(path):
        parts = cut_middle(row["text"], row["id"])
        if row["id"].partition("/")[0] not in sources or parts is None:
            continue
        tokens = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
        items.append(infilling(tokens, separator, ids))
        names.append(row["id"])
        groups.append(str(row.get("group") or row["id"]))
        sizes.append(len(parts[1].encode()))
    if not items:
        raise EvaluationError(
            f"{path}: no document of {', '.join(sources) or 'any source'} has three lines, so none "
            "has a middle; mark a source of code with `fim: true`, and give it test documents."
        )
    grouped, note = grouping(names, groups)

    def score(model: Any, rows: Sequence[int]) -> list[float]:
        found = score_continuations(model, [items[row] for row in rows], section.batch_tokens)
        return [-values[0] for values in found]

    return EvaluationSet(
        name=MIDDLES,
        role="watch",
        unit="bits per byte",
        ids=names,
        groups=grouped,
        sizes=sizes,
        costs=[item.cost() for item in items],
        content_hash=hash_json([[names, sizes], [[i.prompt, i.continuations] for i in items]]),
        score=score,
        scale=BITS,
        settings_hash=hash_json({"kind": MIDDLES, "precision": section.precision}),
        note=note,
    )


def cut_middle(text: str, key: str) -> tuple[str, str, str] | None:
    """A text in three parts at ends of lines, the middle a quarter of them; None below three lines.

    >>> cut_middle("a\\nb\\nc\\n", "x")
    ('a\\n', 'b\\n', 'c\\n')
    """
    lines = text.splitlines(keepends=True)
    if len(lines) < 3:
        return None
    count = max(1, len(lines) // _SHARE)
    start = 1 + int(stable_unit("middle", key) * (len(lines) - count - 1))
    parts = (lines[:start], lines[start : start + count], lines[start + count :])
    first, middle, last = ("".join(part) for part in parts)
    return (first, middle, last) if middle.strip() else None


def infilling(parts: Sequence[list[int]], separator: int, ids: tuple[int, int, int]) -> Prompted:
    """Prefix and suffix as a prompt, the middle as what follows.

    >>> infilling([[1], [2, 3], [4]], 0, (7, 8, 9))
    Prompted(prompt=[0, 7, 1, 8, 4, 9], continuations=[[2, 3]])
    """
    first, middle, last = parts
    prefix_id, suffix_id, middle_id = ids
    return Prompted([separator, prefix_id, *first, suffix_id, *last, middle_id], [middle])
