"""Instructions that a program can check, in the manner of IFEval (Zhou et al. 2023,
https://arxiv.org/abs/2311.07911): what they ask is counted, never judged.
"""

from __future__ import annotations

import json
import re
from typing import Any

from toolkit.section import PositiveInt, Section, parse_section

_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+\S")
_FENCE = re.compile(r"^```\w*\n(.*?)\n```$", re.DOTALL)


class InstructionCheck(Section):
    """What an answer must keep to; all that is given must hold."""

    lines: PositiveInt | None = None
    """Lines that are not empty, exactly so many."""

    items: PositiveInt | None = None
    """Lines that begin with a dash, a star or a number, exactly so many."""

    most_words: PositiveInt | None = None
    """Words between spaces, at most so many."""

    least_words: PositiveInt | None = None
    """Words between spaces, at least so many."""

    uppercase: bool = False
    """No letter is lower case."""

    lowercase: bool = False
    """No letter is upper case."""

    json_keys: tuple[str, ...] | None = None
    """The answer is one JSON object with these keys, in a fence or not."""

    contains: tuple[str, ...] = ()
    """Texts that it holds, whatever their case."""

    lacks: tuple[str, ...] = ()
    """Texts that it does not hold, whatever their case."""

    starts_with: str | None = None
    ends_with: str | None = None

    most_sentences: PositiveInt | None = None
    """Ends of sentences (`.`, `!`, `?`), at most so many."""

    def holds(self, answer: str) -> bool:
        """Whether an answer keeps to all of it; an empty one keeps to nothing.

        >>> InstructionCheck(lines=2).holds("one\\n\\ntwo")
        True
        >>> InstructionCheck(json_keys=("a",)).holds('{"b": 1}')
        False
        """
        text = answer.strip()
        return bool(text) and all(self._verdicts(text))

    def _verdicts(self, text: str) -> list[bool]:
        lines, words = [line for line in text.splitlines() if line.strip()], text.split()
        folded = text.casefold()
        verdicts = [part.casefold() in folded for part in self.contains]
        verdicts += [part.casefold() not in folded for part in self.lacks]
        if self.lines is not None:
            verdicts.append(len(lines) == self.lines)
        if self.items is not None:
            verdicts.append(sum(bool(_ITEM.match(line)) for line in lines) == self.items)
        if self.most_words is not None:
            verdicts.append(len(words) <= self.most_words)
        if self.least_words is not None:
            verdicts.append(len(words) >= self.least_words)
        if self.most_sentences is not None:
            # A full stop within a number or a name ends no sentence.
            verdicts.append(len(re.findall(r"[.!?](?=\s|$)", text)) <= self.most_sentences)
        if self.uppercase:
            # The second comparison asks for a letter at all: digits alone are alike in either case.
            verdicts.append(text == text.upper() != text.lower())
        if self.lowercase:
            verdicts.append(text == text.lower() != text.upper())
        if self.starts_with is not None:
            verdicts.append(text.startswith(self.starts_with))
        if self.ends_with is not None:
            verdicts.append(text.endswith(self.ends_with))
        if self.json_keys is not None:
            verdicts.append(_has_keys(text, self.json_keys))
        return verdicts


def _has_keys(text: str, keys: tuple[str, ...]) -> bool:
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(keys) <= set(value)


def parse_check(value: Any, where: str) -> InstructionCheck:
    """A check as a line of a file has it.

    Raises:
        ConfigError: it is of another form, or names what is not known.
    """
    return parse_section(InstructionCheck, value, where=where, what="check")


INSTRUCTIONS = (
    ("lines", "Write exactly three lines about {}.", InstructionCheck(lines=3)),
    ("items", "List exactly four facts about {}, each after a dash.", InstructionCheck(items=4)),
    ("short", "Describe {} in at most ten words.", InstructionCheck(most_words=10)),
    (
        "sentence",
        "Describe {} in a single sentence.",
        InstructionCheck(most_sentences=1, least_words=4),
    ),
    (
        "uppercase",
        "Write one sentence about {} in capital letters only.",
        InstructionCheck(uppercase=True),
    ),
    (
        "lowercase",
        "Write one sentence about {} in lower case only.",
        InstructionCheck(lowercase=True),
    ),
    (
        "json",
        'Describe {} as a JSON object with the keys "name" and "use", and nothing else.',
        InstructionCheck(json_keys=("name", "use")),
    ),
    (
        "ending",
        'Write two sentences about {}, and end with the words "That is all."',
        InstructionCheck(ends_with="That is all."),
    ),
)
"""Name, form and check of each kind of instruction."""
