"""Staying near the general model: the divergence, the plan of conversations, the loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tests.helpers.own_conversations import VOCABULARY, conversations, teacher_of
from tests.helpers.token_blocks import make_blocks
from toolkit.errors import DataError
from toolkit.train.config import SelfDistillationSection, TrainSection, identity_of
from toolkit.train.layout import IGNORED
from toolkit.train.loop import train
from toolkit.train.loss import TeacherDistributions, divergence_of_logits, linear_divergence
from toolkit.train.model import NextTokenLoss
from toolkit.train.self_distillation import (
    SelfDistillation,
    load_conversations,
    save_conversations,
)


def dense(teacher: TeacherDistributions, logits: torch.Tensor) -> torch.Tensor:
    """The divergence by its definition, on K + 1 outcomes, in float64."""
    q = logits.double().softmax(dim=1)
    kept = q.gather(1, teacher.top_tokens)
    outcomes = torch.cat([kept, q.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)], dim=1)
    p = torch.cat([teacher.top_logs, teacher.rest_logs[:, None]], dim=1).double().exp()
    return torch.where(p > 0, p * (p.clamp_min(1e-300).log() - outcomes.log()), 0.0).sum()


@pytest.mark.parametrize("kept", [1, 8, 49])
@pytest.mark.parametrize("rows", [1, 31, 70])
def test_value_and_gradients_are_those_of_the_definition(rows: int, kept: int):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    teacher = teacher_of(torch.randn(rows, 50) * 2, kept)
    truth = dense(teacher, hidden @ head.T)
    truth.backward()
    expected = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    ours = linear_divergence(hidden, head, teacher, dtype=torch.float32)
    assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)
    ours.backward()
    assert_close((hidden.grad, head.grad), expected, rtol=1e-4, atol=1e-5)
    hidden.grad = head.grad = None
    by_logits = divergence_of_logits(hidden @ head.T, teacher)
    by_logits.backward()
    assert_close(by_logits.double(), truth, rtol=1e-5, atol=1e-5)
    assert_close((hidden.grad, head.grad), expected, rtol=1e-4, atol=1e-5)


def dense_reverse(teacher: TeacherDistributions, logits: torch.Tensor) -> torch.Tensor:
    """KL(model || teacher) by its definition, on K + 1 outcomes, in float64."""
    q = logits.double().softmax(dim=1)
    kept = q.gather(1, teacher.top_tokens)
    outcomes = torch.cat([kept, q.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)], dim=1)
    logs = torch.cat([teacher.top_logs, teacher.rest_logs[:, None]], dim=1).double()
    return (outcomes * (outcomes.log() - logs)).sum()


@pytest.mark.parametrize("kept", [1, 8, 49])
@pytest.mark.parametrize("rows", [1, 70])
def test_the_reverse_is_that_of_the_definition(rows: int, kept: int):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    teacher = teacher_of(torch.randn(rows, 50) * 2, kept)
    truth = dense_reverse(teacher, hidden @ head.T)
    truth.backward()
    expected = hidden.grad.clone(), head.grad.clone()
    for divergence in (
        lambda: linear_divergence(hidden, head, teacher, dtype=torch.float32, reverse=True),
        lambda: divergence_of_logits(hidden @ head.T, teacher, reverse=True),
    ):
        hidden.grad = head.grad = None
        ours = divergence()
        assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)
        ours.backward()
        assert_close((hidden.grad, head.grad), expected, rtol=1e-4, atol=1e-4)


def test_the_reverse_over_all_tokens_is_the_plain_divergence():
    """With all tokens but one kept nothing is lumped together: torch's own says the same."""
    torch.manual_seed(0)
    logits, teacher_logits = torch.randn(9, 12), torch.randn(9, 12)
    ours = divergence_of_logits(logits, teacher_of(teacher_logits, 11), reverse=True)
    expected = torch.nn.functional.kl_div(
        teacher_logits.log_softmax(1), logits.log_softmax(1), reduction="sum", log_target=True
    )
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_reverse_of_a_teacher_that_leaves_nothing_to_others_is_finite():
    logits = torch.zeros(1, 4, requires_grad=True)
    teacher = TeacherDistributions(
        torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf])
    )
    divergence = linear_divergence(logits, torch.eye(4), teacher, dtype=torch.float32, reverse=True)
    divergence.backward()
    assert torch.isfinite(divergence)
    assert bool((logits.grad[0, :2] < 0).all())
    assert bool((logits.grad[0, 2:] > 0).all())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_teacher_that_agrees_gives_no_gradient(reverse: bool):
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    teacher = teacher_of((hidden @ head.T).detach(), 8)
    divergence = linear_divergence(hidden, head, teacher, dtype=torch.float32, reverse=reverse)
    divergence.backward()
    assert abs(float(divergence.detach())) < 1e-4
    assert float(hidden.grad.abs().max()) < 1e-4
    assert float(head.grad.abs().max()) < 1e-4


def test_a_teacher_that_leaves_nothing_to_others():
    """Others' log probability of minus infinity is no NaN, and still pushes them down."""
    logits = torch.zeros(1, 4, requires_grad=True)
    teacher = TeacherDistributions(
        torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf])
    )
    head = torch.eye(4)
    divergence = linear_divergence(logits, head, teacher, dtype=torch.float32)
    divergence.backward()
    assert_close(divergence, torch.tensor(2.0).log())
    assert_close(logits.grad, torch.tensor([[-0.25, -0.25, 0.25, 0.25]]))


def settings(**values: object) -> SelfDistillationSection:
    return SelfDistillationSection.model_validate({"tokens_per_step": 64, **values})


def test_every_conversation_stands_once_in_a_pass_and_passes_differ():
    plan = SelfDistillation(settings(), conversations(), seed=1)
    assert sorted(number for bundle in plan.bundles for number in bundle) == list(range(12))
    rows = [plan.row(step) for step in range(2 * len(plan.bundles))]
    passes = rows[: len(plan.bundles)], rows[len(plan.bundles) :]
    first, second = ([row.input_ids.tolist() for row in one] for one in passes)
    assert sorted(first) == sorted(second)
    assert first != second
    for row in rows:
        assert (row.labels != IGNORED).sum() == row.num_targets == len(row.teacher.rest_logs)


def test_what_is_kept_is_what_the_model_wrote():
    (one,) = conversations(1)
    row = SelfDistillation(settings(), [one], seed=1).row(0)
    size = len(one.tokens) - 1
    assert row.input_ids[0, :size].tolist() == one.tokens[:-1]
    assert (row.labels[0, :2] == IGNORED).all()  # the template's own
    assert row.labels[0, 2:size].tolist() == list(range(size - 2))
    assert (row.segments[0, size:] == -1).all()


def test_processes_share_a_step():
    plan = SelfDistillation(settings(), conversations(), seed=1)
    whole = plan.row(0)
    parts = [plan.row(0, process, 2) for process in range(2)]
    assert sum((part.labels != IGNORED).sum() for part in parts) == (whole.labels != IGNORED).sum()
    assert (
        len(SelfDistillation(settings(), conversations(1), 1).row(0, 1, 2).teacher.rest_logs) == 0
    )


def test_a_long_conversation_is_cut():
    plan = SelfDistillation(settings(tokens_per_step=16), conversations(), seed=1)
    for step in range(len(plan.bundles)):
        row = plan.row(step)
        assert row.input_ids.shape == (1, 16)
        assert (row.labels != IGNORED).sum() == row.num_targets


def test_a_file_holds_what_was_written(tmp_path: Path):
    path, written = tmp_path / "c.safetensors", conversations()
    save_conversations(path, written)
    for a, b in zip(load_conversations(path), written, strict=True):
        assert (a.tokens, a.first_written) == (b.tokens, b.first_written)
        assert torch.equal(a.teacher.top_tokens, b.teacher.top_tokens)
        assert torch.equal(a.teacher.top_logs, b.teacher.top_logs)
        assert torch.equal(a.teacher.rest_logs, b.teacher.rest_logs)


def test_damage_is_one_line(tmp_path: Path):
    path = tmp_path / "c.safetensors"
    save_conversations(path, conversations())
    arrays = load_file(path)
    save_file({**arrays, "lengths": arrays["lengths"] + 1}, path)
    with pytest.raises(DataError, match="do not fit each other"):
        load_conversations(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        load_conversations(path)


def test_a_run_without_it_has_its_former_identity():
    assert "self_distillation" not in identity_of(TrainSection())
    on = TrainSection.model_validate({"self_distillation": {}})
    assert identity_of(on)["self_distillation"]["weight"] == 3.0


@pytest.fixture
def fresh(tmp_path: Path, make_model: Callable[..., Path]) -> Callable[[], torch.nn.Module]:
    folder = make_model(tmp_path / "model")
    return lambda: AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("fused", [False, True])
def test_layouts_and_fused_blocks_agree(fresh, fused: bool):
    """Conversations packed into one row, each alone, and through fused blocks: one figure."""
    from toolkit.train.fuse import fuse

    plan = SelfDistillation(settings(), conversations(), seed=1)
    row = plan.row(0)
    tensors = [torch.from_numpy(array) for array in (row.input_ids, row.labels, row.segments)]
    model = fresh().train()
    alone = NextTokenLoss(model, torch.float32)
    alone.layout = "alone"
    expected = alone(*tensors, teacher=row.teacher)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    is_fused = fused and fuse(model, torch.float32)
    assert is_fused == fused
    packed = NextTokenLoss(model, torch.float32, fused=is_fused)
    found = packed(*tensors, teacher=row.teacher)
    found.backward()
    assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4)


def test_training_stays_nearer_and_resumes_bit_for_bit(fresh, tmp_path: Path):
    chance = np.random.default_rng(0)
    texts = [chance.integers(1, VOCABULARY, int(n)).tolist() for n in chance.integers(5, 40, 30)]
    blocks = make_blocks(tmp_path / "blocks", {"a": texts})
    own = conversations()

    def run(work: Path, weight: float | None, **values: object) -> tuple[list[dict], dict]:
        work.mkdir(exist_ok=True)
        section = TrainSection.model_validate(
            {"precision": "fp32", "schedule": {"peak_lr": 1e-2}, "save_steps": 3, **values}
        )
        plan = None if weight is None else SelfDistillation(settings(weight=weight), own, seed=7)
        model = fresh()
        train(model, blocks, section, seed=7, work=work, distillation=plan)
        rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if "loss" in row], model.state_dict()

    strong, weights = run(tmp_path / "strong", 3.0)
    weak, _ = run(tmp_path / "weak", 1e-6)
    without, _ = run(tmp_path / "without", None)
    assert strong[-1]["divergence"] < weak[-1]["divergence"]
    assert "divergence" not in without[0]
    # The first step's loss is that of the same model on the same blocks.
    assert strong[0]["loss"] == weak[0]["loss"] == without[0]["loss"]

    # Interrupted after its state of step 3, the same bits.
    again = tmp_path / "again"
    run(again, 3.0, keep_checkpoints=True, save_total_limit=100)
    for state in again.glob("state-*"):
        if state.name != "state-00000003":
            shutil.rmtree(state)
    resumed, resumed_weights = run(again, 3.0)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in strong]
    assert [row["divergence"] for row in resumed] == [row["divergence"] for row in strong]
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
