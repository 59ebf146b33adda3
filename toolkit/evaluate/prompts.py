"""Prompts of everyday use, written for this package: 384, of twelve kinds.

They are not questions with known answers: the general model's own answers are what is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.data.config import SplitName
from toolkit.evaluate.instructions import INSTRUCTIONS, InstructionCheck
from toolkit.evaluate.prompt_texts import (
    AUDIENCES,
    CARE,
    CHAT,
    CODE,
    EXPLAIN,
    FORMS,
    INSTRUCTION_THINGS,
    LISTS,
    QUESTIONS,
    READINGS,
    REWRITES,
    SENTENCES,
    SHORT_SENTENCES,
    SORTING,
    STYLES,
    SUMS,
    TEXTS,
    THINGS,
    TRANSLATIONS,
)


@dataclass(frozen=True)
class RetentionPrompt:
    """A prompt with what it is alike with.

    Attributes:
        text: of the prompt.
        kind: one of the twelve.
        group: prompts over the same text or thing are one group: their answers are alike.
        check: what an answer must keep to, where a program can tell; see `instructions.py`.
    """

    text: str
    kind: str
    group: str
    check: InstructionCheck | None = None


def _simple(kind: str, texts: Sequence[str]) -> list[RetentionPrompt]:
    return [RetentionPrompt(text, kind, f"{kind}/{text}") for text in texts]


def _crossed(kind: str, forms: Sequence[str], things: Sequence[str]) -> list[RetentionPrompt]:
    """Each form with each thing, so that any beginning has as many things as it can."""
    return [
        RetentionPrompt(forms[(turn + place) % len(forms)].format(thing), kind, f"{kind}/{thing}")
        for turn in range(len(forms))
        for place, thing in enumerate(things)
    ]


def _prompts_by_kind() -> list[list[RetentionPrompt]]:
    return [
        _simple("question", QUESTIONS),
        _crossed("explanation", AUDIENCES, EXPLAIN),
        _simple("sum", SUMS),
        _simple("code", CODE),
        _simple("list", LISTS),
        _simple("chat", CHAT),
        _crossed("rewrite", REWRITES, SENTENCES),
        _simple("sorting", SORTING),
        [*_simple("form", FORMS), *_crossed("form", TRANSLATIONS, SHORT_SENTENCES)],
        _crossed("style", STYLES, THINGS),
        _simple("care", CARE),
        _crossed("summary", READINGS, TEXTS),
    ]


def retention_prompts(split: SplitName) -> list[RetentionPrompt]:
    """All prompts of one split; any beginning of the list has all kinds in like shares.

    Every kind is divided by itself, every other group of it for either split: what is unlearned of
    code is then seen by the search and by the test.

    Args:
        split: `validation` or `test`.

    >>> validation, test = retention_prompts("validation"), retention_prompts("test")
    >>> len(validation), len(test), len({prompt.kind for prompt in validation[:12]})
    (192, 192, 12)
    >>> {prompt.group for prompt in validation} & {prompt.group for prompt in test}
    set()
    """
    return take_turns([choose_half(prompts, split) for prompts in _prompts_by_kind()])


def instruction_prompts(split: SplitName) -> list[RetentionPrompt]:
    """Prompts of one split whose answers a program can check; any beginning has all kinds of check.

    >>> len(instruction_prompts("test"))
    48
    """
    # Things are divided and not prompts: answers about one thing are alike.
    things = INSTRUCTION_THINGS[int(split == "test") :: 2]
    kinds = [
        [
            # Each kind begins with another thing, so that few prompts have many groups.
            RetentionPrompt(
                form.format(things[(number + turn) % len(things)]),
                name,
                f"instruction/{things[(number + turn) % len(things)]}",
                check,
            )
            for turn in range(len(things))
        ]
        for number, (name, form, check) in enumerate(INSTRUCTIONS)
    ]
    return take_turns(kinds)


def choose_half(prompts: Sequence[RetentionPrompt], split: SplitName) -> list[RetentionPrompt]:
    """Every other group of one kind: those at even places are for validation."""
    group_names = list(dict.fromkeys(prompt.group for prompt in prompts))
    chosen_groups = set(group_names[int(split == "test") :: 2])
    return [prompt for prompt in prompts if prompt.group in chosen_groups]


def take_turns(kinds: Sequence[Sequence[RetentionPrompt]]) -> list[RetentionPrompt]:
    """One of each kind after the other, as long as there are some."""
    kind_rows = itertools.zip_longest(*kinds)
    return [prompt for row in kind_rows for prompt in row if prompt is not None]
