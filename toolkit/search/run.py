"""The search: every candidate merged in memory and scored on the tuning documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, score_documents
from toolkit.manifest import hash_json
from toolkit.merge.live import LiveMerge
from toolkit.progress import progress
from toolkit.search.space import GENERAL, Candidate


@dataclass(frozen=True)
class Score:
    """A candidate's losses on the tuning documents.

    Attributes:
        candidate: what was merged.
        nats: loss of each document, in the order of the item set.
        distance: Euclidean distance of its parameters from the general model's.
    """

    candidate: Candidate
    nats: list[float]
    distance: float


def run_search(
    candidates: Sequence[Candidate],
    live: LiveMerge,
    model: Any,
    items: ItemSet,
    section: EvaluateSection,
    log: Path,
) -> list[Score]:
    """Score every candidate that the log does not hold yet.

    Args:
        candidates: what to try.
        live: the two models, held open.
        model: a loaded model that candidates are written into.
        items: tuning documents.
        section: how to score.
        log: `.jsonl` file that gains a line with each score, so that a search can continue.
    """
    known = _read_log(log)
    total = sum(len(tokens) - 1 for tokens in items.tokens)
    scores: list[Score] = []
    with (
        log.open("a", encoding="utf-8") as file,
        progress("search", len(candidates), done=len(known)) as advance,
    ):
        for candidate in candidates:
            key = hash_json(candidate.config.model_dump(mode="json"))
            if key not in known:
                live.apply(candidate.config, model)
                nats = score_documents(model, items, section)
                distance = live.distance(model, GENERAL)
                known[key] = {"nats": nats, "distance": distance}
                row = {"key": key, "name": candidate.name, **known[key]}
                file.write(json.dumps(row) + "\n")
                file.flush()
                advance(1, f"{candidate.name}: {sum(nats) / total:.4f} nats a token")
            row = known[key]
            scores.append(Score(candidate, row["nats"], row["distance"]))
    return scores


def _read_log(path: Path) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")[0]
        for line in whole.splitlines():
            row = json.loads(line)
            known[row["key"]] = {"nats": row["nats"], "distance": row["distance"]}
        # What follows the last line break was being written when the search was killed.
        path.write_bytes(whole + b"\n" if whole else b"")
    return known
