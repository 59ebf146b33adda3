"""What counts as the same log probabilities."""

from __future__ import annotations

import torch

from toolkit.checkpoint.forward import agrees


def test_differences_that_cancel_are_differences():
    model = torch.nn.Linear(1, 1)
    expected = torch.tensor([-3.0, -2.0, -4.0])
    assert agrees(model, expected + 1e-5, expected)
    assert not agrees(model, expected + torch.tensor([0.5, -0.5, 0.0]), expected)
    assert not agrees(model, torch.full((3,), float("nan")), expected)
    assert agrees(model, expected, torch.full((3,), float("nan")))  # which says nothing
