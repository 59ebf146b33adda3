"""Whatever the system or a library raises is one line with its place; our own bugs are not."""

from __future__ import annotations

import csv
import errno
import json
import lzma
import os
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pyarrow
import pytest
import safetensors
import tokenizers
import yaml

from toolkit.cli import entry, process
from toolkit.errors import CheckpointError, ConfigError, DataError
from toolkit.library_errors import computing, explain, place_of, reading


def system_error(number: int) -> Callable[[], Any]:
    def act() -> None:
        raise OSError(number, os.strerror(number), "models/law")

    return act


def insecure() -> None:
    environment = jinja2.sandbox.SandboxedEnvironment()
    environment.from_string("{{ ''.__class__.__mro__.x }}").render()


def raised(act: Callable[[], Any]) -> BaseException:
    try:
        act()
    except BaseException as error:  # a panic of Rust is no Exception
        return error
    raise AssertionError("nothing was raised")


LIBRARIES: dict[str, Callable[[], Any]] = {
    "json": lambda: json.loads("{"),
    "utf-8": lambda: b"\xff".decode("utf-8"),
    "yaml": lambda: yaml.safe_load("a: ["),
    "zip": lambda: zipfile.ZipFile(__file__),
    "zlib": lambda: zlib.decompress(b"x"),
    "lzma": lambda: lzma.decompress(b"x"),
    "csv": lambda: list(csv.reader(["a\0", '"'], strict=True)),
    "sqlite": lambda: sqlite3.connect(":memory:").execute("select * from gone"),
    "safetensors": lambda: safetensors.safe_open(__file__, framework="np"),
    "tokenizers": lambda: tokenizers.Tokenizer.from_str("{}"),
    "arrow": lambda: pyarrow.array([1, "a"]),
    "jinja": lambda: jinja2.Template("{% if %}"),
    "jinja's security": insecure,
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries(name: str):
    known = explain(raised(LIBRARIES[name]))
    assert known is not None
    assert len(str(known).splitlines()) == 1
    assert known.exit_code == (2 if name == "yaml" else 1)


SYSTEM = "ACCES NOENT ISDIR NOTDIR NOSPC ROFS LOOP NAMETOOLONG IO MFILE EXIST PROTO"


@pytest.mark.parametrize(
    "number",
    [getattr(errno, f"E{name}") for name in SYSTEM.split()],
)
def test_the_system(number: int):
    text = str(explain(raised(system_error(number))))
    assert text.startswith("models/law: ")
    assert text.endswith(".")


@pytest.mark.parametrize(
    "act",
    [
        lambda: {}["gone"],
        lambda: None.gone,  # type: ignore[attr-defined]
        lambda: len(1),  # type: ignore[arg-type]
        lambda: int("x"),
        lambda: [][1],
    ],
)
def test_our_own_bugs_stay_bugs(act: Callable[[], Any]):
    assert explain(raised(act)) is None


def test_memory_and_depth():
    assert "memory is exhausted" in str(explain(MemoryError("x")))
    cuda = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")
    assert "memory is exhausted" in str(explain(cuda))


def test_the_file_in_hand_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.library_errors._PACKAGE", str(Path(__file__).parent))

    def read(path: Path) -> Any:
        return json.loads("{")

    error = raised(lambda: read(tmp_path / "config.json"))
    assert place_of(error) == str(tmp_path / "config.json")
    assert str(explain(error)).startswith(f"{tmp_path / 'config.json'}: ")


def test_reading_blames_the_place():
    words = r"^a\.json: cannot be read \(KeyError: there is no 'x'\)"
    with pytest.raises(DataError, match=words), reading("a.json", DataError):
        {}["x"]
    with pytest.raises(CheckpointError, match=r"nested too deeply"), reading("a.json"):
        raise RecursionError
    with pytest.raises(ConfigError, match="own words"), reading("a.json"):
        raise ConfigError("own words")
    with pytest.raises(MemoryError), reading("a.json"):
        raise MemoryError


def test_a_model_is_blamed_for_what_libraries_raise_with_it():
    with pytest.raises(CheckpointError, match=r"^law: cannot be computed with"), computing("law"):
        yaml.safe_load(7)  # type: ignore[arg-type]  # raised within the library
    with pytest.raises(TypeError), computing("law"):
        len(1)  # type: ignore[arg-type]  # raised by the caller


def ended(act: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as left, process.errors_in_one_line():
        act()
    return left.value.code, capsys.readouterr().err


def test_the_command_line_ends_in_one_line(capsys: pytest.CaptureFixture[str]):
    code, text = ended(system_error(errno.EACCES), capsys)
    assert code == 1
    assert text.startswith("error: models/law: permission is denied.")
    assert len(text.splitlines()) == 1


def test_a_bug_says_how_to_report_it(capsys, monkeypatch):
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("toolkit.cli.main.main", fail)
    with pytest.raises(SystemExit) as left:
        entry.main()
    text = capsys.readouterr().err
    assert left.value.code == entry.OWN_FAULT
    assert "Traceback (most recent call last)" in text
    assert "toolkit machine" in text.splitlines()[-1]


def test_the_traceback_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("TOOLKIT_TRACEBACK", "1")
    code, text = ended(system_error(errno.EACCES), capsys)
    assert code == 1
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1].startswith("error: models/law: ")
