"""The names that users of the library import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit.errors import ToolkitError

PACKAGE = Path(toolkit.__file__).parent


def test_every_public_name_is_there_and_described():
    for name in set(toolkit.__all__) - {"__version__"}:
        assert (getattr(toolkit, name).__doc__ or "").strip(), name
    assert dir(toolkit) == sorted(toolkit.__all__)


def test_types_are_told_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    told = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == toolkit._PLACES
    (names,) = (n.value for n in tree.body if isinstance(n, ast.Assign))
    assert ast.literal_eval(names) == toolkit.__all__
    assert {"__version__", *told} == set(toolkit.__all__)


def test_importing_loads_nothing_slow():
    code = "import sys, toolkit; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'choose_merg'"):
        _ = toolkit.choose_merg


def test_results_of_no_merge_stage(tmp_path: Path):
    with pytest.raises(ToolkitError, match="holds no report"):
        toolkit.read_results(tmp_path)
