"""Is continued pre-training the right tool? Rules on measured figures, and what would move them.

The article's test: a domain that the general model lacks, and hundreds of millions to billions of
tokens of it. Thresholds beyond that are judgments of ours and named as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Tool = Literal["cpt", "fine-tuning", "retrieval", "nothing"]
Shift = Literal["strong", "weak", "unclear", "not measured"]

LEAST_TOKENS, COMFORTABLE_TOKENS = 1e8, 1e9
"""The article: hundreds of millions to billions of tokens."""

LEAST_PER_PARAMETER, COMFORTABLE_PER_PARAMETER = 0.25, 3.0
"""Tokens for each parameter that is trained. Published runs: Llama3-SEC 0.27 (19B on 70B), Meditron
0.7 to 7, Code Llama 14 to 71. So a larger model wants more; these bounds are read off them."""

REPEATS_WORTH = 15.4
"""R* of Muennighoff et al. 2023: how fast repeated text loses its worth."""

STRONG_GAP = 0.25
"""Domain minus general bits per byte, as a share of the general, from which the shift is strong
(a judgment; German under an English model lies far beyond it)."""

STRONG_PIECES = 1.3
"""Tokens a word, domain against general, likewise."""

STRONG_RARE = 0.25
"""Share of the domain's words that general text of the same length does not have, likewise."""

ENOUGH_TALKS = 1000
"""Conversations from which fine-tuning can carry a use (the article: thousands of examples)."""

LESS_ORDER = 0.85
"""What order saves on the domain against what it saves on general text, below which the model does
not know how domain texts go (a judgment)."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict stands on; None where it was not measured.

    Attributes:
        tokens: of domain training text without duplicates, whatever limit the recipe sets.
        at_least: there may be more of them than was seen.
        trained_parameters: of the model, or those that learn.
        domain, general: bits per byte of the general model.
        gap_low, gap_high: ends of the interval of domain minus general.
        order_ratio: share of bits that order saves on the domain, over the same on general text.
        pieces_ratio: tokens a word, domain over general.
        badly_split, badly_split_general: share of words in four pieces or more.
        rare: share of domain words that general text lacks.
        num_talks: conversations that the recipe has to fine-tune on.
        is_talk: the domain itself is conversations.
        taken: tokens that the recipe takes of them.
    """

    tokens: float | None
    at_least: bool
    trained_parameters: float | None
    domain: float | None = None
    general: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    order_ratio: float | None = None
    pieces_ratio: float | None = None
    badly_split: float | None = None
    badly_split_general: float | None = None
    rare: float | None = None
    num_talks: int = 0
    is_talk: bool = False
    taken: float | None = None


@dataclass(frozen=True)
class PlanVerdict:
    """The tool, why, and what would change it.

    Attributes:
        tool: what to use.
        shift: how far the domain lies from what the model knows.
        needed: tokens that CPT wants at least, and comfortably.
        reasons, changes: sentences.
        is_sure: False where an important figure is missing or near a threshold.
    """

    tool: Tool
    shift: Shift
    needed: tuple[float, float]
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    is_sure: bool


def needed_tokens(parameters: float | None) -> tuple[float, float]:
    """Tokens of domain text that CPT wants: at least, and comfortably.

    >>> needed_tokens(135e6)
    (100000000.0, 1000000000.0)
    >>> [f"{n:.3g}" for n in needed_tokens(70e9)]
    ['1.75e+10', '2.1e+11']
    """
    size = parameters or 0.0
    return (
        max(LEAST_TOKENS, LEAST_PER_PARAMETER * size),
        max(COMFORTABLE_TOKENS, COMFORTABLE_PER_PARAMETER * size),
    )


def worth_of_repeats(tokens: float, epochs: float) -> float:
    """Tokens of new text that repeated text is worth.

    Reference:
        Muennighoff et al. 2023, Scaling data-constrained language models, equation 5.

    >>> round(worth_of_repeats(100.0, 4.0))
    373
    """
    return tokens * (1.0 + REPEATS_WORTH * (1.0 - math.exp(-(epochs - 1.0) / REPEATS_WORTH)))


def measured_shift(evidence: Evidence) -> tuple[Shift, list[str]]:
    """How far the domain lies from general text, and the figures that say so."""
    signs: list[str] = []
    found = False
    strong = weak = 0
    if evidence.domain is not None and evidence.general is not None:
        found = True
        share = (evidence.domain - evidence.general) / evidence.general
        low, high = evidence.gap_low or 0.0, evidence.gap_high or 0.0
        words = f"the general model takes {evidence.domain:.2f} bits per byte on the domain, "
        words += f"{evidence.general:.2f} on general text (difference {low:+.2f} to {high:+.2f})"
        if share >= STRONG_GAP and low > 0.0:
            strong += 1
            signs.append(f"{words}: the domain surprises it much more")
        elif low > 0.0:
            signs.append(f"{words}: the domain surprises it more")
        elif high < 0.0:
            weak += 1
            signs.append(f"{words}: the domain is no harder for it than general text")
        else:
            signs.append(f"{words}: no difference that so few documents could show")
    if evidence.order_ratio is not None:
        ratio = evidence.order_ratio
        words = (
            f"reading words in their order instead of shuffled saves it {ratio:.2f} times as large "
            "a share of the bits on the domain as on general text"
        )
        if ratio < LESS_ORDER:
            strong += 1
            signs.append(f"{words}: it knows the words better than how such texts are written")
        else:
            signs.append(f"{words}: it knows how such texts are written")
    if evidence.pieces_ratio is not None:
        found = True
        ratio = evidence.pieces_ratio
        words = f"the tokenizer takes {ratio:.2f} times as many tokens a word as on general text"
        if evidence.badly_split is not None and evidence.badly_split_general is not None:
            words += f"; {evidence.badly_split:.1%} of the words fall into four pieces or more "
            words += f"({evidence.badly_split_general:.1%} of general ones)"
        if ratio >= STRONG_PIECES:
            strong += 1
            words += ": a vocabulary that the tokenizer does not have"
        signs.append(words)
    if evidence.rare is not None:
        words = f"{evidence.rare:.0%} of the domain's words do not occur in as much general text"
        if evidence.rare >= STRONG_RARE:
            strong += 1
            words += ": a vocabulary of its own"
        signs.append(words)
    if not found:
        return "not measured", signs
    if strong >= 2:
        return "strong", signs
    if strong == 0 and (weak or evidence.domain is not None):
        return "weak", signs
    return "unclear", signs


def judge(evidence: Evidence) -> PlanVerdict:
    """Choose the tool."""
    least, comfortable = needed_tokens(evidence.trained_parameters)
    shift, signs = measured_shift(evidence)
    familiar = shift == "weak" and evidence.gap_high is not None and evidence.gap_high < 0.0
    reasons: list[str] = []
    changes: list[str] = []
    if evidence.tokens is None:
        reasons.append("how much domain text there is could not be seen from here")
        reasons += signs
        changes.append(f"at least {words_of(least)} tokens of domain text speak for CPT")
        return PlanVerdict(
            "cpt", shift, (least, comfortable), tuple(reasons), tuple(changes), False
        )
    worth = worth_of_repeats(evidence.tokens, 4.0)
    can_tune = evidence.num_talks >= ENOUGH_TALKS
    have = f"{'at least ' if evidence.at_least else ''}{words_of(evidence.tokens)}"
    times = least / max(1.0, evidence.tokens)
    most = "at most " if evidence.at_least else ""
    size = f"{have} tokens of domain text without duplicates; CPT wants {words_of(least)} at least"
    size += f" and {words_of(comfortable)} to be comfortable"
    if evidence.taken is not None and evidence.taken < 0.9 * evidence.tokens:
        size += f" (the recipe takes {words_of(evidence.taken)} of them)"
    if evidence.tokens >= least:
        tool: Tool = "nothing" if familiar else "cpt"
        reasons.append(f"enough text: {size}")
        if familiar and can_tune:
            tool = "fine-tuning"
        if tool != "cpt":
            reasons.append("the general model already handles such text well")
            changes.append(
                "an evaluation on the domain's own tasks in which the general model fails, though "
                "it reads the text well, would speak for CPT: bits per byte say nothing of facts"
            )
        else:
            changes.append(
                "a general model that reads the domain as well as general text (fewer bits per "
                "byte) would speak against CPT"
            )
            if evidence.tokens < comfortable:
                changes.append(
                    f"{_times(comfortable / evidence.tokens)} the text would make the case plain"
                )
    elif worth >= least:
        tool = "nothing" if familiar else "cpt"
        reasons.append(f"little text, but four epochs of it are worth {words_of(worth)}: {size}")
        changes.append(f"{most}{_times(times)} the text would make one epoch enough")
    else:
        tool = "fine-tuning" if can_tune or evidence.is_talk else "retrieval"
        reasons.append(f"too little text: {size}")
        changes.append(
            f"{most}{_times(times)} the text ({words_of(least)} tokens), or "
            f"{_times(least / worth)} and four epochs, would speak for CPT"
        )
        if tool == "fine-tuning":
            reasons.append("there are conversations, from which behavior is learned with far less")
        else:
            reasons.append(
                "facts in a collection of this size are found and quoted (retrieval) more surely "
                "than they are learned"
            )
            few = f" ({evidence.num_talks} are there)" if evidence.num_talks else ""
            changes.append(
                f"thousands of questions and answers{few} would speak for fine-tuning, if a way of "
                "answering is what is missing"
            )
        reasons.append(
            "CPT on less does lower the loss on such text (the finance recipe: -0.14 bits per byte "
            "from 0.1M tokens), but what it learns is style and form more than knowledge"
        )
    near = 0.5 < times < 2.0
    sure = shift not in {"unclear", "not measured"} and not near and not evidence.at_least
    if tool in {"retrieval", "fine-tuning"} and not near and not evidence.at_least:
        sure = True  # whatever the shift, the amount decides
    return PlanVerdict(
        tool, shift, (least, comfortable), tuple(reasons + signs), tuple(changes), sure
    )


def _times(factor: float) -> str:
    """
    >>> _times(1.26), _times(839.5)
    ('1.3 times', '840 times')
    """
    return f"{factor:,.1f} times" if factor < 9.95 else f"{factor:,.0f} times"


def words_of(number: float) -> str:
    """A large number as people say it.

    >>> [words_of(n) for n in (950, 83_682, 1.5e6, 2.4e9, 15e12)]
    ['950', '84k', '1.5M', '2.4B', '15T']
    """
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            shown = number / size
            return f"{shown:.0f}{sign}" if shown >= 10 or sign == "k" else f"{shown:.1f}{sign}"
    return f"{number:.0f}"
