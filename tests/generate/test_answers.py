"""Batched answers are those that each prompt gets alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.talkative import TALKATIVE
from toolkit.generate.answers import answer_batch, answer_rows
from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.generate.prompts import GENERAL_PROMPTS
from toolkit.generate.stream import SamplingSettings, stream_answer

PROMPTS = ("the company", "net income increased in 2019. the bank", "debt")


def test_a_batch_is_each_prompt_alone(tmp_path: Path, make_model: Callable[..., Path]):
    """Padding at the left end changes nothing: the same answers, whatever their neighbors."""
    speaker = load_speaker(make_model(tmp_path / "m", seed=3, **TALKATIVE))
    alone = [
        "".join(stream_answer(speaker, [{"role": "user", "content": prompt}], SamplingSettings(12)))
        for prompt in PROMPTS
    ]
    assert len(set(alone)) == len(PROMPTS)
    assert answer_batch(speaker, PROMPTS, 12) == [f"{text.strip()} …" for text in alone]
    assert answer_batch(speaker, [], 12) == []


def test_an_answer_ends_where_the_model_says(tmp_path: Path, make_model: Callable[..., Path]):
    speaker = load_speaker(make_model(tmp_path / "m", seed=3, **TALKATIVE))
    one = answer_batch(speaker, PROMPTS[:1], 1)[0].removesuffix(" …")
    stop = speaker.tokenizer(one, add_special_tokens=False)["input_ids"]
    every = frozenset(range(320)) if len(stop) != 1 else frozenset(stop)
    stopping = Speaker("x", speaker.model, speaker.tokenizer, every, speaker.template)
    answers = answer_batch(stopping, PROMPTS, 12)
    assert answers[0] == ""  # nothing, and no mark of having been cut


def test_rows(two_models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    base, tuned = two_models
    rows = answer_rows({"general": base, "merge": tuned}, PROMPTS, new_tokens=8)
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert rows[0]["general"] == answer_batch(load_speaker(base), PROMPTS, 8)[0]
    assert all(set(row) == {"prompt", "general", "merge"} for row in rows)
    assert "no chat template" not in capsys.readouterr().out


def test_without_a_template_prompts_are_continued(
    two_models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    base, tuned = two_models
    (tuned / "chat_template.jinja").unlink()
    # the first model's template serves the second too
    asked = answer_rows({"general": base, "merge": tuned}, PROMPTS, new_tokens=8)
    (base / "chat_template.jinja").unlink()
    continued = answer_rows({"general": base, "merge": tuned}, PROMPTS, new_tokens=8)
    assert "continued as plain text" in capsys.readouterr().out
    assert [row["merge"] for row in asked] != [row["merge"] for row in continued]


def test_our_prompts():
    assert len(set(GENERAL_PROMPTS)) == 4
