"""How much of the domain the general model knows already: bits per byte on a few short documents.

Three sets are compared: the domain, general text, and both with the words of each document in
another order. What the order saves tells structure from vocabulary: a model that gains little
from the domain's own order does not know how its texts go, however common their words are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.data.split import stable_unit
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, score_documents
from toolkit.statistics.bootstrap import bootstrap_figures, intervals
from toolkit.statistics.interval import Interval

_LN2 = 0.6931471805599453
RESAMPLES = 2000


@dataclass(frozen=True)
class TextPiece:
    """A short document to score: its text and its tokens, separator in front."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Surprise:
    """Bits per byte of the general model, with 95 % intervals over documents.

    Attributes:
        domain, general: of the texts as they are.
        domain_shuffled, general_shuffled: with the words of each in another order.
        gap: domain minus general.
        num_documents, num_tokens: that were scored, all together.
    """

    domain: Interval
    general: Interval
    domain_shuffled: Interval
    general_shuffled: Interval
    gap: Interval
    num_documents: int
    num_tokens: int

    @property
    def domain_order(self) -> float:
        """Share of the shuffled domain's bits that its own order saves."""
        return 1.0 - self.domain.estimate / self.domain_shuffled.estimate

    @property
    def general_order(self) -> float:
        return 1.0 - self.general.estimate / self.general_shuffled.estimate


def shuffled_words(text: str, seed: int, name: str) -> str:
    """The words of a text in another order; the white space between them stays where it is.

    >>> sorted(shuffled_words("a b\\nc", 0, "x").split())
    ['a', 'b', 'c']
    """
    parts = re.split(r"(\s+)", text)
    words = parts[::2]
    random.Random(int(stable_unit("shuffle", seed, name) * 2**53)).shuffle(words)  # noqa: S311
    parts[::2] = words
    return "".join(parts)


def cut_pieces(
    texts: Sequence[str], tokenizer: Any, separator: int, *, num_tokens: int, count: int
) -> list[TextPiece]:
    """The beginnings of the first texts that are long enough, cut at a token's end."""
    pieces: list[TextPiece] = []
    for text in texts:
        if len(pieces) == count:
            break
        # Six characters a token are more than any text here needs.
        ids, offsets = tokenizer.encode(text[: 12 * num_tokens])
        if len(ids) < num_tokens // 2:
            continue
        stop = offsets[min(num_tokens, len(ids)) - 1][1]
        pieces.append(TextPiece(text[:stop], [separator, *ids[:num_tokens]]))
    return pieces


def measure_surprise(
    model: Any,
    domain: Sequence[TextPiece],
    general: Sequence[TextPiece],
    tokenizer: Any,
    section: EvaluateSection,
    *,
    seed: int,
) -> Surprise:
    """Score both roles, as they are and shuffled.

    Raises:
        EvaluationError: there are fewer than two documents of a role, or a loss is not finite.
    """
    kinds: list[tuple[str, list[TextPiece]]] = []
    for role, pieces in (("domain", domain), ("general", general)):
        kinds.append((role, list(pieces)))
        mixed = []
        for number, piece in enumerate(pieces):
            text = shuffled_words(piece.text, seed, f"{role} {number}")
            mixed.append(TextPiece(text, [piece.tokens[0], *tokenizer.encode(text)[0]]))
        kinds.append((f"{role} shuffled", mixed))
    every = [(kind, number, piece) for kind, pieces in kinds for number, piece in enumerate(pieces)]
    items = ItemSet(
        ids=[f"{kind} {number}" for kind, number, _ in every],
        roles=[kind for kind, _, _ in every],
        num_bytes=[len(piece.text.encode()) for _, _, piece in every],
        tokens=[piece.tokens for _, _, piece in every],
    )
    nats = np.array(score_documents(model, items, section))
    sizes = np.array(items.num_bytes, dtype=np.float64)
    figures = {}
    draws = {}
    for kind, _ in kinds:
        rows = items.only(kind)
        found = bootstrap_figures(
            nats[rows],
            sizes[rows],
            [str(row) for row in rows],
            resamples=RESAMPLES,
            seed=int(stable_unit("plan", seed, kind) * 2**32),
            scale=1.0 / _LN2,
        )
        figures[kind] = intervals(found)[0]
        draws[kind] = found.draws[:, 0]
    apart = draws["domain"] - draws["general"]  # different documents: drawn independently
    estimate = figures["domain"].estimate - figures["general"].estimate
    low, high = np.quantile(apart, [0.025, 0.975])
    return Surprise(
        domain=figures["domain"],
        general=figures["general"],
        domain_shuffled=figures["domain shuffled"],
        general_shuffled=figures["general shuffled"],
        gap=Interval(float(estimate), float(low), float(high)),
        num_documents=len(domain) + len(general),
        num_tokens=sum(len(piece.tokens) - 1 for _, _, piece in every),
    )
