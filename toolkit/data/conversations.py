"""Conversations through a model's chat template: which tokens the assistant says.

A template that marks what is generated (`{% generation %}`) is believed. For others the place of an
answer is proven by rendering the whole conversation again with another text in the answer's place:
what differs is the answer. Renderings of beginnings prove only where the prompt ends and how a turn
ends, each compared with the whole before it is used, since many templates render the last turn
otherwise (an empty block of thinking, another sign at the end).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bounded import BoundError, bounded_template
from toolkit.errors import DataError
from toolkit.stage import load_json

Message = Mapping[str, object]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TELLING_CHARACTERS = 16
"""Shorter texts of others may stand in an answer's frame by chance, such as "think"."""

CHANGED = "answers are learned without parts that the chat template leaves out, such as thinking"
LEFT_OUT = "answers are not in what the chat template makes of their conversations"
WITHOUT_END = "answers end with no special token that is learned, so the model may not stop"
"""What is counted of answers, as the end of the sentence that says so."""


class ConversationError(DataError):
    """A conversation from which nothing can be learned safely; says why, not where it stands."""


@dataclass(frozen=True)
class LearnedConversation:
    """Tokens of a conversation through its template.

    Attributes:
        tokens: all of them.
        is_target: which of them the assistant says, ends of its turns included.
        remarks: `CHANGED`, `LEFT_OUT` and `WITHOUT_END`, counted over its answers.
    """

    tokens: list[int]
    is_target: list[bool]
    remarks: Counter[str]


@dataclass(frozen=True)
class _Span:
    """Characters `[start, stop)` of an answer, and to `end` what closes its turn."""

    start: int
    stop: int
    end: int


class ConversationEncoder:
    """Renders conversations with one tokenizer's template and finds what the assistant says.

    Args:
        tokenizer: of transformers.
        folder: of the model, whose `generation_config.json` names further tokens that end a turn.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                f"{folder or tokenizer.name_or_path}: has no chat template, and `messages_field` "
                "needs one; take an instruct model, or put a chat_template.jinja beside its "
                "tokenizer."
            ) from error
        self._has_marks = bool(_GENERATION_MARK.search(template))
        added_tokens = {
            number: str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if str(token).strip()  # blanks of their own are text
        }
        # Longest first, as an alternation takes the first that fits: <|im_end|> before <|im|>.
        longest_first = sorted(added_tokens.values(), key=len, reverse=True)
        self._sign = (
            re.compile(rf"\s*(?:{'|'.join(map(re.escape, longest_first))})")
            if longest_first
            else None
        )
        self._sign_ids = set(added_tokens)
        self._end_signs = {
            added_tokens[n] for n in _end_ids(tokenizer, folder) if n in added_tokens
        }

    def encode(self, messages: Sequence[Message]) -> LearnedConversation:
        """
        Raises:
            ConversationError: the template raises, an answer's place cannot be proven, or nothing
                is to be learned.
        """
        if self._has_marks:
            learned = self._encode_by_marks(messages)
        else:
            learned = self._encode_by_rendering(messages)
        if not any(learned.is_target):
            raise ConversationError(
                "nothing of it would be learned: the chat template leaves out every answer."
            )
        return learned

    def _encode_by_marks(self, messages: Sequence[Message]) -> LearnedConversation:
        try:
            with bounded_template():
                rendered_tokens = self._tokenizer.apply_chat_template(
                    list(messages), return_dict=True, return_assistant_tokens_mask=True
                )
        except BoundError:
            raise  # for the next conversation it would take as long
        except Exception as error:  # a template's own code may raise anything
            raise ConversationError(_raised(error)) from error
        is_target = [bool(value) for value in rendered_tokens["assistant_masks"]]
        return LearnedConversation(list(rendered_tokens["input_ids"]), is_target, Counter())

    def _encode_by_rendering(self, messages: Sequence[Message]) -> LearnedConversation:
        rendering = _Rendering(self._tokenizer, messages)
        answer_remarks: Counter[str] = Counter()
        answer_spans: list[_Span] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            region = rendering.region(number)
            if region is None:
                answer_remarks[LEFT_OUT] += 1
                continue
            last_end = answer_spans[-1].end if answer_spans else 0
            answer_spans.append(self._span(rendering, number, *region, after=last_end))
            if (
                str(message["content"]).strip()
                not in rendering.whole[last_end : answer_spans[-1].stop]
            ):
                answer_remarks[CHANGED] += 1
        try:
            encoded = self._tokenizer(
                rendering.whole, add_special_tokens=False, return_offsets_mapping=True
            )
        except NotImplementedError as error:
            raise ConversationError(
                "the tokenizer does not say where in a text its tokens stand; it needs a "
                "tokenizer.json, or a chat template with {% generation %} markers."
            ) from error
        tokens, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        is_target = [False] * len(tokens)
        token_number = 0
        # Answers and tokens are both in order, so one walk over the tokens serves all answers.
        for span in answer_spans:
            has_end = False
            while token_number < len(tokens) and offsets[token_number][1] <= span.start:
                token_number += 1
            while token_number < len(tokens) and offsets[token_number][0] < span.end:
                token_start, token_end = offsets[token_number]
                is_target[token_number] = _is_said(token_start, token_end, span, rendering.whole)
                is_end = tokens[token_number] in self._sign_ids and token_start >= span.stop
                has_end |= is_end and is_target[token_number]
                token_number += 1
            answer_remarks[WITHOUT_END] += not has_end
        # The plus sign drops remarks that were counted zero times.
        return LearnedConversation(tokens, is_target, +answer_remarks)

    def _span(
        self, rendering: _Rendering, number: int, start: int, stop: int, *, after: int
    ) -> _Span:
        """From where the prompt for the answer ends to where its turn does."""
        prompt_end = rendering.prompt_end(number, start)
        if prompt_end is not None and after <= prompt_end <= stop:
            start = prompt_end
        else:
            start = max(after, rendering.extended_start(number, start))
        text_behind = rendering.whole[stop:]
        turn_end = rendering.common_tail(number, text_behind)
        sign_match = self._sign.match(text_behind) if self._sign is not None else None
        if sign_match is not None and turn_end < sign_match.end():
            # The whole has another sign here than the beginning alone has at its end.
            if sign_match.group().strip() in self._end_signs:
                turn_end = sign_match.end()
            elif (
                common_end := rendering.common_tail_of_others(number, text_behind)
            ) >= sign_match.end():
                turn_end = common_end
        return _Span(start, stop, stop + turn_end)


def _is_said(begin: int, end: int, span: _Span, text: str) -> bool:
    """A token counts where it holds a character of the answer and none of the header but blanks, or
    lies within the end of the turn."""
    if begin < span.start and text[begin : span.start].strip():
        return False
    return (begin < span.stop and end > span.start) or end <= span.end


class _Rendering:
    """A conversation as its template renders it, whole and in parts, and with other texts in it."""

    def __init__(self, tokenizer: Any, messages: Sequence[Message]) -> None:
        self._tokenizer, self._messages = tokenizer, messages
        self._beginnings: dict[tuple[int, bool], str | None] = {}
        self.whole = self._render(messages)
        # They differ in their first and last letters, so that no text shares these with both.
        # Two marks: what differs between the whole and one of them may by chance agree at its ends.
        mark_number = 0
        while f"Q{mark_number}z" in self.whole or f"w{mark_number}K" in self.whole:
            mark_number += 1
        self._marks = (f"Q{mark_number}z", f"w{mark_number}K")

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            with bounded_template():
                rendered = self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompt
                )
        except BoundError:
            raise
        except Exception as error:  # a template's own code may raise anything
            raise ConversationError(_raised(error)) from error
        return str(rendered)

    def _render_if_possible(self, messages: Sequence[Message], prompt: bool = False) -> str | None:
        """None where the template raises for a part of the conversation, or there is none."""
        try:
            return self._render(messages, prompt) if messages else None
        except ConversationError:
            return None

    def _before(self, number: int, prompt: bool = False) -> str | None:
        """What comes before a message, rendered alone."""
        beginning_key = (number, prompt)
        if beginning_key not in self._beginnings:
            rendered_beginning = self._render_if_possible(self._messages[:number], prompt)
            self._beginnings[beginning_key] = rendered_beginning
        return self._beginnings[beginning_key]

    def _marked(self, number: int, mark: str, field: str = "content") -> list[Message]:
        messages = list(self._messages)
        messages[number] = {**messages[number], field: mark}
        return messages

    def region(self, number: int, field: str = "content") -> tuple[int, int] | None:
        """Characters of the whole that depend on a message's text; None where none do.

        Raises:
            ConversationError: they cannot be told from what others say.
        """
        change_starts, change_stops = [], []
        for mark in self._marks:
            marked_rendering = self._render(self._marked(number, mark, field))
            if marked_rendering == self.whole:
                continue
            if (num_written := marked_rendering.count(mark)) > 1:
                raise ConversationError(
                    f"the chat template writes message {number + 1} {num_written} times, so "
                    "that what the assistant says cannot be told from the prompt; take a template "
                    "with {% generation %} markers."
                )
            start = _common_prefix(self.whole, marked_rendering)
            change_starts.append(start)
            characters_left = min(len(self.whole), len(marked_rendering)) - start
            change_stops.append(
                # At most what is left behind the start: where the texts share a middle, it would
                # count twice.
                len(self.whole) - min(characters_left, _common_suffix(self.whole, marked_rendering))
            )
        if not change_starts:
            return None
        start, stop = min(change_starts), max(change_stops)
        self._refuse_foreign(number, self.whole[start:stop])
        return start, stop

    def _refuse_foreign(self, number: int, said: str) -> None:
        own_text = " ".join(str(value) for value in self._messages[number].values())
        texts = [str(message["content"]).strip() for message in self._messages]
        foreign_texts = [text for text in texts if len(text) >= _TELLING_CHARACTERS]
        if header := self._header(number).strip():
            foreign_texts.append(header)
        if any(text in said and text not in own_text for text in foreign_texts):
            raise ConversationError(
                f"the chat template changes more than message {number + 1} when its text changes, "
                "so that what the assistant says cannot be told from the prompt; take a template "
                "with {% generation %} markers."
            )

    def _header(self, number: int) -> str:
        """What is added to ask for an answer; empty where nothing is."""
        with_prompt, without_prompt = self._before(number, prompt=True), self._before(number)
        if with_prompt is None or without_prompt is None:
            return ""
        return with_prompt[_common_prefix(with_prompt, without_prompt) :]

    def prompt_end(self, number: int, start: int) -> int | None:
        """Where the prompt for an answer ends in the whole, if the whole begins with it.

        Where nothing is added to ask for an answer, what comes before is the prompt, if no more
        than blanks lie between it and the answer, at `start`.
        """
        with_prompt = self._before(number, prompt=True)
        if with_prompt is None or not self.whole.startswith(with_prompt):
            return None
        if not self._header(number) and self.whole[len(with_prompt) : start].strip():
            return None
        return len(with_prompt)

    def extended_start(self, number: int, start: int) -> int:
        """The start of an answer moved back over its other fields (thinking), and over its own
        first characters where the rendering with a mark has the same ones."""
        message = self._messages[number]
        for field, value in message.items():
            if field not in {"role", "content", "name"} and isinstance(value, str) and value:
                field_region = self.region(number, field)
                if field_region is not None:
                    start = min(start, field_region[0])
        # A letter or two may be alike by chance; beyond 64 the start would have been found before.
        answer_text = str(message["content"]).strip()
        for length in range(min(len(answer_text), start, 64), 2, -1):
            if self.whole[start - length : start] == answer_text[:length]:
                return start - length
        return start

    def common_tail(self, number: int, rest: str) -> int:
        """How much of `rest` also follows the answer where it is the last message."""
        if number == len(self._messages) - 1:
            return len(rest)
        return _common_prefix(rest, self._tail(number) or "")

    def common_tail_of_others(self, number: int, rest: str) -> int:
        """How much of `rest` also follows a neighbor that the assistant does not say."""
        neighbors = [n for n in (number - 1, number + 1) if 0 <= n < len(self._messages)]
        tails = [self._tail(n) for n in neighbors if self._messages[n]["role"] != "assistant"]
        return max((_common_prefix(rest, tail) for tail in tails if tail), default=0)

    def _tail(self, number: int) -> str | None:
        """What follows a message where the conversation ends with it."""
        first_tail, second_tail = (
            self._render_if_possible(self._marked(number, mark)[: number + 1])
            for mark in self._marks
        )
        if first_tail is None or second_tail is None or first_tail == second_tail:
            return None
        return first_tail[len(first_tail) - _common_suffix(first_tail, second_tail) :]


def _end_ids(tokenizer: Any, folder: Path | None) -> set[int]:
    """Ids that end a generation, by the tokenizer's settings and the model's."""
    end_ids = {tokenizer.eos_token_id}
    config_path = folder / "generation_config.json" if folder is not None else None
    if config_path is not None and config_path.is_file():
        named_ids = load_json(config_path).get("eos_token_id")
        end_ids |= set(named_ids) if isinstance(named_ids, list) else {named_ids}
    return {number for number in end_ids if isinstance(number, int)}


def _raised(error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
    return f"the chat template does not take it ({first_line})."


def _common_prefix(one: str, other: str) -> int:
    """
    >>> _common_prefix("abcd", "abx")
    2
    """
    known_equal, most_equal = 0, min(len(one), len(other))
    # Comparing slices is far quicker than walking through characters.
    while known_equal < most_equal:
        tried_length = (known_equal + most_equal + 1) // 2
        if one[known_equal:tried_length] == other[known_equal:tried_length]:
            known_equal = tried_length
        else:
            most_equal = tried_length - 1
    return known_equal


def _common_suffix(one: str, other: str) -> int:
    """
    >>> _common_suffix("abcd", "xcd")
    2
    """
    return _common_prefix(one[::-1], other[::-1])
