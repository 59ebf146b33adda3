"""Documents of a data stage as sets: one for each source, in bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.data.document_tokens import document_tokens
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import EvaluationRow, ItemSet, read_rows, score_documents
from toolkit.evaluate.sets import BITS, EvaluationSet
from toolkit.stage import hash_json


def likelihood_sets(
    path: Path, tokenizer: Any, separator: int, section: EvaluateSection
) -> list[EvaluationSet]:
    """The documents of `validation.jsonl` or `test.jsonl`, one set for each source, in file order.

    Args:
        path: of the file.
        tokenizer: of the model.
        separator: token in front of each document where the tokenizer puts none, context only.
        section: windows and batches.

    Raises:
        EvaluationError: the file holds no documents, or a line of it cannot be read.
    """
    document_rows = read_rows(path)
    sources: dict[str, list[EvaluationRow]] = {}
    for document_row in document_rows:
        sources.setdefault(_source(document_row), []).append(document_row)
    return [_set(name, members, tokenizer, separator, section) for name, members in sources.items()]


def _source(row: EvaluationRow) -> str:
    """The source a document came from: its id begins with it."""
    return str(row.get("source") or row["id"].partition("/")[0])


def _set(
    name: str,
    rows: Sequence[EvaluationRow],
    tokenizer: Any,
    separator: int,
    section: EvaluateSection,
) -> EvaluationSet:
    source_roles = {row["role"] for row in rows}
    if len(source_roles) > 1:
        raise EvaluationError(
            f"{name}: its documents have several roles ({', '.join(sorted(source_roles))}), and a "
            "source has one; run the data stage again."
        )
    items = ItemSet(
        ids=[row["id"] for row in rows],
        roles=[row["role"] for row in rows],
        num_bytes=[len(row["text"].encode()) for row in rows],
        tokens=document_tokens(tokenizer, [row["text"] for row in rows], separator),
    )
    groups, group_note = grouping(items.ids, [str(row.get("group") or row["id"]) for row in rows])

    def score(model: Any, chosen: Sequence[int]) -> list[float]:
        return score_documents(model, items.at(chosen), section)

    return EvaluationSet(
        name=name,
        role=source_roles.pop(),
        unit="bits per byte",
        ids=items.ids,
        groups=groups,
        sizes=items.num_bytes,
        # The last token is only predicted, never read.
        costs=[len(ids) - 1 for ids in items.tokens],
        # Tokens and not texts: what another tokenizer makes of the same text has scores of its own.
        content_hash=hash_json([items.ids, items.tokens, items.num_bytes]),
        score=score,
        scale=BITS,
        # Batch size is left out: it changes nothing beyond rounding.
        settings_hash=hash_json(
            {
                "kind": "likelihood",
                "window_tokens": section.window_tokens,
                "context_tokens": section.context_tokens,
                "precision": section.precision,
            }
        ),
        # Whatever the white space: a copy that was wrapped otherwise is the same document.
        item_hashes=[hash_json(" ".join(row["text"].split())) for row in rows],
        note=group_note,
        is_of_one_group=bool(group_note),
        sequences=[
            (tokens[: section.window_tokens + 1], min(len(tokens) - 1, section.window_tokens))
            for tokens in items.tokens
        ],
    )


def grouping(documents: Sequence[str], groups: Sequence[str]) -> tuple[list[str], str]:
    """What is drawn together, and a note on what that can speak for.

    Two groups and more are the sample, however few: bounds over them are wide, and honest. Of one
    group nothing is known but its own documents, so these are drawn, and the note says so.

    Args:
        documents: that each item is, or is a part of.
        groups: of each item.

    >>> grouping(["a", "b"], ["one", "one"])[0]
    ['a', 'b']
    >>> grouping(["a", "b", "c"], ["one", "one", "two"])
    (['one', 'one', 'two'], '')
    """
    num_documents = len(set(documents))
    if len(set(groups)) != 1 or num_documents == 1:
        return list(groups), ""
    items = "items" if num_documents == len(documents) else "documents"
    return list(documents), (
        f"its {num_documents} {items} come from one group ({groups[0]}): intervals hold for more "
        f"{items} of this group; how another group would score is not known"
    )
