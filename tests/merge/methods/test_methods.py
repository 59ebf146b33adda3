"""Each method: a literal worked by hand, and what must hold of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from toolkit.errors import ConfigError, MergeError
from toolkit.merge.methods.linear import linear, task_arithmetic
from toolkit.merge.methods.slerp import slerp
from toolkit.merge.methods.sparsify import trim
from toolkit.merge.methods.ties import ties
from toolkit.merge.registry import all_methods, get_method

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
LAW = BASE + torch.tensor([4.0, -2.0, 0.0, 0.0])
MED = BASE + torch.tensor([2.0, 3.0, 0.0, 0.0])


def test_linear_worked_example():
    # (1·[5, -1, 1, 1] + 3·[3, 4, 1, 1]) / 4
    assert_close(linear([LAW, MED], weight=[1.0, 3.0]), torch.tensor([3.5, 2.75, 1.0, 1.0]))
    assert_close(
        linear([LAW, MED], weight=[1.0, 3.0], normalize=False), torch.tensor([14.0, 11.0, 4.0, 4.0])
    )


def test_task_arithmetic_worked_example():
    # base + 2·(0.5·[4, -2] + 1·[2, 3])
    merged = task_arithmetic([LAW, MED], BASE, weight=[0.5, 1.0], lambda_=2.0)
    assert_close(merged, BASE + torch.tensor([8.0, 4.0, 0.0, 0.0]))


def test_slerp_worked_example():
    # [1, 0] and [0, 1] stand at a right angle; a third of the way is 30°.
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    merged = slerp([b], a, t=1.0 / 3.0)
    assert_close(merged, torch.tensor([math.cos(math.pi / 6), 0.5]))


def test_slerp_of_parallel_tensors_is_linear():
    assert_close(slerp([3 * BASE], BASE, t=0.5), 2 * BASE)


def test_ties_worked_example():
    # trim to half:  law [4, -2, 0, 0]   med [2, 3, 0, 0]
    # elect signs:   sums [6, 1, 0, 0] -> [+, +, +, +]; law's -2 is outvoted
    # mean of those that agree: [(4 + 2) / 2, 3, 0, 0]
    merged = ties([LAW, MED], BASE, weight=[1.0, 1.0], density=[0.5, 0.5])
    assert_close(merged, BASE + torch.tensor([3.0, 3.0, 0.0, 0.0]))


def test_trimming_keeps_ties_at_the_threshold():
    delta = torch.tensor([3.0, -2.0, 2.0, 1.0])
    assert trim(delta, 0.5).tolist() == [3.0, -2.0, 2.0, 0.0]  # half is two; both twos stay
    assert trim(delta, 0.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("method", [task_arithmetic, ties])
def test_base_with_itself_is_the_base(method):
    assert torch.equal(method([BASE, BASE], BASE, weight=[1.0, 0.5], **_full(method)), BASE)


@pytest.mark.parametrize("method", [task_arithmetic, ties])
def test_a_single_model_whole_is_that_model(method):
    kwargs = {} if method is task_arithmetic else {"density": [1.0]}
    assert_close(method([LAW], BASE, weight=[1.0], **kwargs), LAW)


@pytest.mark.parametrize("method", [task_arithmetic, ties])
def test_order_does_not_matter(method):
    torch.manual_seed(0)
    a, b, base = torch.randn(3, 200)
    first = method([a, b], base, weight=[0.3, 0.9], **_full(method))
    second = method([b, a], base, weight=[0.9, 0.3], **_full(method))
    assert_close(first, second)


def _full(method: object) -> dict[str, object]:
    return {} if method is task_arithmetic else {"density": [1.0, 1.0]}


def test_weights_that_cancel_are_refused():
    with pytest.raises(MergeError, match="sum to zero"):
        linear([LAW, MED], weight=[1.0, -1.0])


def test_slerp_takes_two_models():
    with pytest.raises(MergeError, match="one other model"):
        slerp([LAW, MED], BASE, t=0.5)


def test_an_unknown_method_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean slerp"):
        get_method("slrep")


def test_the_signature_is_the_schema():
    parameters = all_methods()["ties"].parameters
    assert {"weight", "density", "normalize", "lambda"} <= set(parameters)
    assert parameters["weight"].required
    assert parameters["weight"].per_model
    assert not parameters["normalize"].per_model
