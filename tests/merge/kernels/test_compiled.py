"""Compiled kernels: kept from process to process, for any processor, and done without."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.merge_by_kernels import METHODS, hash_merges
from toolkit.diagnose.sums import sum_tensor
from toolkit.merge.kernels import compiled, fast
from toolkit.merge.kernels.workers import WorkerThreads

ROOT = Path(__file__).parents[3]
PROGRAM = """
import numpy as np
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.rows import as_row
from toolkit.merge.kernels.source.sums import combine_models
rows = tuple(as_row(np.full(8, bits, np.uint16)) for bits in (0x3F80, 0x4000))
out = np.empty(8, np.uint16)
one = np.float32(1.0)
compiled.combine_models(rows, np.array([0.5, 0.5], np.float32), one, out)
assert (out == 0x3FC0).all(), out  # half of 1 and half of 2
print("loaded" if combine_models.stats.cache_hits else "compiled")
"""


def run(home: Path, cache: Path | None = None) -> str:
    """Whether a process that calls a kernel compiles it or loads it."""
    names = {"TOOLKIT_CACHE", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"}
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment["HOME"] = str(home)
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_kernel_spares_scipy_and_leaves_it_to_others(tmp_path: Path):
    """numba looks for BLAS at its first function; whoever needs scipy later still gets it."""
    after = """
import sys
assert "scipy.linalg" not in sys.modules, "numba imported it"
import scipy.linalg
assert abs(scipy.linalg.det([[2.0]]) - 2.0) < 1e-12
"""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + after],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_kernels_leave_scipy_alone_where_another_thread_could_need_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "scipy.linalg", raising=False)
    monkeypatch.setattr(compiled.threading, "active_count", lambda: 2)
    with compiled._without_scipy_linalg():
        assert "scipy.linalg" not in sys.modules


def test_a_kernel_is_compiled_once_then_loaded(tmp_path: Path):
    assert run(tmp_path) == "compiled"
    (file,) = tmp_path.rglob("*.nbc")
    assert file.is_relative_to(tmp_path / ".cache" / "cpt-toolkit" / "kernels")
    before = file.read_bytes()
    assert run(tmp_path) == "loaded"
    assert file.read_bytes() == before


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("length", [0, 100])
def test_a_damaged_file_is_made_anew(tmp_path: Path, ending: str, length: int):
    run(tmp_path)
    (file,) = tmp_path.rglob(f"*.{ending}")
    file.write_bytes(file.read_bytes()[:length])
    assert run(tmp_path) == "compiled"
    assert run(tmp_path) == "loaded"


def test_a_cache_that_cannot_be_written(tmp_path: Path):
    """Kernels are then compiled and kept nowhere, beside their source neither."""
    (tmp_path / "file").touch()
    assert run(tmp_path, cache=tmp_path / "file") == "compiled"
    assert not list(tmp_path.rglob("*.nb?"))
    assert not list((ROOT / "toolkit").rglob("combine_models*.nb?"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every method writes here and now."""
    return hash_merges(tmp_path_factory.mktemp("here"))


def merge_elsewhere(folder: Path, *words: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """What a process says that merges by every method, and what it writes."""
    command = [sys.executable, "-m", "tests.helpers.merge_by_kernels", str(folder), *words]
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, json.loads(done.stdout)


def can_run(features: str) -> bool:
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    import llvmlite.binding as llvm

    return all(llvm.get_host_cpu_features().get(name) for name in features.split())


@pytest.mark.parametrize("name", ["generic", "haswell", "znver3", "znver4"])
def test_another_processor_writes_the_same_bytes(
    name: str, tmp_path: Path, expected: dict[str, str]
):
    needed = {"generic": "", "znver4": "avx512f avx512bw avx512vbmi2 avx512bf16"}
    if not can_run(needed.get(name, "avx2 fma bmi2")):
        pytest.skip("this processor cannot run what is compiled for that one")
    # An empty list of features leaves those that the name stands for.
    variables = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "+sse2"}
    text, found = merge_elsewhere(tmp_path / "out", **variables)
    assert "without compiled kernels" not in text
    assert found["hashes"] == expected


def test_without_numba_the_definitions_write_the_same_bytes(
    tmp_path: Path, expected: dict[str, str]
):
    text, found = merge_elsewhere(tmp_path / "out", "--without-numba")
    assert text.count("warning: numba cannot be used here (ModuleNotFoundError: ") == 1
    assert found["hashes"] == expected
    assert "torch" in found["modules"]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba imports, and fails to compile whatever it is given."""

    def fail(function: Any, signature: Any) -> None:
        raise OSError("no such compiler")

    def import_new(module: str, name: str) -> SimpleNamespace:
        return SimpleNamespace(overloads={})

    monkeypatch.setattr(compiled, "_compile", fail)
    monkeypatch.setattr(compiled, "_import_kernel", import_new)
    monkeypatch.setattr(fast, "_FORGONE", set())


@pytest.mark.usefixtures("no_compiler")
def test_where_compiling_fails_the_definitions_write_the_same_bytes(
    tmp_path: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    assert hash_merges(tmp_path) == expected
    told = [line for line in capsys.readouterr().err.splitlines() if "compiler" in line]
    assert "kernel combine_models: OSError: no such compiler; computing without" in told[0]
    assert len(told) == len(set(told))  # each kernel once
    forgone = set(METHODS) - {"ties_global"}  # it has none of its own
    assert all(fast.find_kernel(name, {"nuslerp_flatten": True}, (4,)) is None for name in forgone)


def test_a_diagnosis_without_kernels(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    arrays = [random.normal(size=5000).astype(np.float32) for _ in range(4)]
    arrays[1][:300] = arrays[0][:300]
    arrays[2][7] = np.inf
    with_kernel = [sum_tensor(arrays[n:], 0, WorkerThreads(1)) for n in (0, 1)]

    def fail(*names: str) -> None:
        raise ImportError("no numba")

    monkeypatch.setattr(compiled, "_import_kernel", fail)
    for n, expected in enumerate(with_kernel):
        found = sum_tensor(arrays[n:], 0, WorkerThreads(1))
        assert found.entries == expected.entries
        np.testing.assert_array_equal(found.non_finite, expected.non_finite)
        finite = np.flatnonzero(found.non_finite == 0)
        pairs = np.ix_(finite, finite)
        np.testing.assert_array_equal(found.both[pairs], expected.both[pairs])
        np.testing.assert_array_equal(found.same[pairs], expected.same[pairs])
        np.testing.assert_allclose(found.squares[finite], expected.squares[finite], rtol=1e-12)
        np.testing.assert_allclose(found.gaps[pairs], expected.gaps[pairs], rtol=1e-12)
