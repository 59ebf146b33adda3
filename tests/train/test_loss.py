"""The fused loss against PyTorch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from toolkit.train import loss as module
from toolkit.train.loss import linear_cross_entropy


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    return hidden, head, torch.randint(0, 50, (rows,))


def test_worked_example():
    # Two tokens, logits 0 and ln 3: p = 1/4, 3/4; the loss of token 1 is -ln 0.75.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = torch.tensor([[0.0], [3.0]]).log().nan_to_num(neginf=0.0).requires_grad_()
    loss = linear_cross_entropy(hidden, head, torch.tensor([1]), dtype=torch.float32)
    assert_close(loss, torch.tensor(0.75).log().neg())
    loss.backward()
    assert_close(head.grad, torch.tensor([[0.25], [-0.25]]))


@pytest.mark.parametrize("rows", [1, 31, 32, 70])
def test_float32_equals_pytorch(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 40)
    hidden, head, labels = inputs(rows)
    F.cross_entropy(hidden @ head.T, labels, reduction="sum").mul(0.3).backward()
    expected = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    ours = linear_cross_entropy(hidden, head, labels, dtype=torch.float32)
    assert_close(ours, F.cross_entropy(hidden @ head.T, labels, reduction="sum"))
    (ours * 0.3).backward()
    assert_close((hidden.grad, head.grad), expected, rtol=1e-5, atol=1e-6)


def test_bf16_is_as_close_to_the_truth_as_autocast():
    hidden, head, labels = inputs(200)
    truth = F.cross_entropy(hidden.double() @ head.double().T, labels, reduction="mean")
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, head)
    autocast = F.cross_entropy(logits.float(), labels, reduction="mean")
    ours = linear_cross_entropy(hidden, head, labels, dtype=torch.bfloat16) / 200
    assert abs(ours - truth) <= abs(autocast - truth) + 1e-4
