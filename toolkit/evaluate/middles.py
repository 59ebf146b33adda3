"""Filling in the middle: exact loss of held-out lines, given what stands before and after them.

A middle is a run of whole lines of a document. It is scored behind prefix and suffix, as documents
are rearranged in training (PSM), and behind the prefix alone, as a model without the suffix would
have to guess it: what the second loses against the first is what the suffix is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.config import FimSection
from toolkit.data.document_tokens import leading_token, text_tokens
from toolkit.data.encode import find_fim_tokens
from toolkit.data.split import stable_unit
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection, InfillingSection
from toolkit.evaluate.documents import grouping
from toolkit.evaluate.likelihood import EvaluationRow, read_rows
from toolkit.evaluate.prompted import Prompted, score_continuations
from toolkit.evaluate.sets import BITS, EvaluationSet
from toolkit.stage import hash_json

BOTH_SIDES, PREFIX_ONLY = "infilling", "infilling, prefix only"


@dataclass(frozen=True)
class Middle:
    """Lines to fill in.

    Attributes:
        id: of the document, and which of its middles it is.
        document: its id.
        group: of the document.
        prefix, text, suffix: the document in three parts; the text is whole lines.
    """

    id: str
    document: str
    group: str
    prefix: str
    text: str
    suffix: str


def cut_middles(row: EvaluationRow, section: InfillingSection) -> list[Middle]:
    """Middles of a document, chosen by the hash of its id; none of a document that is too short.

    Args:
        row: of `validation.jsonl` or `test.jsonl`.
        section: how many, and how long.

    >>> row = {"id": "a", "role": "domain", "text": "def f(x):\\n    y = x + 1\\n    return y\\n"}
    >>> [middle.text for middle in cut_middles(row, InfillingSection(per_document=3, lines=1))]
    ['    y = x + 1\\n']
    """
    text_lines = row["text"].splitlines(keepends=True)
    # Something must stand before and after, and a middle of white space says nothing.
    line_starts = [
        start
        for start in range(1, len(text_lines) - section.lines)
        if "".join(text_lines[start : start + section.lines]).strip()
    ]
    # By a hash of the document and the line: the same middles whatever else is evaluated.
    line_starts.sort(key=lambda start: stable_unit("middle", row["id"], start))
    return [
        Middle(
            f"{row['id']}#{start}",
            row["id"],
            str(row.get("group") or row["id"]),
            "".join(text_lines[:start]),
            "".join(text_lines[start : start + section.lines]),
            "".join(text_lines[start + section.lines :]),
        )
        for start in sorted(line_starts[: section.per_document])
    ]


def middles_sets(
    path: Path, tokenizer: Any, section: EvaluateSection, infilling: InfillingSection
) -> list[EvaluationSet]:
    """The middles of the domain's documents, behind both sides and behind the prefix alone.

    Args:
        path: `validation.jsonl` or `test.jsonl` of a data stage.
        tokenizer: of the models that are compared.
        section: windows and batches.
        infilling: which middles.

    Raises:
        DataError: the tokenizer lacks the tokens of fill-in-the-middle.
        EvaluationError: no document has enough lines.
    """
    ids = find_fim_tokens(FimSection(tokens=infilling.tokens), tokenizer.get_vocab())
    # Conversations have no lines of a document to be filled in.
    rows = [row for row in read_rows(path) if row["role"] == "domain" and not row.get("messages")]
    if infilling.source is not None:
        rows = [row for row in rows if row["id"].partition("/")[0] == infilling.source]
    middles = [middle for row in rows for middle in cut_middles(row, infilling)]
    if not middles:
        raise EvaluationError(
            f"{path}: no document has {infilling.lines + 2} lines to fill a middle in; give "
            "longer documents (data.evaluation_document_tokens), or lower evaluate.infilling.lines."
        )

    leading_id = leading_token(tokenizer)
    start = [] if leading_id is None else [leading_id]
    behind_both: list[Prompted] = []
    behind_prefix: list[Prompted] = []
    for middle in middles:
        prefix_tokens, inner, suffix_tokens = (
            text_tokens(tokenizer, text) for text in (middle.prefix, middle.text, middle.suffix)
        )
        # The suffix gets half of the room, or more where the prefix is short; the rest is the
        # prefix's end.
        # Two tokens at least, so that even behind a middle longer than the window both sides have
        # one.
        room_tokens = max(2, section.window_tokens - len(inner) - len(ids) - len(start))
        after = suffix_tokens[: max(room_tokens // 2, room_tokens - len(prefix_tokens))]
        before = prefix_tokens[-max(1, room_tokens - len(after)) :]
        behind_both.append(Prompted([*start, ids[0], *before, ids[1], *after, ids[2]], [inner]))
        behind_prefix.append(Prompted([*start, *before], [inner]))
    return [
        _set(name, middles, items, section, infilling)
        for name, items in ((BOTH_SIDES, behind_both), (PREFIX_ONLY, behind_prefix))
    ]


def _set(
    name: str,
    middles: Sequence[Middle],
    items: Sequence[Prompted],
    section: EvaluateSection,
    infilling: InfillingSection,
) -> EvaluationSet:
    def score(model: Any, chosen: Sequence[int]) -> list[float]:
        scores = score_continuations(model, [items[n] for n in chosen], section.batch_tokens)
        item_losses = [-row[0].log_likelihood for row in scores]
        for n, loss in zip(chosen, item_losses, strict=True):
            if not loss < float("inf"):
                raise EvaluationError(f"{middles[n].id}: the loss is {loss}; the model is damaged.")
        return item_losses

    # Middles of one document are alike: where all are of one group, documents are drawn.
    groups, group_note = grouping(
        [middle.document for middle in middles], [middle.group for middle in middles]
    )
    return EvaluationSet(
        name=name,
        role=infilling.role if name == BOTH_SIDES else "watch",
        unit="bits per byte",
        ids=[middle.id for middle in middles],
        groups=groups,
        sizes=[len(middle.text.encode()) for middle in middles],
        costs=[item.cost() for item in items],
        content_hash=hash_json([[i.prompt, i.continuations] for i in items]),
        score=score,
        scale=BITS,
        settings_hash=hash_json({"kind": "middles", "precision": section.precision}),
        item_hashes=[hash_json([m.prefix, m.text, m.suffix]) for m in middles],
        note=group_note,
        is_of_one_group=bool(group_note),
    )
