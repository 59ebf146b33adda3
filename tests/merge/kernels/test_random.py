"""dare, della, rescaling and nuslerp with a base: kernels against the torch definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.kernel_runs import bits, inputs, merge_both_ways
from toolkit.errors import MergeError
from toolkit.merge.compute import NonFiniteError
from toolkit.merge.kernels import stream, thinning
from toolkit.merge.kernels import workers as workers_module
from toolkit.merge.kernels.fast import find_kernel

BF16, F32 = torch.bfloat16, torch.float32
THINNED: list[tuple[str, dict[str, Any]]] = [
    (name, {"weight": (0.6, weight), "density": density, "normalize": n, "rescale": r, **more})
    for name, more in [
        ("dare_linear", {}),
        ("dare_ties", {}),
        ("della", {"epsilon": (0.1, 0.19)}),
        ("della_linear", {"epsilon": (0.1, 0.19)}),
        ("della_linear", {"epsilon": (0.0, 0.15)}),
        ("ties", {}),
        ("breadcrumbs", {"gamma": (0.01, 0.2)}),
        ("breadcrumbs_ties", {"gamma": (0.01, 0.2)}),
    ]
    for weight, density, n, r in [
        (0.4, (0.5, 0.8), True, True),
        (-0.25, (0.3, 0.2), False, True),
        (-0.25, (1.0, 0.0), True, False),
        (0.4, (0.5, 0.8), False, False),
    ]
    if not (name in {"ties", "breadcrumbs", "breadcrumbs_ties"} and not r)
]


def near(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Two models near a base; a part of the first is unchanged, and a row is zero."""
    tuned, base = inputs(shape, 2, dtype)
    for tensor in (*tuned, base):
        tensor[tensor.abs() > 1.0] = 0.25  # magnitudes are summed: nothing may drown them
    tuned[0].view(-1)[: base.numel() // 3] = base.view(-1)[: base.numel() // 3]
    return tuned, base


def assert_nearly_same_bits(actual: Tensor, expected: Tensor, rescale: bool) -> None:
    """Equal; after rescaling, whose sums run in another order, up to one unit in the last place."""
    if not rescale:
        np.testing.assert_array_equal(bits(actual), bits(expected))
        return
    high = torch.nextafter(expected.abs(), torch.tensor(torch.inf, dtype=expected.dtype))
    unit = (high - expected.abs()).double()
    assert bool(((actual.double() - expected.double()).abs() <= unit).all())


@pytest.mark.parametrize(("name", "parameters"), THINNED)
@pytest.mark.parametrize("shape", [(1,), (7,), (5001,), (3, 1), (1, 9), (65, 127), (2, 4096)])
@pytest.mark.parametrize(("dtype", "out"), [(BF16, BF16), (F32, F32)])
def test_the_same_bits_as_the_definition(name, parameters, shape, dtype, out, tmp_path: Path):
    tuned, base = near(shape, dtype)
    merged, expected = merge_both_ways(name, parameters, tuned, base, out, tmp_path)
    assert_nearly_same_bits(merged, expected, parameters["rescale"])


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("weight", [(0.6, 0.3), (1.0, -1.0)])
def test_nuslerp_of_task_vectors(dtype: torch.dtype, weight: tuple[float, float], tmp_path: Path):
    tuned, base = near((5001,), dtype)
    merged, expected = merge_both_ways("nuslerp", {"weight": weight}, tuned, base, dtype, tmp_path)
    np.testing.assert_array_equal(bits(merged), bits(expected))


@pytest.mark.parametrize("name", ["dare_ties", "della", "breadcrumbs"])
def test_threads_blocks_and_memory_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parameters = next(p for n, p in THINNED if n == name)
    tuned, base = near((61, 501), BF16)  # rows of odd length, blocks that begin at odd entries
    whole, _ = merge_both_ways(name, parameters, tuned, base, BF16, tmp_path, threads=1)
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 12)
    for threads in (1, 3):
        cut, _ = merge_both_ways(name, parameters, tuned, base, BF16, tmp_path, threads=threads)
        np.testing.assert_array_equal(bits(cut), bits(whole))
    monkeypatch.setattr(thinning, "MASK_BYTES", 0)  # as for tensors whose masks are made twice
    again, _ = merge_both_ways(name, parameters, tuned, base, BF16, tmp_path)
    np.testing.assert_array_equal(bits(again), bits(whole))


@pytest.mark.parametrize("name", ["dare_linear", "della", "nuslerp"])
def test_non_finite_inputs_are_found(name: str, tmp_path: Path):
    parameters = next((p for n, p in THINNED if n == name), {"weight": (0.5, 0.5)})
    tuned, base = near((3, 100), BF16)
    tuned[1][1, 50] = float("nan")
    with pytest.raises(NonFiniteError):
        merge_both_ways(name, parameters, tuned, base, BF16, tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("dare_ties", {"density": (1.5, 0.5)}, "density: must be from 0 to 1 (got 1.5)"),
        ("della", {"density": (0.9, 0.5), "epsilon": (0.2, 0.1)}, "must be under 0.1 (got 0.2)"),
        ("breadcrumbs", {"gamma": (-0.1, 0.0)}, "gamma: must be from 0 to 1 (got -0.1)"),
    ],
)
def test_values_out_of_range(name: str, parameters: dict[str, Any], message: str, tmp_path: Path):
    tuned, base = near((7,), BF16)
    density = {"density": (0.5, 0.5)} if name == "breadcrumbs" else {}
    with pytest.raises(MergeError) as caught:
        merge_both_ways(
            name, {"weight": (1.0, 1.0), **density, **parameters}, tuned, base, BF16, tmp_path
        )
    assert message in str(caught.value)


def test_what_is_left_to_the_definition():
    assert find_kernel("della", {}, (4, 4)) is not None
    assert find_kernel("della", {}, (2, 4, 4)) is None  # rows would not lie in one piece
    assert find_kernel("nuslerp", {"nuslerp_flatten": False}, (4, 4)) is None
    assert find_kernel("sce", {}, (4, 4)) is None


def test_stream_is_splitmix64():
    # The published first outputs of SplitMix64 with seed 1234567, upper 24 bits of each half.
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = [(half >> 8) / 2**24 for half in halves]
    assert stream.draw(1234567, 0, 6).tolist() == expected
    assert stream.draw(1234567, 3, 6).tolist() == expected[3:]


def test_streams_differ_by_seed_name_and_model():
    def first(seed: int, name: str) -> list[list[float]]:
        made = stream.EntryStream(seed, name)
        return [made.uniform((2, 2)).flatten().tolist() for _ in range(2)]

    drawn = [*first(0, "a"), *first(1, "a"), *first(0, "b")]
    assert len({tuple(numbers) for numbers in drawn}) == 6
    assert first(0, "a") == drawn[:2]


def test_streams_are_uniform():
    numbers = stream.draw(stream.stream_key(0, "x", 0), 0, 1 << 20)
    counts = np.bincount((numbers * 256).astype(int), minlength=256)
    chi_squared = float(((counts - 4096.0) ** 2 / 4096.0).sum())
    assert 170.0 < chi_squared < 350.0  # 255 degrees of freedom: 0.01 % lies outside
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.004
