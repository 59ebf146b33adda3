"""Wrong answers for a fact, and whether a model answers it with and without its document.

A question is kept where the general model picks the right option with the passage beside it. Were
the others dropped where it picks the right one *without*, any other model would seem to know more:
what was chosen for one model's mistakes is less so for another's. So the wrong options are chosen
such that the right one takes any place among them, as the general model sees them without the
document, with equal chance: it then answers by chance, and so does a model that knows no more.
Where no answer of its kind is likelier than the right one there is no such place but the first, and
the fact counts as known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.split import stable_unit
from toolkit.evaluate.lm_eval_model import RequestEncoder, gather_prompts
from toolkit.evaluate.prompted import score_continuations
from toolkit.knowledge.facts import Fact, broader_form

_POOL = 8
"""Answers of a form that are tried; more cost time and say little more."""

_FIRST = 4.0 / 3.0
"""Of the facts with enough less likely answers, so many times chance have the right one first; the
others, with few, never have it. Drawn scores, with the right one on average as high as the others
or a spread higher, then give 20 to 29 % of four to the model itself, and the same within a point
and a half to one with errors of a quarter of the spread to the whole (tests/knowledge)."""

_MOST_RATIO = 10.0
"""A number so many times another is no likely error for it."""

DELIMITER = " "


@dataclass(frozen=True)
class AskedFact:
    """A fact that was asked of the general model.

    Attributes:
        fact: what was asked.
        prompt: the question, without the passage.
        is_known: whether the right answer is the first that the model gives without the document,
            or has more than the share that was said.
        options: in the order shown; empty where the fact is known, and where there are too few
            answers of its form.
        answer: place of the right option.
        known_share: the right answer's share among all answers tried, without the document.
        is_right_without, is_right_with: whether the general model picks the right option without
            and with the passage.
    """

    fact: Fact
    prompt: str
    is_known: bool = False
    options: tuple[str, ...] = ()
    answer: int = 0
    known_share: float = 0.0
    is_right_without: bool = False
    is_right_with: bool = False


def write_prompt(fact: Fact, subject: str) -> str:
    """The question as a model reads it, without the document.

    It shows the whole sentence, so that a reader knows what is asked, then its beginning again, so
    that a model may go on.
    """
    if fact.kind == "free":
        about = f"{subject}, {fact.heading}".strip(", ")
        return (
            f"{about}\nQuestion: {fact.blanked}\nAnswer:"
            if about
            else (f"Question: {fact.blanked}\nAnswer:")
        )
    places = [place for place in (subject, fact.heading) if place]
    about = f"{', '.join(places)}\n" if places else ""
    return f"{about}Fill in the blank: {fact.blanked}\nAnswer: {fact.lead}"


def ask_facts(
    facts: Sequence[Fact],
    pools: Mapping[str, Sequence[str]],
    subjects: Mapping[str, str],
    model: Any,
    encoder: RequestEncoder,
    *,
    num_options: int,
    most_known: float,
    batch_tokens: int,
    seed: int,
) -> list[AskedFact]:
    """Ask the general model for facts, without their documents, and with them where it does not
    know them.

    Args:
        facts: what to ask.
        pools: answers by form.
        subjects: whom each group is about.
        model: the general model.
        encoder: of its tokenizer.
        num_options: of each question.
        most_known: share of the right answer above which a fact is known, as it is where no other
            answer is likelier.
        batch_tokens: tokens computed at once.
        seed: of the recipe.
    """
    asked: list[AskedFact] = []
    tried: list[tuple[Fact, str, list[str]]] = []
    for fact in facts:
        prompt = write_prompt(fact, subjects.get(fact.group, ""))
        rivals = find_rivals(fact, pools, seed)
        if len(rivals) + 1 < num_options:
            asked.append(AskedFact(fact, prompt))
        else:
            tried.append((fact, prompt, [fact.answer, *rivals]))
    # Without the document first: how likely each answer is decides which are shown.
    scores_without = score_options(
        [(prompt, answers) for _, prompt, answers in tried], model, encoder, batch_tokens
    )
    shown = []
    for (fact, prompt, answers), scores in zip(tried, scores_without, strict=True):
        known_share = _share(scores)
        if known_share > most_known or scores[0] == max(scores):
            asked.append(AskedFact(fact, prompt, is_known=True, known_share=known_share))
            continue
        draw = stable_unit(seed, "rank", fact.id)
        chosen = choose_rivals(scores[0], scores[1:], num_options - 1, draw)
        options = [answers[0], *(answers[1 + place] for place in chosen)]
        option_scores = [scores[0], *(scores[1 + place] for place in chosen)]
        shown.append((fact, prompt, options, option_scores, known_share))
    # With the passage, of the options that are shown alone.
    scores_with = score_options(
        [(f"{fact.passage}\n\n{prompt}", options) for fact, prompt, options, _, _ in shown],
        model,
        encoder,
        batch_tokens,
    )
    for (fact, prompt, options, without, known), with_passage in zip(
        shown, scores_with, strict=True
    ):
        # By hash, so that the place of the right option gives nothing away.
        order = sorted(
            range(len(options)), key=lambda n: stable_unit(seed, "order", fact.id, options[n])
        )
        asked.append(
            AskedFact(
                fact=fact,
                prompt=prompt,
                options=tuple(options[n] for n in order),
                answer=order.index(0),
                known_share=known,
                is_right_without=max(without) == without[0],
                is_right_with=max(with_passage) == with_passage[0],
            )
        )
    return asked


def find_rivals(fact: Fact, pools: Mapping[str, Sequence[str]], seed: int) -> list[str]:
    """Answers of a fact's form that are wrong where it stands, those of the very form first."""
    if fact.rivals:
        return list(fact.rivals)
    rivals: dict[str, None] = {}
    for form in (fact.form, broader_form(fact.form)):
        members = sorted(
            pools.get(form, ()), key=lambda answer: stable_unit(seed, "rival", fact.id, answer)
        )
        for answer in members:
            if len(rivals) < _POOL and is_other(answer, fact):
                rivals[answer] = None
    return list(rivals)


def is_other(answer: str, fact: Fact) -> bool:
    """Whether an answer is another than the right one, and stands nowhere in the sentence."""
    plain, right = _plain(answer), _plain(fact.answer)
    if plain == right or plain in _plain(fact.sentence) or plain in fact.blanked.lower():
        return False
    # Any other date is wrong; the bounds below are for numbers and for words.
    if fact.kind == "date":
        return True
    if fact.kind in ("amount", "percent", "number", "table"):
        low, high = sorted(map(_first_number, (plain, right)))
        return high <= _MOST_RATIO * low
    return plain not in right and right not in plain


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", "").split())


def _first_number(text: str) -> float:
    match = re.search(r"\d+(?:\.\d+)?", text)
    return float(match.group()) if match else 0.0


def choose_rivals(
    right_score: float, scores: Sequence[float], count: int, draw: float
) -> list[int]:
    """Places of wrong answers such that the right one is about as often first among them as chance
    has it: for the model whose scores these are, and for one that scores with other errors.

    Args:
        right_score: log likelihood of the right answer without its document.
        scores: of the wrong answers, at least `count`, one of them likelier.
        count: how many are chosen: the nearest ones above and below.
        draw: in [0, 1), decides how many of them are likelier than the right one.

    >>> choose_rivals(-5.0, [-1.0, -4.0, -6.0, -9.0], 2, 0.0)  # likelier than both
    [2, 3]
    >>> choose_rivals(-5.0, [-1.0, -4.0, -6.0, -9.0], 2, 0.5)  # between two
    [1, 2]
    """
    above = sorted((n for n, s in enumerate(scores) if s > right_score), key=lambda n: scores[n])
    below = sorted((n for n, s in enumerate(scores) if s <= right_score), key=lambda n: -scores[n])
    first_share = _FIRST / (count + 1)
    if draw < first_share and len(below) >= count:
        return below[:count]
    fewest_above = max(1, count - len(below))
    most_above = min(count, len(above))
    rest = (draw - first_share) / (1.0 - first_share) if len(below) >= count else draw
    num_above = fewest_above + int(max(0.0, rest) * (most_above - fewest_above + 1))
    return above[:num_above] + below[: count - num_above]


def _share(scores: Sequence[float]) -> float:
    """Of the first among all."""
    # Log likelihoods of long answers are far below zero, where all exponentials would be 0.
    highest = max(scores)
    total = sum(math.exp(score - highest) for score in scores)
    return math.exp(scores[0] - highest) / total


def score_options(
    asked: Sequence[tuple[str, Sequence[str]]],
    model: Any,
    encoder: RequestEncoder,
    batch_tokens: int,
) -> list[list[float]]:
    """Log likelihoods of options behind prompts."""
    pairs = [
        encoder.encode_pair(prompt, DELIMITER + option)
        for prompt, options in asked
        for option in options
    ]
    prompts, places = gather_prompts(pairs)
    scores = score_continuations(model, prompts, batch_tokens)
    values = iter(scores[number][place].log_likelihood for number, place in places)
    return [[next(values) for _ in options] for _, options in asked]
