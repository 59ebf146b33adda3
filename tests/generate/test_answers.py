"""Batched answers are those that each prompt gets alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.talkative import TALKATIVE
from toolkit.errors import EvaluationError
from toolkit.generate.answers import answer_batch, answer_rows
from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.generate.greedy import drawn_answers, greedy_answers
from toolkit.generate.logits import check_logits, temper_logits
from toolkit.generate.prompts import GENERAL_PROMPTS
from toolkit.generate.stream import SamplingSettings, pick, stream_answer

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


def test_a_long_prompt_costs_the_others_nothing(tmp_path: Path, make_model: Callable[..., Path]):
    speaker = load_speaker(make_model(tmp_path / "m", seed=3, **TALKATIVE))
    expected = answer_batch(speaker, PROMPTS, 12)
    too_long = "revenue " * 300
    words = "revenue " * 100
    while len(speaker.encode([{"role": "user", "content": words}])) < 250:
        words += "revenue "
    length = len(speaker.encode([{"role": "user", "content": words}]))
    found = answer_batch(speaker, [PROMPTS[0], too_long, *PROMPTS[1:], words], 12)
    assert [found[0], *found[2:4]] == expected
    assert found[1].startswith("(no answer: the prompt has ")
    assert found[1].endswith(" tokens, and the model looks at 256 at most)")
    one = {"role": "user", "content": words}
    alone = "".join(stream_answer(speaker, [one], SamplingSettings(256 - length)))
    assert found[4] == f"{alone.strip()} …"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("together", [True, False])
def test_no_answer_is_made_up_of_logits_that_are_no_numbers(
    tmp_path: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    together: bool,
):
    speaker = load_speaker(make_model(tmp_path / "m", **TALKATIVE))
    monkeypatch.setattr("toolkit.generate.greedy._answers_together", lambda _: together)
    with torch.no_grad():
        speaker.model.model.norm.weight[0] = value
    prompts = [speaker.encode([{"role": "user", "content": "debt"}])]
    with pytest.raises(EvaluationError, match="logits are not numbers"):
        greedy_answers(speaker.model, speaker.stops, prompts, 4)
    with pytest.raises(EvaluationError, match="logits are not numbers"):
        drawn_answers(speaker.model, speaker.stops, prompts, 4, temperature=1.0, units=_half)
    with pytest.raises(EvaluationError, match="logits are not numbers"):
        list(stream_answer(speaker, [{"role": "user", "content": "debt"}], SamplingSettings()))


def _half(_row: int, _place: int) -> float:
    return 0.5


def test_temperatures_near_zero_take_the_likeliest_token():
    logits = torch.tensor([[1.0, 3.0, 2.0], [-3.0, -2.0, -torch.inf], [0.0, -1.0, -1.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(temper_logits(logits, 1e-40), expected)
    assert torch.equal(temper_logits(logits.double(), 5e-324), expected.double())
    assert torch.equal(temper_logits(logits, 0.5), (logits / 0.5).softmax(-1))
    settings = SamplingSettings(temperature=1e-40)
    assert pick(logits[0], settings, torch.Generator().manual_seed(0)) == 1
    assert torch.equal(check_logits(logits), logits)  # minus infinity is a token left out
