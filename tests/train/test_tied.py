"""One gradient for a tied embedding: the very numbers that autograd adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import tiny_config
from toolkit.train.model import NextTokenLoss
from toolkit.train.tied import share_gradient, shared_gradient, unshare_gradient

TOKENS = torch.tensor([[5, 7, 5, 5, 0, 9, 7, 3], [1, 2, 3, 4, 5, 6, 0, 0]])


def tied_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=True, **changes)).train()


def gradients(model: Any, share: bool, passes: int = 1, targets: bool = True) -> dict[str, Any]:
    if share:
        share_gradient(model)
    labels = TOKENS.roll(-1, 1) if targets else torch.full_like(TOKENS, -100)
    loss_of = NextTokenLoss(model, torch.float32)
    for _ in range(passes):
        (loss_of(TOKENS, labels, torch.zeros_like(TOKENS)) * 0.3).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    unshare_gradient(model)
    return found


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("padding", [None, 0])
def test_gradients_are_equal_to_the_last_bit(passes: int, padding: int | None):
    model = tied_model(pad_token_id=padding)
    apart, together = gradients(model, False, passes), gradients(model, True, passes)
    assert apart.keys() == together.keys()
    assert all(torch.equal(apart[name], together[name]) for name in apart)
    assert apart["model.embed_tokens.weight"].abs().sum() > 0


def test_a_batch_without_targets_has_gradients_of_zero():
    assert not any(bool(g.any()) for g in gradients(tied_model(), True, targets=False).values())


def test_a_loss_that_another_output_computes_loses_nothing():
    model = tied_model()
    plain = model(TOKENS).logits.float().pow(2).sum()
    plain.backward()
    expected = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    share_gradient(model)
    with shared_gradient(model) as shared:
        states = model.base_model(TOKENS).last_hidden_state
    assert shared is not None
    (states @ model.get_output_embeddings().weight.T).pow(2).sum().backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, expected)


@pytest.mark.parametrize("kind", ["untied", "frozen", "evaluated"])
def test_what_does_not_share(kind: str):
    model = tied_model()
    if kind == "untied":
        model = LlamaForCausalLM(tiny_config(tie_word_embeddings=False)).train()
    if kind == "frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    if kind == "evaluated":
        model.eval()
    share_gradient(model)
    with shared_gradient(model) as shared:
        assert shared is None
    unshare_gradient(model)
    assert "forward" not in vars(model.get_input_embeddings())
