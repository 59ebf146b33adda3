"""How much of the domain the general model knows already: bits per byte on a few short documents.

Three sets are compared: the domain, general text, and both with the words of each document in
another order. What the order saves tells structure from vocabulary: a model that gains little
from the domain's own order does not know how its texts go, however common their words are.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.split import stable_unit
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, score_documents
from toolkit.statistics.bootstrap import Figures, bootstrap_figures, intervals
from toolkit.statistics.interval import Interval

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
        domain, general: texts as they are.
        domain_shuffled, general_shuffled: texts with the words of each in another order.
        gap: domain minus general.
        num_documents: number of texts of both roles.
        num_tokens: number of tokens that were scored, all kinds together.
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
    # With the white space kept at every other place: line breaks and columns stay as they were.
    words_and_spaces = re.split(r"(\s+)", text)
    words = words_and_spaces[::2]
    random.Random(int(stable_unit("shuffle", seed, name) * 2**53)).shuffle(words)  # noqa: S311
    words_and_spaces[::2] = words
    return "".join(words_and_spaces)


def cut_pieces(
    texts: Sequence[str], tokenizer: Any, separator: int, *, num_tokens: int, count: int
) -> list[TextPiece]:
    """The beginnings of the first texts that are long enough, cut at a token's end."""
    pieces: list[TextPiece] = []
    for text in texts:
        if len(pieces) == count:
            break
        # Twelve characters a token are more than any text here needs.
        token_ids, offsets = tokenizer.encode(text[: 12 * num_tokens])
        # Short ones would be mostly beginning, which is hard to guess in any text.
        if len(token_ids) < num_tokens // 2:
            continue
        # Bytes must be those of the very tokens that are scored: the text is cut where they end.
        end_of_piece = offsets[min(num_tokens, len(token_ids)) - 1][1]
        pieces.append(TextPiece(text[:end_of_piece], [separator, *token_ids[:num_tokens]]))
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
    pieces_by_kind: dict[str, list[TextPiece]] = {}
    for role, pieces in (("domain", domain), ("general", general)):
        pieces_by_kind[role] = list(pieces)
        pieces_by_kind[f"{role} shuffled"] = _shuffle_pieces(pieces, role, tokenizer, seed)
    named_pieces = [
        (kind, f"{kind} {number}", piece)
        for kind, pieces in pieces_by_kind.items()
        for number, piece in enumerate(pieces)
    ]
    items = ItemSet(
        ids=[name for _, name, _ in named_pieces],
        roles=[kind for kind, _, _ in named_pieces],
        num_bytes=[len(piece.text.encode()) for _, _, piece in named_pieces],
        tokens=[piece.tokens for _, _, piece in named_pieces],
    )
    # All kinds in one call, which fills its batches better than four of them.
    nats = np.array(score_documents(model, items, section))
    figures_by_kind = {kind: _draw_figures(nats, items, kind, seed) for kind in pieces_by_kind}
    by_kind = {kind: intervals(figures)[0] for kind, figures in figures_by_kind.items()}
    # The roles are different documents, so they are drawn independently of each other.
    gap_draws = figures_by_kind["domain"].draws[:, 0] - figures_by_kind["general"].draws[:, 0]
    low, high = np.quantile(gap_draws, [0.025, 0.975])
    gap = by_kind["domain"].estimate - by_kind["general"].estimate
    return Surprise(
        domain=by_kind["domain"],
        general=by_kind["general"],
        domain_shuffled=by_kind["domain shuffled"],
        general_shuffled=by_kind["general shuffled"],
        gap=Interval(float(gap), float(low), float(high)),
        num_documents=len(domain) + len(general),
        num_tokens=sum(len(piece.tokens) - 1 for _, _, piece in named_pieces),
    )


def _shuffle_pieces(
    pieces: Sequence[TextPiece], role: str, tokenizer: Any, seed: int
) -> list[TextPiece]:
    shuffled_pieces = []
    for number, piece in enumerate(pieces):
        text = shuffled_words(piece.text, seed, f"{role} {number}")
        separator = piece.tokens[0]
        shuffled_pieces.append(TextPiece(text, [separator, *tokenizer.encode(text)[0]]))
    return shuffled_pieces


def _draw_figures(nats: NDArray[np.float64], items: ItemSet, kind: str, seed: int) -> Figures:
    """Bits per byte of one kind of texts, with documents resampled."""
    rows = items.only(kind)
    num_bytes = np.array(items.num_bytes, dtype=np.float64)
    return bootstrap_figures(
        nats[rows],
        num_bytes[rows],
        [str(row) for row in rows],
        resamples=RESAMPLES,
        seed=int(stable_unit("plan", seed, kind) * 2**32),
        scale=1.0 / math.log(2.0),
    )
