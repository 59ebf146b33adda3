"""mergekit itself as oracle: the same float32 tensors through its functions and through ours.

Data have no ties at thresholds (`random_models`), so that its unstable sort does not matter.
Deviations, each deliberate, have their tests beside the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.merge_references import assert_rounded, merge, random_models
from toolkit.merge.registry import all_methods, get_method

NAMES = [
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
    "della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp",
    "passthrough", "ram", "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties",
]  # fmt: skip
WEIGHT = [0.6, 0.3, 0.4]
DENSITY = [0.3, 0.7, 0.55]


def mergekit(name: str, tensors: list[Tensor], base: Tensor | None, **parameters: Any) -> Tensor:
    from mergekit.merge_methods.api import merge_tensors

    inputs = tensors if base is None else [base, *tensors]
    keywords = {key.rstrip("_"): value for key, value in parameters.items()}
    with torch.no_grad():
        return merge_tensors(
            [item.clone() for item in inputs],
            name,
            parameters=keywords,
            base_index=None if base is None else 0,
        )


def ours(name: str, tensors: list[Tensor], base: Tensor | None, **parameters: Any) -> Tensor:
    if base is not None and not get_method(name).needs_base:
        return get_method(name).function(tensors, base, **parameters)
    return merge(name, tensors, torch.empty(0) if base is None else base, **parameters)


# Method, number of tuned models, with a base, parameters, and the rounding allowed, in units in the
# last place: 0 where the same float32 operations run, 1 where one is rounded otherwise, more where
# sums over the tensor enter (mergekit's are float32, ours float64).
CASES: list[tuple[str, int, bool, Mapping[str, Any], float]] = [
    ("linear", 3, False, {"weight": WEIGHT}, 0),
    ("linear", 3, False, {"weight": WEIGHT, "normalize": False}, 0),
    ("task_arithmetic", 3, True, {"weight": WEIGHT}, 0),
    ("task_arithmetic", 3, True, {"weight": WEIGHT, "lambda_": 0.7}, 0),
    ("task_arithmetic", 3, True, {"weight": WEIGHT, "normalize": True}, 0),
    ("task_arithmetic", 1, True, {"weight": [0.4], "density": [0.2], "rescale": True}, 0),
    ("passthrough", 1, False, {}, 0),
    ("passthrough", 1, False, {"scale": [0.3]}, 0),
    ("ties", 3, True, {"weight": WEIGHT}, 0),
    ("ties", 3, True, {"weight": WEIGHT, "density": DENSITY}, 0),
    ("ties", 3, True, {"weight": WEIGHT, "density": DENSITY, "normalize": False}, 0),
    ("ties", 3, True, {"weight": WEIGHT, "density": DENSITY, "rescale": True}, 1),
    ("ties", 3, True, {"weight": [0.6, -0.3, 0.4], "density": DENSITY, "lambda_": 1.5}, 0),
    ("ties", 3, True, {"weight": WEIGHT, "density": [0.0, 1.0, 0.001], "int8_mask": True}, 0),
    ("breadcrumbs", 3, True, {"weight": WEIGHT, "density": DENSITY, "gamma": [0.01, 0.1, 0.3]}, 0),
    ("breadcrumbs", 2, True, {"weight": [0.6, 0.3], "density": [0.9, 0.5], "gamma": [0.3, 0.0]}, 0),
    ("breadcrumbs", 3, True, {"weight": WEIGHT, "density": DENSITY, "rescale": True}, 1),
    ("breadcrumbs", 3, True, {"weight": WEIGHT, "density": DENSITY, "normalize": True}, 0),
    ("breadcrumbs_ties", 3, True, {"weight": WEIGHT, "density": DENSITY}, 0),
    (
        "breadcrumbs_ties",
        3,
        True,
        {"weight": WEIGHT, "density": DENSITY, "gamma": [0.2, 0.0, 0.5], "normalize": True},
        0,
    ),
    ("slerp", 1, True, {"t": 0.3}, 2),
    ("slerp", 1, True, {"t": 1.0}, 1),
    ("nuslerp", 2, False, {"weight": [0.6, 0.3]}, 2),
    ("nuslerp", 2, True, {"weight": [0.6, 0.3]}, 1),
    ("nuslerp", 2, True, {"weight": [0.5, -0.5]}, 1),
    ("nuslerp", 2, False, {"weight": [0.6, 0.3], "nuslerp_flatten": False}, 2),
    ("nuslerp", 2, True, {"weight": [1, 3], "nuslerp_flatten": False, "nuslerp_row_wise": True}, 4),
    ("multislerp", 3, False, {"weight": WEIGHT}, 2),
    ("multislerp", 3, True, {"weight": WEIGHT}, 2),
    ("multislerp", 2, False, {"weight": [0.6, 0.9], "normalize_weights": False}, 4),
    ("multislerp", 1, True, {"weight": [0.3]}, 0),
    ("karcher", 2, False, {}, 3),
    ("karcher", 3, False, {}, 3),
    ("karcher", 4, False, {"max_iter": 2, "tol": 1e-7}, 3),
    ("model_stock", 2, True, {}, 1),
    ("model_stock", 4, True, {}, 1),
    ("model_stock", 3, True, {"filter_wise": True}, 2),
    ("sce", 3, True, {}, 1),
    ("sce", 3, True, {"select_topk": 0.3, "int8_mask": True}, 1),
    ("sce", 3, True, {"select_topk": 0.0}, 0),
    ("sce", 1, True, {"select_topk": 0.5}, 0),
    ("nearswap", 1, True, {"t": 0.03}, 1),
    ("arcee_fusion", 1, True, {}, 1),
    ("ram", 3, True, {}, 1),
    ("ram", 3, True, {"epsilon": 0.05}, 1),
    ("ramplus_tl", 3, True, {"epsilon": 0.05}, 1),
    ("ramplus_tl", 3, True, {"epsilon": 0.06, "r": 0.7, "alpha": 5.0}, 1),
]


@pytest.mark.parametrize(("name", "number", "based", "parameters", "ulps"), CASES)
@pytest.mark.parametrize("shape", [(24, 32), (77,), (3, 8, 10)], ids=str)
def test_equals_mergekit(
    name: str,
    number: int,
    based: bool,
    parameters: Mapping[str, Any],
    ulps: float,
    shape: tuple[int, ...],
):
    tensors, origin = random_models(number, shape, seed=number)
    base = origin if based else None
    expected = mergekit(name, tensors, base, **parameters)
    assert_rounded(ours(name, tensors, base, **parameters), expected, ulps=ulps)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("slerp", {"t": 0.3}),
        ("nuslerp", {"weight": [0.6, 0.3]}),
        ("nuslerp", {"weight": [0.6, 0.3], "nuslerp_flatten": False}),
        ("multislerp", {"weight": [0.6, 0.3]}),
        ("karcher", {"max_iter": 30, "tol": 1e-7}),
        ("karcher", {"max_iter": 1}),
    ],
)
def test_equals_mergekit_at_wide_angles(name: str, parameters: Mapping[str, Any]):
    # Task vectors in place of models: nearly at right angles, where arc and chord differ.
    tensors, base = random_models(3, (24, 32))
    apart = [(tensor - base) * 8 for tensor in tensors]
    models, origin = (apart[:1], apart[1]) if name == "slerp" else (apart[:2], None)
    if name == "karcher":  # of two, the mean is where it starts
        apart[2] = apart[2] + apart[0]
        models = apart
    expected = mergekit(name, models, origin, **parameters)
    assert_rounded(ours(name, models, origin, **parameters), expected, ulps=4)


RANDOM = [
    ("dare_linear", {}),
    ("dare_linear", {"rescale": False, "normalize": True}),
    ("dare_ties", {}),
    ("dare_ties", {"normalize": True, "lambda_": 0.5}),
    ("della", {}),
    ("della", {"rescale": False, "epsilon": [0.1, 0.29, 0.05]}),
    ("della_linear", {}),
    ("della_linear", {"normalize": True, "epsilon": [0.0, 0.1, 0.2]}),
]


@pytest.mark.parametrize(("name", "parameters"), RANDOM)
@pytest.mark.parametrize("shape", [(24, 32), (77,), (3, 8, 10)], ids=str)
def test_equals_mergekit_given_the_same_random_numbers(
    name: str,
    parameters: Mapping[str, Any],
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    tensors, base = random_models(3, shape, seed=3)
    keywords = {"weight": WEIGHT, "density": DENSITY, **parameters}
    actual = ours(name, tensors, base, generator=torch.Generator().manual_seed(7), **keywords)

    generator = torch.Generator().manual_seed(7)

    def bernoulli(probability: Tensor) -> Tensor:
        return (torch.rand(probability.shape, generator=generator) < probability).float()

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    expected = mergekit(name, tensors, base, **keywords)
    assert not torch.equal(expected, base)
    assert_rounded(actual, expected, ulps=1)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_defaults_are_those_of_mergekit(name: str):
    from mergekit import merge_methods
    from mergekit.merge_methods.base import BasePolicy, ParameterScope

    spec = merge_methods.get(name).spec
    method = get_method(name)
    for parameter in spec.parameters:
        mine = method.parameters[parameter.name]
        assert mine.per_model == (parameter.scope != ParameterScope.SHARED), parameter.name
        assert mine.required == parameter.required, parameter.name
        default = mine.default[0] if mine.per_model and not mine.required else mine.default
        if name == "passthrough":  # ours multiplies by 1 where mergekit does not multiply
            assert (default, parameter.default) == (1.0, None)
        elif not mine.required:
            assert default == parameter.default, parameter.name
    assert method.needs_base == (spec.contract.base == BasePolicy.REQUIRED)
    assert method.accepts_base == (spec.contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL))


def test_every_method_of_mergekit_is_here():
    from mergekit import merge_methods

    assert {method.spec.name for method in merge_methods.registered_methods()} == set(NAMES)
    assert set(NAMES) < set(all_methods())
