"""Mixtures of experts in training: the balancing loss by hand, and however a step is cut up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.helpers.token_blocks import make_blocks
from toolkit.data.blocks import Blocks
from toolkit.merge.moe.config import MoeConfig
from toolkit.merge.moe.run import run_moe
from toolkit.section import parse_section
from toolkit.train.balance import balancing_loss, expert_counts
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.model import NextTokenLoss

LOG3 = float(np.log(3.0))


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    base = make_model(tmp_path / "base", seed=3)
    expert = {"source_model": str(base), "noise_scale": 0.02}
    data = {"base_model": str(base), "experts": [expert] * 4, "gate_mode": "random"}
    run_moe(parse_section(MoeConfig, data, where="test", what="test"), tmp_path / "moe")
    return tmp_path / "moe"


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 300, size=int(n)).tolist() for n in chance.integers(5, 40, 30)]
    return make_blocks(tmp_path / "blocks", {"a": documents})


def run(folder: Path, blocks: Blocks, work: Path, coefficient: float, **values: Any) -> Any:
    work.mkdir()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.router_aux_loss_coef = coefficient if "moe" in folder.name else None
    settings = {"precision": "fp32", "schedule": {"peak_lr": 1e-3}, "save_steps": 50}
    section = TrainSection.model_validate({**settings, "global_batch_size": 4, **values})
    train(model, blocks, section, seed=7, work=work)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row], model


def test_a_balancing_loss_by_hand():
    # three tokens to expert 0, one to expert 1, with probabilities 3/4 and 1/4 each; the last token
    # is padding:  2 experts * (3/4 * 10/16 + 1/4 * 6/16) = 1.125
    logits = torch.tensor([[LOG3, 0.0]] * 3 + [[0.0, LOG3], [0.0, 50.0]])
    real = torch.tensor([True, True, True, True, False])
    assert float(balancing_loss([logits], real, 1)) == pytest.approx(1.125)
    assert expert_counts([logits], real, 1).tolist() == [[3.0, 1.0]]
    # a second layer that is the mirror image: each layer counts, though together they are balanced
    both = [logits, logits.flip(1)]
    assert float(balancing_loss(both, real, 1)) == pytest.approx(1.125)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_one_layer_as_transformers_has_it(k: int):
    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    real = torch.arange(50) < 40
    theirs = load_balancing_loss_func((logits,), 4, k, real[None].long())
    torch.testing.assert_close(balancing_loss([logits], real, k), torch.as_tensor(theirs))


def test_the_loss_is_in_nats_and_the_gradient_has_both(folder: Path):
    torch.manual_seed(0)
    ids = torch.randint(1, 300, (2, 16))
    labels, segments = ids.roll(-1, 1), torch.zeros_like(ids)
    segments[1, 10:] = -1
    labels[1, 9:] = -100
    gradients, values = [], []
    for coefficient in (0.0, 0.5):
        model = AutoModelForCausalLM.from_pretrained(folder, router_aux_loss_coef=coefficient)
        module = NextTokenLoss(model.train(), torch.float32)
        assert module.fused_head
        loss = module(ids, labels, segments)
        loss.backward()
        values.append(float(loss.detach()))
        gradients.append(model.model.layers[0].mlp.gate.weight.grad.clone())
        assert module.expert_counts is not None
        assert module.expert_counts.sum(dim=1).tolist() == [26 * 2.0] * 2
        if coefficient:  # a model with a head of its own kind goes the other way
            module.fused_head = False
            model.zero_grad()
            torch.testing.assert_close(module(ids, labels, segments), loss)
            module(ids, labels, segments).backward()
            torch.testing.assert_close(
                model.model.layers[0].mlp.gate.weight.grad, gradients[-1], rtol=1e-3, atol=1e-5
            )
    assert values[0] == values[1]
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    output = model.base_model(
        ids,
        attention_mask=mask & torch.ones(16, 16, dtype=torch.bool).tril(),
        position_ids=torch.where(segments < 0, torch.arange(16) - 10, torch.arange(16)).clamp(
            min=0
        ),
        output_router_logits=True,
    )
    expected = 0.5 * 25 * balancing_loss(output.router_logits, (segments >= 0).reshape(-1), 2)
    expected.backward()
    torch.testing.assert_close(
        gradients[1] - gradients[0],
        model.model.layers[0].mlp.gate.weight.grad,
        rtol=1e-3,
        atol=1e-5,
    )


def test_balancing_evens_out_the_experts(folder: Path, blocks: Blocks, tmp_path: Path):
    schedule = {"peak_lr": 3e-3, "kind": "constant", "warmup_fraction": 0.0}
    settings = {"epochs": 4, "schedule": schedule, "global_batch_size": 1, "micro_batch_size": 1}
    off, _ = run(folder, blocks, tmp_path / "off", 0.0, **settings)
    on, _ = run(folder, blocks, tmp_path / "on", 1.0, **settings)

    def unevenness(rows: list[dict[str, Any]]) -> float:
        shares = np.array([row["expert_shares"] for row in rows[-8:]])
        return float(((shares - 0.25) ** 2).sum())

    assert off[0]["expert_shares"] == on[0]["expert_shares"]
    assert sum(off[0]["expert_shares"]) == pytest.approx(1.0, abs=1e-3)
    assert unevenness(on) < unevenness(off)
    assert off[-1]["loss"] < off[0]["loss"]


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_computing_activations_again_changes_no_bit(
    folder: Path, blocks: Blocks, tmp_path: Path, kind: str
):
    none, _ = run(folder, blocks, tmp_path / "none", 0.1, gradient_checkpointing="none")
    again, _ = run(folder, blocks, tmp_path / kind, 0.1, gradient_checkpointing=kind)
    assert [row["loss"] for row in none] == [row["loss"] for row in again]


def test_micro_batches_only_regroup_the_sums(folder: Path, blocks: Blocks, tmp_path: Path):
    whole, _ = run(folder, blocks, tmp_path / "whole", 0.0, micro_batch_size=4)
    parts, _ = run(folder, blocks, tmp_path / "parts", 0.0, micro_batch_size=1)
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert whole[0]["expert_shares"] == parts[0]["expert_shares"]


def test_the_balancing_loss_is_divided_like_the_nats(folder: Path):
    # Four micro-batches that are all alike have the shares of the four together, so the sum of
    # their gradients must be that of one pass.
    torch.manual_seed(0)
    row = torch.randint(1, 300, (1, 16))
    gradients = []
    for batches in ([row.repeat(4, 1)], [row] * 4):
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.config.router_aux_loss_coef = 5.0
        module = NextTokenLoss(model.train(), torch.float32)
        for ids in batches:
            module(ids, ids.roll(-1, 1), torch.zeros_like(ids)).backward()
        gradients.append(model.model.layers[0].mlp.gate.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_a_dense_model_has_no_balance(tmp_path: Path, folder: Path, blocks: Blocks):
    del folder
    rows, _ = run(tmp_path / "base", blocks, tmp_path / "dense", 0.0)
    assert all("expert_shares" not in row for row in rows)
