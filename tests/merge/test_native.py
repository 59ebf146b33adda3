"""Kernels kept as machine code: found again without numba, made anew where they are damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import numpy as np
from toolkit.merge.kernels import native
rows = (np.full(8, 0x3F80, np.uint16), np.full(8, 0x4000, np.uint16))
out = np.empty(8, np.uint16)
one = np.float32(1.0)
native.combine_models(rows, np.array([0.5, 0.5], np.float32), one, True, out)
assert (out == 0x3FC0).all(), out  # half of 1 and half of 2
print("numba" in sys.modules)
"""


def run(home: Path, cache: Path | None = None) -> str:
    """Whether a process that calls a kernel loads numba."""
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    environment["HOME"] = str(home)
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def objects(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.o"))


def test_compiled_once_then_loaded(tmp_path: Path):
    assert run(tmp_path) == "True"
    (file,) = objects(tmp_path)
    before = file.read_bytes()
    assert run(tmp_path) == "False"
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_code_is_never_run(tmp_path: Path, damage: str):
    run(tmp_path)
    (file,) = objects(tmp_path)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    file.write_bytes({"cut": whole[:-100], "flipped": bytes(flipped), "empty": b""}[damage])
    assert run(tmp_path) == "True"  # compiled again
    assert run(tmp_path) == "False"


def test_a_cache_that_cannot_be_written(tmp_path: Path):
    """Where no folder can be made, kernels are compiled and kept nowhere."""
    (tmp_path / "file").touch()
    assert run(tmp_path, cache=tmp_path / "file") == "True"
    assert not objects(tmp_path)
