"""What a killed process leaves is removed by the next, what a living one writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.leftovers import remove_leftovers, scratch_folder, temporary_path
from toolkit.stage import Stage


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


def test_only_those_of_the_dead_go(tmp_path: Path, dead: int):
    (tmp_path / "tokens").mkdir()
    gone = [tmp_path / f".a.json.{dead}.tmp", tmp_path / "tokens" / f".b.npy.{dead}.tmp"]
    kept = [tmp_path / ".a.json.1.tmp", temporary_path(tmp_path / "c"), tmp_path / ".state-1.tmp"]
    kept += [tmp_path / "a.tmp", tmp_path / "b.json"]
    for path in gone + kept:
        path.write_text("x")
    folder = tmp_path / f".gguf.{dead}.tmp"
    (folder / "inner").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in [*gone, folder])
    assert all(path.exists() for path in kept)


def test_those_of_other_hosts_go_only_where_no_other_may_write(tmp_path: Path, dead: int):
    own, other = temporary_path(tmp_path / "a"), tmp_path / f".b.{dead}@other-host.tmp"
    gone = own.with_name(own.name.replace(str(os.getpid()), str(dead)))
    for path in (own, other, gone):
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {own, other}
    remove_leftovers(tmp_path, of_all_hosts=True)
    assert set(tmp_path.iterdir()) == {own}


def test_a_long_host_name_fits_beside_a_long_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("socket.gethostname", lambda: "größe.node-17.cluster." + "x" * 200)
    path = temporary_path(tmp_path / ("n" * 180))
    path.write_text("x")
    remove_leftovers(tmp_path)
    assert path.exists()


def test_a_finished_stage_has_none(tmp_path: Path, dead: int):
    stage = Stage(tmp_path / "data", {}, {}, 0)
    with stage.running() as work:
        (work / "texts").mkdir()
        (work / "texts" / f".00-00000.parquet.{dead}.tmp").write_text("half")
        (work / "blocks.npy").write_text("whole")
        stage.finish({})
    assert sorted(path.name for path in stage.folder.rglob("*") if path.is_file()) == [
        "blocks.npy",
        "manifest.json",
    ]


def test_work_that_continues_has_none(tmp_path: Path, dead: int):
    stage = Stage(tmp_path / "data", {}, {}, 0)
    with stage.running() as work:
        (work / f".a.{dead}.tmp").write_text("half")
    with stage.running() as work:
        assert [path.name for path in work.iterdir()] == ["identity.json"]


def test_a_scratch_folder_stands_beside_and_goes(tmp_path: Path, dead: int):
    left = tmp_path / f".gguf.{dead}.tmp"
    left.mkdir()
    (left / "model.gguf").write_text("gigabytes")
    with scratch_folder(tmp_path / "gguf") as folder:
        assert folder.parent == tmp_path
        assert str(os.getpid()) in folder.name
        assert not left.exists()
    assert not list(tmp_path.iterdir())
