"""What must hold of every method, or of all those of a kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.merge_references import assert_rounded, merge, random_models
from toolkit.errors import MergeError
from toolkit.merge.registry import all_methods, get_method

NAMES = sorted(all_methods())
ONE_MODEL = {"slerp", "nearswap", "arcee_fusion", "passthrough"}
REQUIRED: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.02},
    "regmean": {"statistics": []},
    "fisher": {"statistics": []},
}
THINNING = [
    name for name in NAMES if "density" in get_method(name).parameters and name != "task_arithmetic"
]
TASK_VECTORS = [*THINNING, "task_arithmetic", "lines", "tsv", "iso_c"]


def number_of_models(name: str) -> int:
    return 1 if name in ONE_MODEL else 2


def run(name: str, tensors: list[Tensor], base: Tensor, **parameters: Any) -> Tensor:
    return merge(name, tensors, base, **{**REQUIRED.get(name, {}), **parameters})


@pytest.mark.parametrize("name", NAMES)
def test_base_with_itself_is_the_base(name: str):
    _, base = random_models(0)
    merged = run(name, [base] * number_of_models(name), base)
    exact = get_method(name).needs_base and name not in ("slerp", "nearswap")
    assert_rounded(merged, base, ulps=0 if exact else 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(0,), (0, 4), (3, 0), (), (1,), (5,), (1, 1), (2, 3, 4)], ids=str
)
def test_shapes_from_nothing_to_three_dimensions(name: str, shape: tuple[int, ...]):
    tensors, base = random_models(number_of_models(name), shape)
    for parameters in [{}, {"density": [0.5, 0.5]}] if name in THINNING else [{}]:
        merged = run(name, tensors, base, **parameters)
        assert merged.shape == base.shape
        assert merged.dtype == torch.float32
        assert torch.isfinite(merged).all()


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_are(name: str):
    tensors, base = random_models(number_of_models(name))
    before = [tensor.clone() for tensor in [*tensors, base]]
    thinned = {"density": [0.5] * len(tensors)} if name in THINNING else {}
    merged = run(name, tensors, base, **thinned)
    merged.add_(1.0)  # nor may the result share their memory
    assert all(map(torch.equal, before, [*tensors, base]))


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str):
    tensors, base = random_models(number_of_models(name))
    turned = [tensor.T.contiguous().T for tensor in tensors]
    assert_rounded(run(name, turned, base.T.contiguous().T), run(name, tensors, base), ulps=1)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ONE_MODEL and not get_method(n).is_random]
)
def test_order_of_the_models_does_not_matter(name: str):
    tensors, base = random_models(3)
    tensors = tensors[:2] if name == "nuslerp" else tensors
    weight = [0.3, 0.9, 0.5][: len(tensors)]
    takes_weight = "weight" in get_method(name).parameters
    forward: dict[str, Any] = {"weight": weight} if takes_weight else {}
    backward: dict[str, Any] = {"weight": weight[::-1]} if takes_weight else {}
    first = run(name, tensors, base, **forward)
    # Singular vectors are found again from another matrix, the rest is summed in another order.
    ulps = 16 if name in ("tsv", "iso_c") else 2
    assert_rounded(run(name, tensors[::-1], base, **backward), first, ulps=ulps)


@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if n not in ("slerp", "nuslerp", "nearswap", "arcee_fusion", "model_stock")],
)
def test_a_single_model_whole_is_that_model(name: str):
    (model,), base = random_models(1)
    weight = {"weight": [1.0]} if "weight" in get_method(name).parameters else {}
    if name == "lines":
        weight["alpha"], weight["beta"] = 1.0, 0.0
    merged = run(name, [model], base, **weight)
    if name == "iso_c":  # its spectrum is levelled whatever is merged
        assert not torch.allclose(merged, model, atol=1e-3)
    else:
        assert_rounded(merged, model, ulps=8 if name == "tsv" else 1)


@pytest.mark.parametrize("name", TASK_VECTORS)
def test_task_vectors_are_taken_against_the_base(name: str):
    # Shifting everything shifts the result; values on a grid, so that the shift is exact.
    tensors, base = random_models(2)
    shifted = run(name, [tensor + 0.5 for tensor in tensors], base + 0.5)
    assert_rounded(shifted, run(name, tensors, base) + 0.5, ulps=1)


@pytest.mark.parametrize("name", THINNING)
def test_density_zero_leaves_the_base(name: str):
    tensors, base = random_models(2)
    assert torch.equal(run(name, tensors, base, density=[0.0, 0.0]), base)


@pytest.mark.parametrize("name", [n for n in NAMES if get_method(n).elementwise])
def test_elementwise_methods_may_be_run_in_blocks(name: str):
    tensors, base = random_models(number_of_models(name), (48,))
    parameters = {"thresholds": [0.01, 0.02]} if name == "ties_global" else {}

    def part(begin: int, end: int) -> Tensor:
        pieces = [tensor[begin:end] for tensor in tensors]
        return run(name, pieces, base[begin:end], **parameters)

    parts = [part(begin, begin + 7) for begin in range(0, 48, 7)]
    assert torch.equal(torch.cat(parts), part(0, 48))


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        *((name, {"density": [0.5, 1.5]}, "density.*0 to 1.*1.5") for name in THINNING),
        *((name, {"density": [-0.1, 0.5]}, "density.*-0.1") for name in THINNING),
        *((name, {"density": [0.5, float("nan")]}, "density.*nan") for name in THINNING),
        ("breadcrumbs", {"gamma": [0.1, 2.0]}, "gamma.*0 to 1.*2"),
        ("breadcrumbs_ties", {"gamma": [-0.1, 0.1]}, "gamma.*-0.1"),
        ("della", {"density": [0.5, 0.9]}, "epsilon.*density 0.9.*under 0.1.*0.15"),
        ("della_linear", {"density": [0.1, 0.5]}, "epsilon.*density 0.1.*under 0.1.*0.15"),
        ("della", {"epsilon": [-0.1, 0.1]}, "epsilon.*-0.1"),
        ("linear", {"weight": [1.0, -1.0]}, r"weight: \[1.0, -1.0\] sum to zero.*normalize: false"),
        # the float32 sum of these weights is the rounding error 6e-8
        ("linear", {"weight": [0.1, 0.6, -0.7]}, "weight.*sum to zero"),
        ("task_arithmetic", {"weight": [1.0, -1.0], "normalize": True}, "weight.*sum to zero"),
        ("dare_linear", {"weight": [0.0, 0.0], "normalize": True}, "weight.*sum to zero"),
        ("della_linear", {"weight": [0.2, -0.2], "normalize": True}, "weight.*sum to zero"),
        ("breadcrumbs", {"weight": [0.2, -0.2], "normalize": True}, "weight.*sum to zero"),
        ("lines", {"weight": [0.2, -0.2], "normalize": True}, "weight.*sum to zero"),
        ("multislerp", {"weight": [1.0, -1.0]}, "weight.*normalize_weights: false"),
        ("multislerp", {"eps": -1.0}, "eps: must be at least 0"),
        ("karcher", {"tol": -1.0}, "tol: must be at least 0"),
        ("karcher", {"max_iter": -1}, "max_iter: must be at least 0"),
        ("sce", {"select_topk": 1.1}, "select_topk.*1.1"),
        ("sce", {"equal_below": -1.0}, "equal_below.*-1"),
        ("nearswap", {"t": -0.1}, "t: must be at least 0.*-0.1"),
        ("ram", {"epsilon": -0.1}, "epsilon.*-0.1"),
        ("ramplus_tl", {"epsilon": -0.1}, "epsilon.*-0.1"),
        ("ramplus_tl", {"alpha": -0.1}, "alpha.*-0.1"),
        ("ties_global", {"thresholds": [0.1, float("nan")]}, "thresholds.*nan"),
    ],
)
def test_values_out_of_range_are_named(name: str, parameters: dict[str, Any], words: str):
    tensors, base = random_models(len(parameters.get("weight", [])) or number_of_models(name))
    with pytest.raises(MergeError, match=words):
        run(name, tensors, base, **parameters)


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("slerp", 2, r"one other model \(got 2 others\); use multislerp"),
        ("nuslerp", 3, r"two models.*\(got 3\); use multislerp"),
        ("nearswap", 2, r"exactly 1 besides base_model \(got 2\)"),
        ("arcee_fusion", 2, r"exactly 1 besides base_model \(got 2\)"),
        ("passthrough", 2, r"exactly 1 besides base_model \(got 2\)"),
        ("model_stock", 1, r"at least 2 besides base_model \(got 1\)"),
    ],
)
def test_wrong_numbers_of_models_are_refused(name: str, number: int, words: str):
    tensors, base = random_models(number)
    with pytest.raises(MergeError, match=words):
        run(name, tensors, base)


def test_mergekits_switches_for_mask_types_change_nothing():
    tensors, base = random_models(2)
    for name in NAMES:
        if "int8_mask" in get_method(name).parameters:
            plain = run(name, tensors, base)
            assert torch.equal(run(name, tensors, base, int8_mask=True), plain), name


def test_what_each_method_needs():
    methods = all_methods().values()
    assert {m.name for m in methods if m.is_random} == {
        "dare_linear", "dare_ties", "della", "della_linear"
    }  # fmt: skip
    assert {m.name for m in methods if m.needs_place} == {"lines", "tsv", "iso_c"}
    assert {m.name for m in methods if m.needs_thresholds} == {"ties_global"}
    assert {m.name for m in methods if m.needs_moments} == {"regmean", "fisher"}
    assert {m.name for m in methods if m.accepts_base and not m.needs_base} == {
        "nuslerp", "multislerp"
    }  # fmt: skip
    assert {m.name for m in methods if m.elementwise} == {
        "linear", "task_arithmetic", "passthrough", "lines", "ties_global", "nearswap", "ram"
    }  # fmt: skip
    assert all(m.function.__doc__ and m.reference.startswith("https://") for m in methods)
