"""Memory that is used again: large enough, never by two at once, freed when told."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import tiny_config
from toolkit.train.fuse import fuse, unfuse
from toolkit.train.heap import place_moments
from toolkit.train.model import NextTokenLoss
from toolkit.train.workspace import WORKSPACE, Workspace


def test_a_name_is_one_place_that_grows():
    workspace = Workspace()
    first = workspace.tensor("y", (2, 3), torch.float32)
    assert workspace.tensor("y", (3, 2), torch.float32).data_ptr() == first.data_ptr()
    assert workspace.tensor("y", (6,), torch.bfloat16).data_ptr() != first.data_ptr()
    assert workspace.tensor("z", (6,), torch.float32).data_ptr() != first.data_ptr()
    assert workspace.tensor("y", (4, 4), torch.float32).shape == (4, 4)
    assert workspace.tensor("y", (2, 2), torch.float32).is_contiguous()


def test_what_is_lent_is_lent_once():
    workspace = Workspace()
    loans = [workspace.lend("x", (4,), torch.float32) for _ in range(3)]
    assert len({loan.data_ptr() for loan in loans}) == 3
    workspace.give_back("x", loans[1])
    assert workspace.lend("x", (2, 2), torch.float32).data_ptr() == loans[1].data_ptr()
    workspace.give_back("x", loans[0])
    assert workspace.lend("x", (5,), torch.float32).shape == (5,)


def test_each_thread_has_its_own():
    workspace = Workspace()
    here = workspace.tensor("y", (4,), torch.float32)
    there: list[int] = []
    work = lambda: there.append(workspace.tensor("y", (4,), torch.float32).data_ptr())  # noqa: E731
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert there != [here.data_ptr()]


def loss_of(model: LlamaForCausalLM, seed: int, rows: int = 1) -> torch.Tensor:
    tokens = torch.randint(0, 320, (rows, 40), generator=torch.Generator().manual_seed(seed))
    module = NextTokenLoss(model, torch.float32, fused=True)
    return module(tokens, tokens.roll(-1, 1), torch.zeros_like(tokens))  # type: ignore[no-any-return]


def gradients(model: LlamaForCausalLM) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def fused_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).train()
    assert fuse(model, torch.float32)
    return model


def test_two_graphs_at_once_do_not_share_what_they_keep():
    model = fused_model()
    expected = []
    for seed in (1, 2):
        loss_of(model, seed).backward()
        expected.append(gradients(model))
    one, two = loss_of(model, 1), loss_of(model, 2)
    one.backward()
    first = gradients(model)
    two.backward()
    assert all(torch.equal(a, b) for a, b in zip(first, expected[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected[1], strict=True))
    unfuse(model)


def test_a_graph_cannot_be_gone_through_twice():
    model = fused_model()
    loss = loss_of(model, 1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    unfuse(model)


def test_forward_passes_that_are_dropped_leave_nothing_behind():
    model = fused_model()
    for rows in (1, 3, 2, 5):
        loss_of(model, 1, rows)
    gc.collect()
    assert not any(WORKSPACE._free.values())
    unfuse(model)
    assert not WORKSPACE._places


def test_moments_made_beforehand_change_no_step():
    results = []
    for early in (False, True):
        model = fused_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        if early:
            place_moments(optimizer)
        for seed in (1, 2):
            loss_of(model, seed).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.detach().clone() for p in model.parameters()])
        unfuse(model)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
