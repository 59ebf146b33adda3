"""What is learned of a conversation, by the manner of its template; templates are our own."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from toolkit.data.conversations import (
    CHANGED,
    LEFT_OUT,
    WITHOUT_END,
    ConversationEncoder,
    ConversationError,
)
from toolkit.errors import DataError

SIGNS = ["<s>", "<|t|>", "<|e|>", "<|r|>", "<|u|>", "<|a|>", "<|ch|>", "<|m|>"]
SIGNS += ["<think>", "</think>"]
ASK = "{% if add_generation_prompt %}<|t|>assistant\n{% endif %}"
CUT = "m.content.split('</think>')[-1].lstrip('\n')"
PLAIN = "{% for m in messages %}<|t|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}" + ASK
SYSTEM = "{% if messages[0].role != 'system' %}<|t|>system\nBe of help.<|e|>\n{% endif %}"
EMPTY_THINKING = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
OTHER_END = "{% if m.role == 'assistant' and loop.last %}<|r|>{% else %}<|e|>{% endif %}"
CHANNELS = (
    "{% for m in messages %}<|t|>{{ m.role }}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|ch|>analysis<|m|>{{ m.thinking }}<|e|><|t|>assistant"
    "{% endif %}<|ch|>final<|m|>{{ m.content }}{% if loop.last %}<|r|>{% else %}<|e|>{% endif %}"
    "{% else %}<|m|>{{ m.content }}<|e|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|t|>assistant{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|t|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|e|>{% endgeneration %}{% else %}{{ m.content }}<|e|>{% endif %}\n{% endfor %}"
)
ONE, TWO = "valves drive it", "seals stop it"
QUESTIONS = [{"role": "user", "content": text} for text in ("what turns", "and what stops")]


def talk(*answers: str, **more: Any) -> list[dict[str, Any]]:
    turns = zip(QUESTIONS, answers, strict=False)
    return [
        message
        for question, answer in turns
        for message in (question, {"role": "assistant", "content": answer, **more})
    ]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    own = copy.deepcopy(tiny_tokenizer)
    own.add_special_tokens({"additional_special_tokens": SIGNS})
    return own


def learned(tokenizer: Any, template: str, messages: list[dict[str, Any]]) -> list[str]:
    """Stretches of text that are targets, in order."""
    tokenizer.chat_template = template
    found = ConversationEncoder(tokenizer).encode(messages)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(found.tokens) == whole
    groups = itertools.groupby(
        zip(found.tokens, found.is_target, strict=True), key=lambda pair: pair[1]
    )
    return [tokenizer.decode([token for token, _ in own]) for is_said, own in groups if is_said]


TEMPLATES = {
    "every turn alike": (PLAIN, [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n"]),
    "a system prompt of its own": (SYSTEM + PLAIN, [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n"]),
    "an empty block of thinking in the last turn": (
        PLAIN.replace("{{ m.content }}", EMPTY_THINKING + "{{ m.content }}"),
        [f"{ONE}<|e|>\n", f"<think>\n\n</think>\n\n{TWO}<|e|>\n"],
    ),
    "another sign at the end of all": (
        PLAIN.replace("{% endif %}", "{% else %}<|r|>{% endif %}"),
        [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n<|r|>"],
    ),
    "another sign at the end of the last turn": (
        PLAIN.replace("<|e|>\n", OTHER_END),
        [f"{ONE}<|e|>", f"{TWO}<|r|>"],
    ),
    "the prompt opens thinking": (
        PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
        [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n"],
    ),
    "the prompt closes thinking": (
        PLAIN.replace("assistant\n{% endif %}", "assistant\n<think></think>\n{% endif %}"),
        [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n"],
    ),
    "no prompt for an answer": (PLAIN.removesuffix(ASK), [f"{ONE}<|e|>\n", f"{TWO}<|e|>\n"]),
    "signs of roles, none of ends": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|u|>{% else %}<|a|>{% endif %}"
        "{{ '\n' + m.content }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
        [f"\n{ONE}", f"\n{TWO}"],
    ),
    "the end of the assistant's turns alone": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}<|a|>"
        "{{ m.content }}<|e|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|a|><think>\n{% endif %}",
        [f"{ONE}<|e|>", f"{TWO}<|e|>"],
    ),
    "instructions in brackets": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]{% else %} "
        "{{ m.content.strip() }}<|e|>{% endif %}{% endfor %}",
        [f" {ONE}<|e|>", f" {TWO}<|e|>"],
    ),
    "channels": (
        CHANNELS,
        [f"<|ch|>final<|m|>{ONE}<|e|>", f"<|ch|>final<|m|>{TWO}<|r|>"],
    ),
    "markers": (MARKED, [f"{ONE}<|e|>", f"{TWO}<|e|>"]),
    "letters are changed": (
        PLAIN.replace("m.content", "m.content.upper()"),
        [f"{ONE.upper()}<|e|>\n", f"{TWO.upper()}<|e|>\n"],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_ends_of_turns_are_learned(tokenizer, name: str):
    template, expected = TEMPLATES[name]
    assert learned(tokenizer, template, talk(ONE, TWO)) == expected
    assert learned(tokenizer, template, talk(TWO))[-1] == expected[-1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_s_words_in_the_question_are_not_learned(tokenizer, name: str):
    template, expected = TEMPLATES[name]
    messages = talk(ONE, TWO)
    for question, answer in ((0, ONE), (2, TWO)):
        messages[question] = {"role": "user", "content": f"say {answer} now"}
    assert learned(tokenizer, template, messages) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_may_begin_with_the_assistant(tokenizer, name: str):
    template, expected = TEMPLATES[name]
    messages = [{"role": "assistant", "content": ONE}, *QUESTIONS[:1], *talk("", TWO)[-1:]]
    found = learned(tokenizer, template, messages)
    # Before the first message no prompt can be rendered, so that its frame is not learned.
    assert found[0].lstrip() == expected[0].removeprefix("<|ch|>final<|m|>").lstrip()
    assert found[1:] == expected[1:]


THINKING = f"<think>\nmm mm\n</think>\n\n{ONE}"
THOUGHTS = {
    "kept": (PLAIN, [f"{THINKING}<|e|>\n"], 0),
    "taken out": (PLAIN.replace("m.content", CUT), [f"{ONE}<|e|>\n"], 1),
    "kept, and the prompt opens them": (
        PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
        [f"mm mm\n</think>\n\n{ONE}<|e|>\n"],
        0,
    ),
    "kept, and the prompt opens and closes them": (
        PLAIN.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}"),
        [f"{THINKING}<|e|>\n"],
        0,
    ),
    "taken out, and the prompt opens them": (
        PLAIN.replace("m.content", CUT).replace(
            "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
        ),
        [f"{ONE}<|e|>\n"],
        1,
    ),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_thinking_within_the_answer(tokenizer, name: str):
    template, expected, changed = THOUGHTS[name]
    messages = talk(THINKING)
    assert learned(tokenizer, template, messages) == expected
    assert ConversationEncoder(tokenizer).encode(messages).remarks[CHANGED] == changed


def test_thinking_is_taken_out_of_earlier_turns_only(tokenizer):
    body = f"{{% if loop.last %}}{{{{ m.content }}}}{{% else %}}{{{{ {CUT} }}}}{{% endif %}}"
    template = PLAIN.replace("{{ m.content }}", body)
    found = learned(tokenizer, template, talk(THINKING, THINKING))
    assert found == [f"{ONE}<|e|>\n", f"{THINKING}<|e|>\n"]


@pytest.mark.parametrize("opens", [True, False])
def test_thinking_in_a_field_of_its_own(tokenizer, opens: bool):
    prompt = "assistant\n{% endif %}" if opens else "assistant\n<think></think>{% endif %}"
    body = (
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
        "{{ m.content }}"
    )
    template = PLAIN.replace("{{ m.content }}", body).replace("assistant\n{% endif %}", prompt)
    (found,) = learned(tokenizer, template, talk(ONE, reasoning_content="mm mm"))
    assert found.endswith(f"mm mm\n</think>\n\n{ONE}<|e|>\n")
    assert "assistant" not in found


def test_channels_with_thinking(tokenizer):
    (found,) = learned(tokenizer, CHANNELS, talk(ONE, thinking="mm mm"))
    first = "<|ch|>analysis<|m|>mm mm<|e|>"
    assert found == f"{first}<|t|>assistant<|ch|>final<|m|>{ONE}<|r|>"


def test_calls_of_tools_are_learned(tokenizer):
    template = PLAIN.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.name }}</call>{% endfor %}",
    )
    messages = talk(ONE, TWO, tool_calls=[{"name": "look_up"}])
    assert learned(tokenizer, template, messages) == [
        f"{text}<call>look_up</call><|e|>\n" for text in (ONE, TWO)
    ]


def test_empty_answers_teach_to_stop(tokenizer):
    assert learned(tokenizer, PLAIN, talk("", TWO)) == ["<|e|>\n", f"{TWO}<|e|>\n"]


REFUSED = {
    "answers twice": (PLAIN + "{{ messages[-1].content }}", "writes message 2 2 times"),
    "raises": ("{{ raise_exception('no such role') }}", "does not take it .no such role"),
    "answers are left out": (
        PLAIN.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}"),
        "leaves out every answer",
    ),
    "the prompt depends on the answer": (
        "{{ messages[-1].content | length }}<|t|>user\n{{ messages[0].content }} of it all<|e|>\n"
        "<|t|>assistant\n{{ messages[1].content }}<|e|>",
        "changes more than message 2",
    ),
    "markers around nothing": (MARKED.replace("'assistant'", "'model'"), "nothing of it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused(tokenizer, name: str):
    template, message = REFUSED[name]
    messages = [{"role": "user", "content": "what turns the gear of this"}, *talk(ONE)[1:]]
    with pytest.raises(ConversationError, match=message):
        learned(tokenizer, template, messages)


def test_answers_without_an_end_are_counted(tokenizer, tmp_path: Path):
    template, _ = TEMPLATES["signs of roles, none of ends"]
    tokenizer.chat_template = template
    messages = talk(ONE, TWO)
    assert ConversationEncoder(tokenizer).encode(messages).remarks == {WITHOUT_END: 2}
    # Where the model's settings say that the next role's sign ends a generation, it is learned.
    ids = tokenizer.convert_tokens_to_ids(["<|e|>", "<|u|>"])
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
    found = ConversationEncoder(tokenizer, tmp_path).encode(messages)
    assert found.remarks == {WITHOUT_END: 1}
    said = [token for token, own in zip(found.tokens, found.is_target, strict=True) if own]
    assert tokenizer.decode(said) == f"\n{ONE}<|u|>\n{TWO}"


def test_an_earlier_answer_may_be_left_out(tokenizer):
    tokenizer.chat_template = PLAIN.replace("in messages", "in messages[-2:]")
    assert ConversationEncoder(tokenizer).encode(talk(ONE, TWO)).remarks == {LEFT_OUT: 1}


def test_a_tokenizer_without_a_template_is_named(tokenizer, tmp_path: Path):
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        ConversationEncoder(tokenizer, tmp_path)
