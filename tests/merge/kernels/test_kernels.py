"""Kernels against the torch definitions: the same bits, on awkward sizes and values."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.kernel_runs import bits, inputs, merge_both_ways
from toolkit.merge.compute import NonFiniteError
from toolkit.merge.kernels import compiled, ranks
from toolkit.merge.kernels import workers as workers_module
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.rows import RowReader
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.registry import get_method

BOTH_BF16 = (torch.bfloat16, torch.bfloat16)
WEIGHTS = {"weight": (0.6, -0.25)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {**WEIGHTS, "normalize": True}),
    ("linear", {**WEIGHTS, "normalize": False}),
    ("task_arithmetic", {**WEIGHTS, "normalize": False, "lambda_": 0.7}),
    ("task_arithmetic", {**WEIGHTS, "normalize": True, "lambda_": 1.0}),
    ("slerp", {"t": 0.35}),
    ("nuslerp", {"weight": (0.6, 0.3)}),
    *(
        ("ties", {"weight": (0.6, w), "density": d, "normalize": n, "lambda_": 1.3})
        for w in (0.4, -0.6)
        for d in ((0.2, 0.55), (1.0, 0.0), (0.001, 1.0))
        for n in (True, False)
    ),
    *(
        (
            name,
            {
                **WEIGHTS,
                "density": (0.5, 0.9),
                "gamma": (0.01, 0.2),
                "normalize": n,
                "lambda_": 1.0,
            },
        )
        for name in ("breadcrumbs", "breadcrumbs_ties")
        for n in (True, False)
    ),
]


def run(
    name: str,
    parameters: dict[str, Any],
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, torch.dtype],
    threads: int,
    folder: Path,
) -> tuple[Tensor, Tensor]:
    """Merge awkward tensors by the kernel and by the definition."""
    tuned, base = inputs(shape, 1 if name == "slerp" else 2, dtypes[0])
    last = base if get_method(name).accepts_base and name != "nuslerp" else None
    return merge_both_ways(name, parameters, tuned, last, dtypes[1], folder, threads=threads)


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("size", [1, 7, 2048, 5001])
@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
)
def test_the_same_bits_as_the_definition(name, parameters, size, dtype, out, tmp_path: Path):
    merged, expected = run(name, parameters, (size,), (dtype, out), 2, tmp_path)
    np.testing.assert_array_equal(bits(merged), bits(expected))


@pytest.mark.parametrize("name", ["ties", "slerp", "linear"])
def test_threads_and_blocks_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parameters = next(p for n, p in CASES if n == name)
    whole, _ = run(name, parameters, (30_011,), BOTH_BF16, 1, tmp_path)
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 12)
    for threads in (1, 3):
        cut, _ = run(name, parameters, (30_011,), BOTH_BF16, threads, tmp_path)
        np.testing.assert_array_equal(bits(cut), bits(whole))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "slerp", "ties", "breadcrumbs"])
def test_non_finite_inputs_are_found(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = inputs

    def bad(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        tuned, base = good(shape, count, dtype)
        tuned[-1][-1] = value
        return tuned, base

    monkeypatch.setattr(f"{__name__}.inputs", bad)
    with pytest.raises(NonFiniteError):
        run(name, next(p for n, p in CASES if n == name), (300,), BOTH_BF16, 1, tmp_path)


def task_vector(kind: str, size: int) -> tuple[RowReader, Tensor]:
    """Two task vectors as a job reads them; the magnitudes of the second in order."""
    torch.manual_seed(size)
    base, tuned = torch.randn(size), torch.randn(size)
    tuned[: size // 3] = base[: size // 3] + 0.5  # many that tie, up to rounding
    tuned[size // 3 : size // 3 + size // 100] = base[size // 3 : size // 3 + size // 100]
    if kind == "few values":
        base, tuned = (base * 16).round() / 16, (tuned * 16).round() / 16
    if kind == "frozen":
        tuned[10:] = base[10:]
    if kind == "one end changed":  # runs of a sample cannot know how much of it
        tuned[size // 300 :] = base[size // 300 :]
    read = RowReader([base.neg().numpy(), tuned.numpy(), base.numpy()])
    return read, (tuned - base).abs().sort().values


@pytest.mark.parametrize("kind", ["many values", "few values", "frozen", "one end changed"])
@pytest.mark.parametrize("size", [1000, 300_000])
def test_ranks_are_exact_first_and_from_the_table(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
):
    # With new ranks every time: a pass over windows, then a table, or two passes for many values.
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 16)
    read, ordered = task_vector(kind, size)
    memory: dict[Any, Any] = {}
    workers = WorkerThreads(2)
    job = Job(read, (size,), {}, workers, memory)
    shares = [(0.5, 0.999), (0.001,), (0.2, 0.4), (0.0101,), (0.31, 0.34), (1.0,), (0.0, 0.99)]
    for ranks_now in [[max(1, int(share * size)) for share in now] for now in shares]:
        expected = [float(ordered[k - 1]) for k in ranks_now]
        assert ranks.kth_smallest(job, [(1, k) for k in ranks_now]) == expected
        assert ranks.kth_smallest(replace(job, memory={}), [(1, k) for k in ranks_now]) == expected
    assert (memory["table", 1] is None) == (kind == "many values")


def test_a_rank_outside_its_window_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch):
    # Windows so narrow that most ranks are outside, and a count of how many passes that takes.
    size = 200_000
    read, ordered = task_vector("many values", size)
    workers = WorkerThreads(2)
    job = Job(read, (size,), {}, workers, {})
    assert len(ranks._within_windows(job, [(1, size // 2), (0, size // 2)])) == 2
    monkeypatch.setattr(ranks, "_window", lambda wanted, *_: ranks._Window(wanted, 0, 1 << 16))
    assert ranks._within_windows(job, [(1, size // 2)]) == {}
    assert ranks.kth_smallest(job, [(1, size // 2)]) == [float(ordered[size // 2 - 1])]


def test_a_window_with_too_many_entries_is_given_up(monkeypatch: pytest.MonkeyPatch):
    size = 200_000
    read, ordered = task_vector("many values", size)
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 16)
    monkeypatch.setattr(ranks, "_MOST_HELD", 5_000)
    job = Job(read, (size,), {}, WorkerThreads(2), {})
    middle, low = (1, size // 2), (1, 100)
    assert set(ranks._within_windows(job, [middle, low])) == {low}
    expected = [float(ordered[k - 1]) for _, k in (middle, low)]
    assert ranks.kth_smallest(job, [middle, low]) == expected


def test_casting_is_to_nearest_ties_to_even():
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -1.00390625, 3.4e38, 1e-40, 65504.0, 0.1])
    out = np.empty(8, np.uint16)
    compiled.combine_models((values.numpy(),), np.array([1.0], np.float32), None, out)
    np.testing.assert_array_equal(out.view(np.int16), bits(values.bfloat16()))


def test_a_merge_by_kernels_does_not_load_torch(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"x.0.w": torch.randn(9)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    models = "".join(f"- {{model: {tmp_path / n}, parameters: {{weight: 1}}}}\n" for n in "ab")
    (tmp_path / "m.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    script = (
        "import sys; from pathlib import Path; from toolkit.merge.config import load_merge_config;"
        f"from toolkit.merge.to_disk import run_merge; p = Path({str(tmp_path)!r});"
        "run_merge(load_merge_config(p / 'm.yml'), p / 'out'); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
    assert (tmp_path / "out" / "model.safetensors").is_file()
