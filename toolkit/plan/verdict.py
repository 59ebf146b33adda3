"""Is continued pre-training the right tool? Rules on measured figures, and what would move them.

The article's test: a domain that the general model lacks, and hundreds of millions to billions of
tokens of it. Thresholds beyond that are judgments of ours and named as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
        tokens: domain training text without duplicates, whatever limit the recipe sets.
        at_least: whether there may be more tokens than were seen.
        trained_parameters: number of parameters that learn.
        domain, general: bits per byte of the general model on either text.
        gap_low, gap_high: ends of the interval of domain minus general.
        order_ratio: share of bits that order saves on the domain, over the same on general text.
        pieces_ratio: tokens per word of the domain, over those of general text.
        badly_split, badly_split_general: share of words in four pieces or more.
        rare: share of domain words that general text lacks.
        num_talks: number of conversations that the recipe has to fine-tune on.
        is_talk: whether the domain itself is conversations.
        taken: those of the tokens that the recipe takes.
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
class NeededTokens:
    """Tokens of domain text that CPT wants.

    Attributes:
        least: fewest with which it is worth a try.
        comfortable: number from which more changes little.
    """

    least: float
    comfortable: float


@dataclass(frozen=True)
class PlanVerdict:
    """The tool, why, and what would change it.

    Attributes:
        tool: what to use.
        is_sure: False where an important figure is missing or near a threshold.
        shift: how far the domain lies from what the model knows.
        needed_tokens: domain text that CPT wants of such a model.
        reasons, what_would_change_it: sentences.
    """

    tool: Tool
    is_sure: bool
    shift: Shift
    needed_tokens: NeededTokens
    reasons: tuple[str, ...]
    what_would_change_it: tuple[str, ...]


class _Sign(NamedTuple):
    """What one figure says of the shift: a sentence, and the side that it speaks for, if any."""

    sentence: str
    speaks_for: Literal["strong", "weak", ""] = ""


class _Case(NamedTuple):
    """A tool with its sentences, before the signs of the shift are added."""

    tool: Tool
    reasons: list[str]
    changes: list[str]


def needed_tokens(parameters: float | None) -> NeededTokens:
    """Tokens of domain text that CPT wants of a model with so many parameters.

    >>> needed_tokens(135e6)
    NeededTokens(least=100000000.0, comfortable=1000000000.0)
    >>> f"{needed_tokens(70e9).comfortable:.3g}"
    '2.1e+11'
    """
    num_parameters = parameters or 0.0
    return NeededTokens(
        max(LEAST_TOKENS, LEAST_PER_PARAMETER * num_parameters),
        max(COMFORTABLE_TOKENS, COMFORTABLE_PER_PARAMETER * num_parameters),
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
    loss_sign, pieces_sign = _loss_sign(evidence), _pieces_sign(evidence)
    signs = [
        sign
        for sign in (loss_sign, _order_sign(evidence), pieces_sign, _rare_words_sign(evidence))
        if sign is not None
    ]
    sentences = [sign.sentence for sign in signs]
    sides = [sign.speaks_for for sign in signs]
    # Rare words alone are no measurement: any two texts have some.
    if loss_sign is None and pieces_sign is None:
        return "not measured", sentences
    if sides.count("strong") >= 2:
        return "strong", sentences
    if "strong" not in sides and ("weak" in sides or evidence.domain is not None):
        return "weak", sentences
    return "unclear", sentences


def _loss_sign(evidence: Evidence) -> _Sign | None:
    if evidence.domain is None or evidence.general is None:
        return None
    # Relative, as bits per byte of a weak model are high on any text.
    relative_gap = (evidence.domain - evidence.general) / evidence.general
    low, high = evidence.gap_low or 0.0, evidence.gap_high or 0.0
    figures = (
        f"the general model takes {evidence.domain:.2f} bits per byte on the domain, "
        f"{evidence.general:.2f} on general text (difference {low:+.2f} to {high:+.2f})"
    )
    if relative_gap >= STRONG_GAP and low > 0.0:
        return _Sign(f"{figures}: the domain surprises it much more", "strong")
    if low > 0.0:
        return _Sign(f"{figures}: the domain surprises it more")
    if high < 0.0:
        return _Sign(f"{figures}: the domain is no harder for it than general text", "weak")
    return _Sign(f"{figures}: no difference that so few documents could show")


def _order_sign(evidence: Evidence) -> _Sign | None:
    if evidence.order_ratio is None:
        return None
    figures = (
        f"reading words in their order instead of shuffled saves it {evidence.order_ratio:.2f} "
        "times as large a share of the bits on the domain as on general text"
    )
    if evidence.order_ratio < LESS_ORDER:
        return _Sign(
            f"{figures}: it knows the words better than how such texts are written", "strong"
        )
    return _Sign(f"{figures}: it knows how such texts are written")


def _pieces_sign(evidence: Evidence) -> _Sign | None:
    if evidence.pieces_ratio is None:
        return None
    figures = (
        f"the tokenizer takes {evidence.pieces_ratio:.2f} times as many tokens per word as on "
        "general text"
    )
    if evidence.badly_split is not None and evidence.badly_split_general is not None:
        figures += (
            f"; {evidence.badly_split:.1%} of the words fall into four pieces or more "
            f"({evidence.badly_split_general:.1%} of general ones)"
        )
    if evidence.pieces_ratio >= STRONG_PIECES:
        return _Sign(f"{figures}: a vocabulary that the tokenizer does not have", "strong")
    return _Sign(figures)


def _rare_words_sign(evidence: Evidence) -> _Sign | None:
    if evidence.rare is None:
        return None
    figures = f"{evidence.rare:.0%} of the domain's words do not occur in as much general text"
    if evidence.rare >= STRONG_RARE:
        return _Sign(f"{figures}: a vocabulary of its own", "strong")
    return _Sign(figures)


def judge(evidence: Evidence) -> PlanVerdict:
    """Choose the tool."""
    needed = needed_tokens(evidence.trained_parameters)
    shift, shift_signs = measured_shift(evidence)
    if evidence.tokens is None:
        reasons = ["how much domain text there is could not be seen from here", *shift_signs]
        change = f"at least {words_of(needed.least)} tokens of domain text speak for CPT"
        return PlanVerdict("cpt", False, shift, needed, tuple(reasons), (change,))
    is_familiar = shift == "weak" and evidence.gap_high is not None and evidence.gap_high < 0.0
    # Four epochs: beyond them repeats are worth little (Muennighoff et al. 2023).
    repeats_worth = worth_of_repeats(evidence.tokens, 4.0)
    if evidence.tokens >= needed.least:
        case = _case_of_enough(evidence, evidence.tokens, needed, is_familiar)
    elif repeats_worth >= needed.least:
        case = _case_of_repeats(evidence, evidence.tokens, needed, is_familiar)
    else:
        case = _case_of_too_little(evidence, evidence.tokens, needed)
    # Bounds that were read off a few published runs are good to a factor of two.
    is_near = 0.5 < needed.least / max(1.0, evidence.tokens) < 2.0
    # Of too little text the amount decides, whatever the shift.
    is_clear = shift not in {"unclear", "not measured"} or case.tool in {"retrieval", "fine-tuning"}
    return PlanVerdict(
        tool=case.tool,
        is_sure=is_clear and not is_near and not evidence.at_least,
        shift=shift,
        needed_tokens=needed,
        reasons=(*case.reasons, *shift_signs),
        what_would_change_it=tuple(case.changes),
    )


def _amount_words(evidence: Evidence, tokens: float, needed: NeededTokens) -> str:
    """How much text there is beside what is wanted."""
    amount_words = (
        f"{'at least ' if evidence.at_least else ''}{words_of(tokens)} tokens of domain text "
        f"without duplicates; CPT wants {words_of(needed.least)} at least and "
        f"{words_of(needed.comfortable)} to be comfortable"
    )
    if evidence.taken is not None and evidence.taken < 0.9 * tokens:
        amount_words += f" (the recipe takes {words_of(evidence.taken)} of them)"
    return amount_words


def _more_text(evidence: Evidence, tokens: float, needed: NeededTokens) -> str:
    most_words = "at most " if evidence.at_least else ""
    return f"{most_words}{_times(needed.least / max(1.0, tokens))} the text"


def _case_of_enough(
    evidence: Evidence, tokens: float, needed: NeededTokens, is_familiar: bool
) -> _Case:
    amount = f"enough text: {_amount_words(evidence, tokens, needed)}"
    if is_familiar:
        return _case_of_familiar(evidence, amount)
    changes = [
        "a general model that reads the domain as well as general text (fewer bits per "
        "byte) would speak against CPT"
    ]
    if tokens < needed.comfortable:
        changes.append(f"{_times(needed.comfortable / tokens)} the text would make the case plain")
    return _Case("cpt", [amount], changes)


def _case_of_familiar(evidence: Evidence, amount: str) -> _Case:
    """Of text that the model knows, however much of it there is."""
    change = (
        "an evaluation on the domain's own tasks in which the general model fails, though "
        "it reads the text well, would speak for CPT: bits per byte say nothing of facts"
    )
    can_tune = evidence.num_talks >= ENOUGH_TALKS or evidence.is_talk
    reasons = [amount, "the general model already handles such text well"]
    return _Case("fine-tuning" if can_tune else "nothing", reasons, [change])


def _case_of_repeats(
    evidence: Evidence, tokens: float, needed: NeededTokens, is_familiar: bool
) -> _Case:
    worth_words = words_of(worth_of_repeats(tokens, 4.0))
    amount_words = _amount_words(evidence, tokens, needed)
    amount = f"little text, but four epochs of it are worth {worth_words}: {amount_words}"
    if is_familiar:
        return _case_of_familiar(evidence, amount)
    return _Case(
        "cpt",
        [amount],
        [f"{_more_text(evidence, tokens, needed)} would make one epoch enough"],
    )


def _case_of_too_little(evidence: Evidence, tokens: float, needed: NeededTokens) -> _Case:
    repeats_worth = max(1.0, worth_of_repeats(tokens, 4.0))
    reasons = [f"too little text: {_amount_words(evidence, tokens, needed)}"]
    changes = [
        f"{_more_text(evidence, tokens, needed)} ({words_of(needed.least)} tokens), or "
        f"{_times(needed.least / repeats_worth)} and four epochs, would speak for CPT"
    ]
    tool: Tool = "retrieval"
    if evidence.num_talks >= ENOUGH_TALKS or evidence.is_talk:
        tool = "fine-tuning"
        reasons.append("there are conversations, from which behavior is learned with far less")
    else:
        reasons.append(
            "facts in a collection of this size are found and quoted (retrieval) more surely "
            "than they are learned"
        )
        few_words = f" ({evidence.num_talks} are there)" if evidence.num_talks else ""
        changes.append(
            f"thousands of questions and answers{few_words} would speak for fine-tuning, if a way "
            "of answering is what is missing"
        )
    reasons.append(
        "CPT on less does lower the loss on such text (the finance recipe: -0.14 bits per byte "
        "from 0.1M tokens), but what it learns is style and form more than knowledge"
    )
    return _Case(tool, reasons, changes)


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
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            scaled_number = number / unit
            num_digits = 0 if scaled_number >= 10 or letter == "k" else 1
            return f"{scaled_number:.{num_digits}f}{letter}"
    return f"{number:.0f}"
