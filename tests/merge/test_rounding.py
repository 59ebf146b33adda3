"""Stochastic rounding: unbiased, the same bytes from every engine, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.merge_candidates import assert_same_bytes, candidate
from toolkit.checkpoint.open import open_checkpoint
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.graph import load_merge_graph, run_merge_graph
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.kernels import compiled, fast
from toolkit.merge.kernels import workers as workers_module
from toolkit.merge.rounding import StochasticRounding, TensorRounding
from toolkit.merge.to_disk import run_merge

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def as_floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(bits.view(np.int16)).view(TYPES[dtype]).double().numpy()


def rounding(dtype: str, seed: int = 0) -> TensorRounding:
    found = StochasticRounding(seed).of_tensor("x", dtype)
    assert found is not None
    return found


def all_values(dtype: str) -> np.ndarray:
    """Every finite number of a 16-bit type as float32, zeros of both signs and denormals too."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TYPES[dtype]).float()
    return patterns[patterns.isfinite()].numpy()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str, name: str) -> None:
        raise ImportError("no numba")

    monkeypatch.setattr(compiled, "_import_kernel", fail)
    monkeypatch.setattr(fast, "_FORGONE", set())


def awkward() -> np.ndarray:
    """Numbers of every size, with what is special to either type among them."""
    random = np.random.default_rng(0)
    any_bits = random.integers(0, 1 << 32, 40_000, dtype=np.uint64).astype(np.uint32)
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65505, 65519.99, 65520, -65520, 2.0**-14, 6e-5,
         5.96e-8, 2.9e-8, 1e-9, -1e-12, 1e-45, 3.3895314e38, 3.3960e38, -3.4e38],
        np.float32,
    )  # fmt: skip
    ordinary = random.normal(size=9001).astype(np.float32)
    return np.concatenate([special, any_bits.view(np.float32), ordinary])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_kernel_and_numpy_round_alike(
    dtype: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    values = awkward()
    by_kernel = rounding(dtype)(values, 3)
    pieces = [rounding(dtype)(values[at : at + 777], 3 + at) for at in range(0, values.size, 777)]
    np.testing.assert_array_equal(np.concatenate(pieces), by_kernel)
    request.getfixturevalue("without_kernels")
    np.testing.assert_array_equal(rounding(dtype)(values, 3), by_kernel)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_the_type_holds_is_unchanged(dtype: str):
    values = all_values(dtype)
    for seed in range(5):
        found = rounding(dtype, seed)(values, 0)
        expected = torch.from_numpy(values).to(TYPES[dtype]).view(torch.int16).numpy()
        np.testing.assert_array_equal(found.view(np.int16), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_either_neighbor_and_no_other(dtype: str):
    grid = np.unique(all_values(dtype).astype(np.float64))
    values = awkward()
    values = values[np.isfinite(values) & (np.abs(values) < grid[-1])]
    found = as_floats(rounding(dtype)(values, 0), dtype)
    above = np.minimum(np.searchsorted(grid, values), grid.size - 1)
    is_held = grid[above] == values
    below = np.where(is_held, above, above - 1)
    assert np.all((found == grid[below]) | (found == grid[above]))


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("BF16", 1.0, 1.0078125),
        ("BF16", -1.9921875, -2.0),  # the step above is twice as large
        ("BF16", 9.184e-41, 1.8368e-40),  # denormals
        ("F16", 1.0, 1.0009765625),
        ("F16", 2.0**-24, 2.0**-23),
        ("F16", 0.0, 2.0**-24),
        ("F16", 2.0**-14 - 2.0**-24, 2.0**-14),
    ],
)
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.93])
def test_unbiased(dtype: str, low: float, high: float, share: float):
    # Of n draws the mean stands within 5 of its standard errors, by a binomial with the share.
    value = np.float32(low + share * (high - low))
    n = 400_000
    found = as_floats(rounding(dtype)(np.full(n, value, np.float32), 0), dtype)
    low, high = found.min(), found.max()
    true_share = (float(value) - low) / (high - low)
    mean = (found.mean() - low) / (high - low)
    assert abs(mean - true_share) < 5 * (true_share * (1 - true_share) / n) ** 0.5


def test_beyond_the_largest_number_rounding_is_to_the_nearest():
    for dtype, torch_type in TYPES.items():
        largest = torch.finfo(torch_type).max
        beyond = [largest * (1.0 + 2.0**-power) for power in (20, 13, 11.5, 10, 8.6)]
        values = np.array([largest, *beyond, np.inf], np.float32)
        values = np.concatenate([values, -values])
        expected = torch.from_numpy(values).to(torch_type)
        found = torch.from_numpy(rounding(dtype)(values, 0).view(np.int16)).view(torch_type)
        assert torch.equal(found, expected)
        nan = rounding(dtype)(np.array([np.nan], np.float32), 0)
        assert torch.from_numpy(nan.view(np.int16)).view(torch_type).isnan().all()


def test_draws_follow_seed_name_and_step():
    values = np.full(1000, 1.003, np.float32)
    one, *others = (
        StochasticRounding(seed, step).of_tensor(name, "BF16")(values, 0).tolist()  # type: ignore[misc]
        for seed, step, name in [(0, "", "x"), (1, "", "x"), (0, "a", "x"), (0, "", "y")]
    )
    assert all(one != other for other in others)
    assert StochasticRounding(0).of_tensor("x", "F32") is None


METHODS = [
    ("linear", 0.3, {}),
    ("slerp", 0.4, {}),
    ("task_arithmetic", 1.2, {}),
    ("ties", 0.8, {"density": 0.3}),
    ("dare_ties", 0.5, {"density": 0.6}),
    ("della", 0.5, {"density": 0.6, "epsilon": 0.1}),
    ("nearswap", 0.001, {}),
]


def written(data: dict[str, Any], folders: dict[str, Path], out: Path, **more: Any) -> Any:
    config = parse_merge_config(data, where="test")
    run_merge(config, out, folders=folders, seed=5, **more)
    checkpoint = open_checkpoint(out)
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.names}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n].view(torch.int16), b[n].view(torch.int16)) for n in a)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("method", "share", "more"), METHODS)
def test_one_result_in_memory_and_on_disk_by_any_engine(
    method: str,
    share: float,
    more: dict[str, float],
    dtype: str,
    two_models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    data = {**candidate(method, share, **more), "out_dtype": dtype, "rounding": "stochastic"}
    expected = written(data, folders, tmp_path / "one", num_threads=1)
    nearest = written({**data, "rounding": "nearest"}, folders, tmp_path / "nearest")
    unsaid = written({k: v for k, v in data.items() if k != "rounding"}, folders, tmp_path / "no")
    assert same(nearest, unsaid)
    assert not same(nearest, expected)
    model = AutoModelForCausalLM.from_pretrained(two_models[0], dtype=getattr(torch, dtype))
    LiveMerge(folders, seed=5).apply(parse_merge_config(data, where="test"), model)
    assert_same_bytes(model, expected)
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 9)
    again = written(data, folders, tmp_path / "three", num_threads=3, shard_bytes=20_000)
    assert len(list((tmp_path / "three").glob("*.safetensors"))) > 1
    assert same(again, expected)
    request.getfixturevalue("without_kernels")
    assert same(written(data, folders, tmp_path / "torch"), expected)


def test_a_large_merge_achieves_what_is_asked(tmp_path: Path, make_model: Callable[..., Path]):
    folders = {}
    random = torch.Generator().manual_seed(0)
    general = make_model(tmp_path / "general", seed=1)
    state = {k: v.bfloat16() for k, v in load_file(general / "model.safetensors").items()}
    grown = {
        k: v
        if "norm" in k
        else (v.float() + 1e-4 * torch.randn(v.shape, generator=random)).bfloat16()
        for k, v in state.items()
    }
    for name, tensors in {"general": state, "specialist": grown}.items():
        folders[name] = make_model(tmp_path / name, seed=1)
        save_file(tensors, folders[name] / "model.safetensors")
    achieved = {}
    for rounding_name in ("nearest", "stochastic"):
        data = {**candidate("linear", 0.2), "out_dtype": "bfloat16", "rounding": rounding_name}
        merged = written(data, folders, tmp_path / rounding_name)
        over = under = noise = 0.0
        for name, start in state.items():
            way = grown[name].double() - start.double()
            over += float((way * (merged[name].double() - start.double())).sum())
            under += float((way * way).sum())
            exact = start.double() + 0.2 * way
            noise += float((way * (merged[name].double() - exact)).square().sum())
        achieved[rounding_name] = over / under, noise**0.5 / under
    assert achieved["nearest"][0] < 0.15  # most of a move of one step lies within half a step
    value, error = achieved["stochastic"]
    assert abs(value - 0.2) < 4 * error
    assert error < 0.01


def test_what_it_has_no_effect_on_is_said(
    two_models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    data = {**candidate("linear", 0.3), "out_dtype": "float32"}
    one = written({**data, "rounding": "stochastic"}, folders, tmp_path / "one")
    assert "rounding: stochastic has no effect on tensors written in float32" in (
        capsys.readouterr().err
    )
    two = written(data, folders, tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("weight", [1.2, 7e4])
def test_what_does_not_fit_is_refused(weight: float, two_models: tuple[Path, Path], tmp_path: Path):
    folders = dict(zip(("general", "specialist"), two_models, strict=True))
    data = candidate("linear", 0.3)
    data["models"][0]["parameters"]["weight"] = weight * 1e6
    data |= {"out_dtype": "float16", "rounding": "stochastic", "parameters": {"normalize": False}}
    with pytest.raises(MergeError, match="do not fit into float16"):
        written(data, folders, tmp_path / "out")


def test_intermediate_merges_have_draws_of_their_own(two_models: tuple[Path, Path], tmp_path: Path):
    # A half of a half: with the same draws twice, entries that went up would go up again.
    general, specialist = two_models
    file = tmp_path / "graph.yaml"
    head = "merge_method: linear\nout_dtype: bfloat16\nrounding: stochastic\nmodels:\n"
    line = "- {{model: {}, parameters: {{weight: 0.5}}}}\n"
    first = "name: half\n" + head + line.format(general) + line.format(specialist)
    file.write_text(first + "---\n" + head + line.format(general) + line.format("half"))
    run_merge_graph(load_merge_graph(file), tmp_path / "out", seed=0)
    half = parse_merge_config(
        {**candidate("linear", 0.5), "out_dtype": "bfloat16", "rounding": "stochastic"}, where="t"
    )
    folders = {"general": general, "specialist": specialist}
    run_merge(half, tmp_path / "half", folders=folders, step="half")
    run_merge(half, tmp_path / "all", folders={**folders, "specialist": tmp_path / "half"})
    by_hand = load_file(tmp_path / "all/model.safetensors")
    made = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(made[name], by_hand[name]) for name in made)


def test_a_wrong_word_is_a_fault():
    with pytest.raises(ConfigError, match="rounding: must be one of 'nearest' or 'stochastic'"):
        parse_merge_config({**candidate("linear", 0.3), "rounding": "up"}, where="test")
