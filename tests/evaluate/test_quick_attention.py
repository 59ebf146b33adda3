"""Attention in tiles: as exact as torch's own kernel, under masks and after a cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.evaluate.quick_attention import attend, can_attend

KINDS, GROUP, ENTRIES = 2, 3, 16


def heads(number: int, rows: int, length: int, seed: int) -> Tensor:
    """`[B, heads, T, H]`, as it lies in memory after a product."""
    torch.manual_seed(seed)
    return torch.randn(rows, length, number, ENTRIES).bfloat16().transpose(1, 2)


def three(rows: int, length: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        heads(KINDS * GROUP, rows, length, 0),
        heads(KINDS, rows, keys, 1),
        heads(KINDS, rows, keys, 2),
    )


def exact(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """In float64, `[B, T, heads, H]`."""
    keys, values = (x.double().repeat_interleave(GROUP, 1) for x in (keys, values))
    scores = queries.double() @ keys.transpose(2, 3) * scale
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ values).transpose(1, 2)


def test_worked_example():
    # One head of one entry: the second query sees keys 0 and ln 3 at scale 1: shares 1/4 and 3/4.
    queries, keys = torch.ones(1, 1, 2, 1), torch.tensor([0.0, math.log(3.0)]).view(1, 1, 2, 1)
    values = torch.tensor([8.0, 16.0]).view(1, 1, 2, 1)
    found = attend(*(x.bfloat16() for x in (queries, keys, values)), None, 1.0)
    assert found.flatten().tolist() == [8.0, 14.0]


@pytest.mark.parametrize("length", [2, 40, 64, 65, 150])
def test_as_exact_as_torchs_kernel(length: int):
    queries, keys, values = three(2, length, length)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    wanted = exact(queries, keys, values, causal, 0.25)
    theirs = functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=0.25, enable_gqa=True
    ).transpose(1, 2)
    found = attend(queries, keys, values, None, 0.25)
    errors = [float((x - wanted).abs().mean()) for x in (found, theirs)]
    assert errors[0] <= 1.2 * errors[1]  # shares are rounded after they were normed, theirs before
    assert torch.allclose(found.double(), wanted, atol=0.02)


def test_under_a_mask_and_after_a_cache():
    queries, keys, values = three(2, 5, 9)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4).expand(2, 1, 5, 9).clone()
    mask[1, :, :, 2:4] = False  # padding of the second row
    found = attend(queries, keys, values, mask, 0.25)
    assert torch.allclose(found.double(), exact(queries, keys, values, mask, 0.25), atol=0.02)
    one = attend(queries, keys, values, mask[:1], 0.25)
    assert torch.equal(one[0], found[0])


def test_what_it_does_not_do_is_left_to_torch():
    queries, keys, _ = three(1, 3, 3)
    assert can_attend(queries, keys, None)
    assert not can_attend(queries.float(), keys.float(), None)
    assert not can_attend(queries[:, :, :1], keys, None)
    assert not can_attend(queries, heads(KINDS, 1, 7, 1), None)  # after a cache, without a mask
    assert not can_attend(queries, keys, torch.zeros(1, 1, 3, 3))  # added to the scores
    assert not can_attend(queries, keys, torch.ones(1, 6, 3, 3, dtype=torch.bool))  # one a head
    blind = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    blind[..., 1, :] = False
    assert not can_attend(queries, keys, blind)


def test_the_precision_of_other_products_is_as_before():
    before = torch.backends.mkldnn.matmul.fp32_precision
    attend(*three(1, 4, 4), None, 0.25)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
