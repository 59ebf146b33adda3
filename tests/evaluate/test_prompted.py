"""Continuations after shared prompts: the same sums as each sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from toolkit.evaluate import head, prompted
from toolkit.evaluate.head import can_pad
from toolkit.evaluate.likelihood import windows
from toolkit.evaluate.prompted import Prompted, can_share, longest_input, score_continuations


def alone(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens][:-1]])).logits[0].double()
    picked = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(tokens) - 1), tokens]
    return float(picked.sum())


def some(common: int) -> list[Prompted]:
    """Prompts of many lengths behind a common beginning, options of one token and of several."""
    torch.manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(1, 300, (count,)).tolist()

    start = draw(common)
    return [
        Prompted([*start, *draw(own)], [draw(n) for n in options])
        for own, options in (
            (3, (1, 1)),
            (17, (4, 1, 9)),
            (1, (2,)),
            (30, (1, 2, 3, 4)),
            (9, (6, 6)),
        )
    ]


def check(model: torch.nn.Module, items: list[Prompted], batch_tokens: int) -> None:
    expected = [[alone(model, i.prompt, tokens) for tokens in i.continuations] for i in items]
    found = score_continuations(model, items, batch_tokens)
    assert [len(row) for row in found] == [len(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert [score.log_likelihood for score in mine] == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("common", [0, 7, 20])
@pytest.mark.parametrize("batch_tokens", [1, 40, 5000])
def test_equal_to_each_sequence_alone(model, common: int, batch_tokens: int):
    check(model, some(common), batch_tokens)


def test_the_shared_beginning_is_computed_once(model, monkeypatch: pytest.MonkeyPatch):
    score_continuations(model, some(20), 5000)  # what is tried once per model
    seen: list[tuple[int, int]] = []
    real = prompted.final_hidden

    def counting(model, inputs, **more):
        seen.append(tuple(inputs.shape))
        return real(model, inputs, **more)

    monkeypatch.setattr(prompted, "final_hidden", counting)
    score_continuations(model, some(20), 5000)
    # the beginning; all rests, the longest 30; the eight options with more than one token
    assert seen == [(1, 20), (5, 30), (8, 8)]


def test_a_prompt_too_long_for_the_model_is_cut_at_the_left(model):
    torch.manual_seed(1)
    prompt, tokens = torch.randint(1, 300, (300,)).tolist(), [5, 6, 7]
    found = score_continuations(model, [Prompted(prompt, [tokens])], 5000)
    expected = alone(model, prompt[-(256 - 2) :], tokens)  # 254 + 3 tokens, of which 256 are inputs
    assert found[0][0].log_likelihood == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["windowed", "gpt2"])
def test_other_families(family: str):
    torch.manual_seed(0)
    small = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=256)
        )
    else:
        model = MistralForCausalLM(
            MistralConfig(
                **small,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=6,
            )
        )
    check(model.eval(), some(20), 200)


def test_a_continuation_longer_than_the_window_is_scored_whole(model):
    model.config.max_position_embeddings = 16
    torch.manual_seed(1)
    prompt, long, short = (torch.randint(1, 300, (n,)).tolist() for n in (9, 40, 12))
    (scores,) = score_continuations(model, [Prompted(prompt, [long, short])], 100)
    # Every token once: windows of sixteen inputs, the last as long as the others.
    whole = [prompt[-1], *long]
    parts = [(whole[:1], whole[1:17]), (whole[16:17], whole[17:33]), (whole[24:33], whole[33:])]
    assert sum(len(tokens) for _, tokens in parts) == len(long)
    expected = sum(alone(model, before, tokens) for before, tokens in parts)
    assert scores[0].log_likelihood == pytest.approx(expected, rel=1e-5)
    # One that fits keeps as much of the prompt as fits with it.
    assert scores[1].log_likelihood == pytest.approx(alone(model, prompt[-5:], short), rel=1e-5)


@pytest.mark.parametrize(("probe", "place"), [(can_share, prompted), (can_pad, head)])
def test_memory_that_ran_out_says_nothing_of_an_architecture(
    model, monkeypatch: pytest.MonkeyPatch, probe: Callable[[Any], bool], place: Any
):
    def fail(*_args: Any, **_more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(place, "final_hidden", fail)
        assert not probe(model)
    assert probe(model)


@pytest.mark.parametrize(("said", "meant"), [(-1, None), (0, None), (None, None), (512, 512)])
def test_a_model_without_a_limit_is_read_whole(said: int | None, meant: int | None):
    """XLNet says -1; windows of that length would never end."""
    config = SimpleNamespace(max_position_embeddings=said)
    config.get_text_config = lambda: config
    assert longest_input(SimpleNamespace(config=config)) == meant


def test_windows_that_would_not_end_are_refused():
    with pytest.raises(ValueError, match="windows of -1 tokens"):
        windows([1, 2, 3], -1, 1)
