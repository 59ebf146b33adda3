"""Answers token by token: as transformers gives them, the same again with the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tests.helpers.talkative import TALKATIVE
from toolkit.errors import CheckpointError, ConfigError
from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.generate.stream import SamplingSettings, pick, stream_answer

USER = [{"role": "user", "content": "the board expects revenue"}]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Speaker:
    return load_speaker(make_model(tmp_path_factory.mktemp("model"), seed=5, **TALKATIVE))


def test_greedy_as_transformers(speaker: Speaker):
    tokens = speaker.encode(USER)
    assert speaker.decode(tokens) == "user: the board expects revenue\n"  # the template's words
    settings = GenerationConfig(
        max_new_tokens=20, do_sample=False, eos_token_id=[0], pad_token_id=0
    )
    given = torch.tensor([tokens])
    whole = speaker.model.generate(
        given, attention_mask=torch.ones_like(given), generation_config=settings
    )
    theirs = speaker.decode(whole[0, len(tokens) :].tolist())
    assert "".join(stream_answer(speaker, USER, SamplingSettings(new_tokens=20))) == theirs
    assert theirs


def test_the_same_seed_gives_the_same_answer(speaker: Speaker):
    def answer(seed: int) -> str:
        return "".join(
            stream_answer(speaker, USER, SamplingSettings(20, temperature=1.0, seed=seed))
        )

    torch.manual_seed(1)
    first = answer(1)
    torch.manual_seed(2)  # the process's own seed has no part in it
    assert answer(1) == first
    assert answer(2) != first


def test_it_stops_where_the_model_says(speaker: Speaker):
    tokens = []
    for _ in stream_answer(speaker, USER, SamplingSettings(new_tokens=5)):
        tokens.append(1)
    given = torch.tensor([speaker.encode(USER)])
    first = int(speaker.model(given).logits[0, -1].argmax())
    stopping = Speaker("x", speaker.model, speaker.tokenizer, frozenset({first}), speaker.template)
    assert tokens
    assert list(stream_answer(stopping, USER, SamplingSettings(new_tokens=5))) == []


def test_half_a_character_waits_for_the_rest(speaker: Speaker, monkeypatch: pytest.MonkeyPatch):
    euro = speaker.tokenizer("€", add_special_tokens=False)["input_ids"]
    assert len(euro) > 1
    monkeypatch.setattr("toolkit.generate.stream._next_tokens", lambda *_: iter([*euro, *euro]))
    assert list(stream_answer(speaker, USER, SamplingSettings())) == ["€", "€"]


def test_picking():
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    assert pick(logits, SamplingSettings(), generator) == 0

    def shares(settings: SamplingSettings) -> list[float]:
        drawn = [pick(logits, settings, generator) for _ in range(2000)]
        return [drawn.count(token) / 2000 for token in range(3)]

    # four standard errors of 2,000 draws: at most 0.045
    assert shares(SamplingSettings(temperature=1.0)) == pytest.approx([0.6, 0.3, 0.1], abs=0.045)
    # 0.6 does not reach 0.7, so the second is in and the third is not: 2/3 and 1/3
    narrow = shares(SamplingSettings(temperature=1.0, top_p=0.7))
    assert narrow == pytest.approx([2 / 3, 1 / 3, 0.0], abs=0.045)
    assert narrow[2] == 0.0
    # at half the temperature chances are squared: 36, 9, 1 of 46
    assert shares(SamplingSettings(temperature=0.5)) == pytest.approx(
        [36 / 46, 9 / 46, 1 / 46], abs=0.045
    )


def test_faults(speaker: Speaker, tmp_path: Path, make_model: Callable[..., Path]):
    long = [{"role": "user", "content": "revenue " * 300}]
    with pytest.raises(ConfigError, match="256 at most; shorten it"):
        list(stream_answer(speaker, long, SamplingSettings()))
    for wrong in ({"new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ConfigError, match="--"):
            SamplingSettings(**wrong)
    with pytest.raises(CheckpointError, match="no model configuration"):
        load_speaker(tmp_path)
    bare = make_model(tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_speaker(bare)


def test_plain_text_is_continued(tmp_path: Path, make_model: Callable[..., Path]):
    folder = make_model(tmp_path / "m")
    plain = load_speaker(folder, plain=True)
    assert plain.template is None
    assert plain.decode(plain.encode(USER)) == "the board expects revenue"
    (folder / "chat_template.jinja").unlink()
    assert load_speaker(folder).template is None
    assert load_speaker(folder, template="{{ messages }}").template == "{{ messages }}"
