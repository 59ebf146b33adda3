"""The fused loss against PyTorch's own, values and gradients."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

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


def test_liger_computes_the_loss_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, object]] = []

    class LigerFusedLinearCrossEntropyLoss:
        """As liger-kernel 0.8.5 has it: `(weight, input, target)`, here in plain torch."""

        def __init__(self, *, reduction: str, accum_dtype: torch.dtype) -> None:
            calls.append({"reduction": reduction, "accum_dtype": accum_dtype})

        def __call__(
            self, weight: torch.Tensor, rows: torch.Tensor, target: torch.Tensor
        ) -> torch.Tensor:
            calls.append({"dtype": weight.dtype, "shape": tuple(rows.shape)})
            assert len(rows), "its kernel divides by the number of rows"
            logits = (rows @ weight.T).float()
            return torch.nn.functional.cross_entropy(logits, target, reduction="sum")

    package, inner = types.ModuleType("liger_kernel"), types.ModuleType("liger_kernel.transformers")
    inner.LigerFusedLinearCrossEntropyLoss = LigerFusedLinearCrossEntropyLoss  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    module._liger.cache_clear()
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.tensor([1, 0, 10, 3, 3])
    ours = linear_cross_entropy(hidden, head, labels, dtype=torch.float32)
    assert not calls  # not on a CPU
    real = module._liger
    monkeypatch.setattr(module, "_liger", lambda _device: real("cuda"))
    theirs = linear_cross_entropy(hidden, head, labels, dtype=torch.float32)
    theirs.backward()
    assert linear_cross_entropy(hidden[:0], head, labels[:0], dtype=torch.float32) == 0.0
    real.cache_clear()
    assert calls == [
        {"reduction": "sum", "accum_dtype": torch.float32},
        {"dtype": torch.float32, "shape": (5, 8)},
    ]
    assert_close(theirs, ours)
    assert head.grad is not None


def test_without_liger_a_gpu_has_our_own():
    module._liger.cache_clear()
    assert module._liger("cuda") is None or importlib.util.find_spec("liger_kernel")
    module._liger.cache_clear()
