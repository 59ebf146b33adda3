"""How a model answers, counted: does it end, repeat itself, keep to the prompt's script, to the
general model's length, to what it was told.

Likelihoods say how well a model knows the answers of another; a model that answers well by that
figure may still never stop. So these answers are its own, greedy, and what is counted of them
needs no judge. Legend: an error is 1 where an answer has the fault, and 0 where it has not.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError
from toolkit.evaluate.answers import Answers
from toolkit.evaluate.config import (
    BEHAVIOR_TITLES,
    BehaviorCount,
    BehaviorSection,
    EvaluateSection,
)
from toolkit.evaluate.prompt_files import read_prompt_files
from toolkit.evaluate.prompts import (
    RetentionPrompt,
    instruction_prompts,
    retention_prompts,
    take_turns,
)
from toolkit.evaluate.sets import EvaluationSet
from toolkit.generate.chat_model import stops_of
from toolkit.generate.greedy import greedy_answers
from toolkit.stage import hash_json

_RUN_TOKENS = 4
_REPEATED = 0.3
_LEAST_RUNS = 8
"""Shorter answers have too few runs of tokens to speak of repetition."""

_LENGTH_FACTOR = 2.0
_LENGTH_ROOM = 8
"""Tokens by which a length may differ in any case: "Yes." is half of "Yes, it is." """

_SIGNS = (
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<|start_header_id|>",
)
"""Signs of chat templates, which stand in no answer even as plain text."""

_BATCH_ANSWERS = 96
"""Answers that grow side by side at most."""


@dataclass(frozen=True)
class BehaviorItem:
    """A prompt that is answered.

    Attributes:
        prompt: its text, kind and check.
        tokens: through the chat template.
        general_length: tokens of the general model's answer.
    """

    prompt: RetentionPrompt
    tokens: list[int]
    general_length: int


@dataclass(frozen=True)
class ModelAnswer:
    """An answer as it came.

    Attributes:
        tokens: of it, the end included.
        text: without special tokens.
        raw_text: with those that are no end.
        has_ended: whether its last token is an end.
    """

    tokens: list[int]
    text: str
    raw_text: str
    has_ended: bool


def behavior_prompts(evaluate: EvaluateSection, split: SplitName) -> list[RetentionPrompt]:
    """Prompts of one split: everyday ones and instructions in turn, or those of files."""
    section = evaluate.behavior or BehaviorSection()
    if section.files:
        return read_prompt_files(evaluate, "behavior", split)[: section.num_prompts]
    everyday, instructions = retention_prompts(split), instruction_prompts(split)
    # Two everyday prompts to each instruction.
    halves = take_turns([everyday[::2], everyday[1::2], instructions])
    return halves[: section.num_prompts]


def behavior_sets(
    section: BehaviorSection,
    evaluate: EvaluateSection,
    tokenizer: Any,
    prompts: Sequence[RetentionPrompt],
    general_answers: Answers,
    made_by: str,
) -> list[EvaluationSet]:
    """A set for each count; one pass of generation gives all of them.

    Args:
        section: roles and lengths.
        evaluate: the type of the arithmetic.
        tokenizer: of the general model.
        prompts: of the split.
        general_answers: the general model's, whose lengths are compared with.
        made_by: content hash of the general model.

    Raises:
        EvaluationError: there are no prompts.
    """
    if not prompts:
        raise EvaluationError("evaluate.behavior: there are no prompts of this split; give more.")
    items = [
        BehaviorItem(prompt, tokens, len(answer))
        for prompt, tokens, answer in zip(
            prompts, general_answers.prompts, general_answers.answers, strict=True
        )
    ]

    # An instruction shapes length, ending and script itself, so those are counted on plain prompts
    # wherever there are any.
    checked = [item for item in items if item.prompt.check is not None]
    plain = [item for item in items if item.prompt.check is None] or items
    counts: tuple[BehaviorCount, ...] = get_args(BehaviorCount)
    of_plain = [name for name in counts if name != "instructions"]
    note = general_answers.note
    sets = _sets_of_pass(of_plain, plain, section, evaluate, tokenizer, made_by, note)
    # Prompts of a single group have no interval, and a set of them would be refused.
    if len({item.prompt.group for item in checked}) > 1:
        sets += _sets_of_pass(
            ["instructions"], checked, section, evaluate, tokenizer, made_by, note
        )
    return sets


def _sets_of_pass(
    names: Sequence[BehaviorCount],
    items: Sequence[BehaviorItem],
    section: BehaviorSection,
    evaluate: EvaluateSection,
    tokenizer: Any,
    made_by: str,
    note: str,
) -> list[EvaluationSet]:
    """The sets that one pass of generation over some prompts gives."""
    prompts = [item.prompt for item in items]
    bearer = _bearer(names, section)
    checks = [p.check and p.check.model_dump(mode="json") for p in prompts]

    def together(model: Any, rows: Sequence[int]) -> Mapping[str, list[float]]:
        asked = [items[row] for row in rows]
        answers = answer_items(model, tokenizer, asked, section)
        pairs = list(zip(asked, answers, strict=True))
        return {
            BEHAVIOR_TITLES[name]: [float(has_fault(name, *pair)) for pair in pairs]
            for name in names
        }

    return [
        EvaluationSet(
            name=BEHAVIOR_TITLES[name],
            role=section.roles.get(name, "watch"),
            unit="error",
            ids=[f"prompt/{hash_json(prompt.text)[:12]}" for prompt in prompts],
            groups=[f"prompt/{prompt.group}" for prompt in prompts],
            sizes=[1.0] * len(items),
            # Tokens that are written, each by a pass of its own; counted with one set of the pass.
            costs=[
                len(item.tokens) + section.max_new_tokens if name == bearer else 0 for item in items
            ],
            content_hash=hash_json([[prompt.text for prompt in prompts], made_by]),
            score=lambda model, rows, name=name: together(model, rows)[BEHAVIOR_TITLES[name]],  # type: ignore[misc]
            settings_hash=hash_json(
                {
                    "count": name,
                    "new tokens": section.max_new_tokens,
                    "checks": checks,
                    "precision": evaluate.precision,
                }
            ),
            item_hashes=[hash_json(prompt.text) for prompt in prompts],
            score_together=together,
            tolerance=section.tolerance,
            note=note,
        )
        for name in names
    ]


def _bearer(names: Sequence[BehaviorCount], section: BehaviorSection) -> BehaviorCount:
    """The set whose items cost: the first that decides something, as it is asked first."""
    return next((n for n in names if section.roles.get(n, "watch") != "watch"), names[0])


def answer_items(
    model: Any, tokenizer: Any, items: Sequence[BehaviorItem], section: BehaviorSection
) -> list[ModelAnswer]:
    """Greedy answers of a model, prompts of like length side by side."""
    model.eval()
    stops = stops_of(model, tokenizer)
    order = sorted(range(len(items)), key=lambda n: (len(items[n].tokens), n))
    answers: dict[int, ModelAnswer] = {}
    for start in range(0, len(order), _BATCH_ANSWERS):
        batch = order[start : start + _BATCH_ANSWERS]
        prompts = [items[n].tokens for n in batch]
        for number, tokens in zip(
            batch, greedy_answers(model, stops, prompts, section.max_new_tokens), strict=True
        ):
            answers[number] = _answer_of(tokenizer, tokens, stops)
    return [answers[number] for number in range(len(items))]


def _answer_of(tokenizer: Any, tokens: list[int], stops: Collection[int]) -> ModelAnswer:
    has_ended = bool(tokens) and tokens[-1] in stops
    # The end itself is a special token, and would count as markup in every answer that is whole.
    said = tokens[:-1] if has_ended else tokens
    return ModelAnswer(
        tokens=tokens,
        text=str(tokenizer.decode(said, skip_special_tokens=True)),
        raw_text=str(tokenizer.decode(said, skip_special_tokens=False)),
        has_ended=has_ended,
    )


def has_fault(name: BehaviorCount, item: BehaviorItem, answer: ModelAnswer) -> bool:
    """Whether an answer has a fault; see `BehaviorSection` for what each is."""
    match name:
        case "unfinished":
            return not answer.has_ended
        case "repetitive":
            return _is_repetitive(answer.tokens)
        case "length":
            return _is_of_other_length(len(answer.tokens), item.general_length)
        case "script":
            return _is_of_other_script(answer.text, item.prompt.text)
        case "markup":
            return _has_markup(answer)
        case "instructions":
            return item.prompt.check is not None and not item.prompt.check.holds(answer.text)


def _is_repetitive(tokens: Sequence[int]) -> bool:
    """Whether three tenths of the runs of four tokens were there before.

    >>> _is_repetitive([1, 2, 3] * 8), _is_repetitive(list(range(24))), _is_repetitive([1] * 6)
    (True, False, False)
    """
    # Runs instead of single tokens, which any long answer repeats.
    runs = [tuple(tokens[n : n + _RUN_TOKENS]) for n in range(len(tokens) - _RUN_TOKENS + 1)]
    return len(runs) >= _LEAST_RUNS and 1.0 - len(set(runs)) / len(runs) >= _REPEATED


def _is_of_other_length(length: int, expected: int) -> bool:
    """
    >>> _is_of_other_length(50, 20), _is_of_other_length(30, 20), _is_of_other_length(1, 6)
    (True, False, False)
    """
    if abs(length - expected) <= _LENGTH_ROOM:
        return False
    return length > _LENGTH_FACTOR * expected or length * _LENGTH_FACTOR < expected


def _is_of_other_script(text: str, prompt: str) -> bool:
    """Whether most letters are of a script that the prompt has no letter of.

    >>> _is_of_other_script("Это море.", "What is this?"), _is_of_other_script("Yes.", "Ist es so?")
    (True, False)
    """
    scripts, known = _scripts(text), _scripts(prompt)
    total = scripts.total()
    strange = sum(count for script, count in scripts.items() if script not in known)
    return total > 0 and bool(known) and strange > total / 2


def _scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of their names tells it: LATIN, CYRILLIC, CJK."""
    return Counter(
        unicodedata.name(letter, "UNKNOWN").split()[0] for letter in text if letter.isalpha()
    )


def _has_markup(answer: ModelAnswer) -> bool:
    """Whether special tokens stand within the answer, a role's sign, or half a thinking block."""
    if answer.raw_text != answer.text and not _is_closed_thought(answer.raw_text):
        return True
    return answer.text.count("<think>") != answer.text.count("</think>") or any(
        sign in answer.text for sign in _SIGNS
    )


def _is_closed_thought(raw_text: str) -> bool:
    """Whether special tokens of the text are a whole thinking block, which some tokenizers have."""
    return "<think>" in raw_text and raw_text.count("<think>") == raw_text.count("</think>")
