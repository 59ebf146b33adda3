"""Kernels against the torch definitions: the same bits, on awkward sizes and values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from toolkit.checkpoint.write import dtype_name
from toolkit.merge.compute import NonFiniteError, engine_of, run_task
from toolkit.merge.definition import compute_tensor
from toolkit.merge.kernels import fast, sums
from toolkit.merge.kernels import workers as workers_module
from toolkit.merge.kernels.workers import Workers
from toolkit.merge.models import Models
from toolkit.merge.plan import Source, TensorTask
from toolkit.merge.registry import Place, get_method

BOTH_BF16 = (torch.bfloat16, torch.bfloat16)
WEIGHTS = {"weight": (0.6, -0.25)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {**WEIGHTS, "normalize": True}),
    ("linear", {**WEIGHTS, "normalize": False}),
    ("task_arithmetic", {**WEIGHTS, "normalize": False, "lambda_": 0.7}),
    ("task_arithmetic", {**WEIGHTS, "normalize": True, "lambda_": 1.0}),
    ("slerp", {"t": 0.35}),
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


def inputs(size: int, count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Tuned tensors near a base, with zeros, signed zeros, denormals and large values among them;
    in bfloat16 many entries tie at any threshold."""
    torch.manual_seed(size)
    base = torch.randn(size) * 0.02
    large = 6e4 if dtype == torch.float16 else 3e38
    tuned = [base + torch.randn(size) * 0.003 for _ in range(count)]
    for number, tensor in enumerate([base, *tuned]):
        odd = torch.tensor([0.0, -0.0, large, 1e-41, -1e-41, 1.0, 0.125])
        tensor[number : number + odd.numel()] = odd[: max(0, size - number)][
            : tensor[number:].numel()
        ]
    return [tensor.to(dtype) for tensor in tuned], base.to(dtype)


def run(
    name: str,
    parameters: dict[str, Any],
    size: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    threads: int,
    folder: Path,
) -> tuple[Tensor, Tensor]:
    """Merge by the kernel, from files, and by the definition."""
    stored, out = dtypes
    method = get_method(name)
    count = 1 if name == "slerp" else 2
    tuned, base = inputs(size, count, stored)
    named = {**{str(n): tensor for n, tensor in enumerate(tuned)}, "base": base}
    for key, tensor in named.items():
        (folder / key).mkdir(exist_ok=True)
        save_file({"x": tensor}, folder / key / "model.safetensors")
    models = Models({key: folder / key for key in named})
    shared = [p for p in method.parameters.values() if not (p.required or p.per_model)]
    full = {p.name.replace("lambda", "lambda_"): p.default for p in shared}
    task = TensorTask(
        name="x",
        shape=(size,),
        sources=tuple(Source(str(n), "x") for n in range(count)),
        base=Source("base", "x") if method.accepts_base else None,
        parameters={**full, **parameters},
        place=Place("x", None, 1),
    )
    assert engine_of(task, method, models, dtype_name(out), "cpu") == "kernel"
    merged = torch.empty(size, dtype=out)

    def put(start: int, data: memoryview) -> None:
        block = torch.frombuffer(bytearray(data), dtype=out)
        merged[start : start + block.numel()] = block

    workers = Workers(threads)
    run_task(method, task, models, put, seed=0, dtype=dtype_name(out), workers=workers)
    workers.close()
    last = base if method.accepts_base else None
    return merged, compute_tensor(method, task, tuned, last, seed=0, dtype=out)


def bits(tensor: Tensor) -> np.ndarray:
    kind = torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32
    return tensor.view(kind).numpy()


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("size", [1, 7, 2048, 5001])
@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
def test_the_same_bits_as_the_definition(name, parameters, size, dtype, out, tmp_path: Path):
    merged, expected = run(name, parameters, size, (dtype, out), 2, tmp_path)
    np.testing.assert_array_equal(bits(merged), bits(expected))


@pytest.mark.parametrize("name", ["ties", "slerp", "linear"])
def test_threads_and_blocks_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parameters = next(p for n, p in CASES if n == name)
    whole, _ = run(name, parameters, 30_011, BOTH_BF16, 1, tmp_path)
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 12)
    for threads in (1, 3):
        cut, _ = run(name, parameters, 30_011, BOTH_BF16, threads, tmp_path)
        np.testing.assert_array_equal(bits(cut), bits(whole))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "slerp", "ties", "breadcrumbs"])
def test_non_finite_inputs_are_found(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = inputs

    def bad(size: int, count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        tuned, base = good(size, count, dtype)
        tuned[-1][-1] = value
        return tuned, base

    monkeypatch.setattr(f"{__name__}.inputs", bad)
    with pytest.raises(NonFiniteError):
        run(name, next(p for n, p in CASES if n == name), 300, BOTH_BF16, 1, tmp_path)


@pytest.mark.parametrize("k", [1, 2, 499, 1000])
def test_ranks_are_exact(k: int):
    torch.manual_seed(k)
    base, tuned = torch.randn(1000), torch.randn(1000)
    tuned[:300] = base[:300] + 0.5  # many that tie, up to rounding
    workers = Workers(2)
    rows = (tuned.numpy(), base.numpy())
    read = lambda start, stop: tuple(row[start:stop] for row in rows)  # noqa: E731
    found = fast._kth_smallest(read, 1000, 0, k, workers, {})
    assert found == float((tuned - base).abs().kthvalue(k).values)


def test_casting_is_to_nearest_ties_to_even():
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -1.00390625, 3.4e38, 1e-40, 65504.0, 0.1])
    out = np.empty(8, np.uint16)
    one = np.float32(1.0)
    sums.combine_models((values.numpy(),), np.array([1.0], np.float32), one, False, out)
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
        f"from toolkit.merge.run import run_merge; p = Path({str(tmp_path)!r});"
        "run_merge(load_merge_config(p / 'm.yml'), p / 'out'); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
    assert (tmp_path / "out" / "model.safetensors").is_file()
