"""Stage folders are complete or absent, and know when they must run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.stage import (
    MANIFEST,
    Stage,
    appearing,
    content_hash,
    read_manifest,
    write_atomically,
)


def make(folder: Path, **config: object) -> Stage:
    return Stage(folder / "cpt", config, {"data": "abc"}, seed=1)


def run(stage: Stage, text: str = "x") -> None:
    with stage.running() as work:
        (work / "out.txt").write_text(text)
        stage.finish({"loss": 1.0})


def test_a_finished_stage_is_complete_and_stays_so(tmp_path: Path):
    stage = make(tmp_path, lr=1)
    assert not stage.is_complete()
    run(stage)
    assert make(tmp_path, lr=1).is_complete()
    assert read_manifest(tmp_path / "cpt")["results"] == {"loss": 1.0}
    assert not stage.work.exists()


def test_a_changed_key_is_named_and_the_old_folder_kept(tmp_path: Path):
    run(make(tmp_path, lr=1), "old")
    changed = make(tmp_path, lr=2)
    assert not changed.is_complete()
    assert changed.notes == ["config.lr: 1 -> 2"]
    run(changed, "new")
    assert (tmp_path / "cpt.1" / "out.txt").read_text() == "old"
    assert (tmp_path / "cpt" / "out.txt").read_text() == "new"


def test_interrupted_work_continues_only_under_the_same_settings(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), make(tmp_path, lr=1).running() as work:
        (work / "half.txt").write_text("half")
        raise KeyboardInterrupt
    with make(tmp_path, lr=1).running() as work:
        assert (work / "half.txt").exists()
    with make(tmp_path, lr=2).running() as work:
        assert not (work / "half.txt").exists()
    assert (tmp_path / "cpt.partial.1" / "half.txt").exists()  # hours of work are not thrown away


def test_a_kill_between_manifest_and_rename_is_finished_later(tmp_path: Path):
    stage = make(tmp_path, lr=1)
    run(stage)
    stage.folder.rename(stage.work)  # as if killed just before the rename
    assert make(tmp_path, lr=1).is_complete()


@pytest.mark.parametrize("damage", ["cut", "removed", "a bit"])
def test_a_damaged_output_is_noticed(tmp_path: Path, damage: str):
    run(make(tmp_path, lr=1), "content")
    path = tmp_path / "cpt" / "out.txt"
    before = content_hash(path.parent)
    if damage == "removed":
        path.unlink()
    else:
        path.write_text("c" if damage == "cut" else "contenu")
    assert content_hash(path.parent) != before
    again = make(tmp_path, lr=1)
    assert not again.is_complete()
    assert "out.txt" in again.notes[0]


def test_a_damaged_manifest_is_noticed(tmp_path: Path):
    run(make(tmp_path, lr=1))
    path = tmp_path / "cpt" / MANIFEST
    assert make(tmp_path, lr=1).is_complete()
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": 1.1'))
    again = make(tmp_path, lr=1)
    assert not again.is_complete()
    assert "is not as it was written" in again.notes[0]
    with pytest.raises(ToolkitError, match="is not as it was written"):
        read_manifest(tmp_path / "cpt")


def test_keys_without_effect_make_nothing_anew(tmp_path: Path):
    known = ("config.train.patience", "config.sources.*.license")

    def stage(patience: int, terms: str, lr: float = 1.0) -> Stage:
        config = {"train": {"patience": patience, "lr": lr}, "sources": {"a": {"license": terms}}}
        return Stage(tmp_path / "cpt", config, {}, seed=1, without_effect=known)

    with stage(1, "x").running() as work:
        (work / "half").touch()
    with stage(2, "y").running() as work:  # goes on with what was begun
        assert (work / "half").exists()
        stage(2, "y").finish({})
    assert stage(3, "z").is_complete()
    assert not stage(3, "z", lr=2.0).is_complete()


def test_a_second_process_is_refused(tmp_path: Path):
    stage = make(tmp_path)
    with (
        stage.running(),
        pytest.raises(ToolkitError, match="another process"),
        make(tmp_path).running(),
    ):
        pass


def test_the_manifest_is_portable(tmp_path: Path):
    run(make(tmp_path, lr=1))
    text = (tmp_path / "cpt" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["outputs"]["out.txt"]["bytes"] == 1


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_gives_way_only_to_a_whole_one(tmp_path: Path):
    out = tmp_path / "out"
    for content in ("first", "second"):
        with appearing(out, replaces=True) as work:
            (work / "a.txt").write_text(content)
    with pytest.raises(KeyboardInterrupt), appearing(out, replaces=True) as work:
        (work / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert (out / "a.txt").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_a_lender_s_folder_is_only_looked_at(tmp_path: Path):
    stage = make(tmp_path, lr=1)
    run(stage)
    stage.folder.rename(stage.work)  # as if killed just before the rename
    (tmp_path / ".cpt.lock").unlink()
    assert not make(tmp_path, lr=1).stands()
    assert [path.name for path in tmp_path.iterdir()] == ["cpt.partial"]
    assert make(tmp_path, lr=1).is_complete()
    assert make(tmp_path, lr=1).stands()


def test_a_finished_stage_is_moved_by_the_process_that_runs_it(tmp_path: Path):
    stage = make(tmp_path, lr=1)
    with stage.running() as work:
        (work / MANIFEST).write_text('{"outputs": {}}')  # the moment before the rename
        assert not make(tmp_path, lr=1).is_complete()
        assert work.is_dir()


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_that_was_left_in_the_working_folder_goes(tmp_path: Path, target: str):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept.txt").write_text("x")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "link").symlink_to(tmp_path / target)
    with appearing(tmp_path / "out") as work:
        (work / "a.txt").write_text("a")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    assert (tmp_path / "there" / "kept.txt").exists()


@pytest.mark.parametrize("happens", ["moved", "made anew"])
def test_a_working_folder_that_went_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: str
):
    from toolkit import stage as module

    partial, lock_alone, calls = tmp_path / ".out.partial", module.lock_alone, []

    def late(*words: object, **named: object) -> None:
        calls.append(1)
        if len(calls) == 1:  # the other process ends between our opening and our locking
            (partial / "other.txt").write_text("other's")
            partial.rename(tmp_path / "gone")
            if happens == "made anew":
                partial.mkdir()
        lock_alone(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "lock_alone", late)
    with appearing(tmp_path / "out") as work:
        (work / "a.txt").write_text("a")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    assert (tmp_path / "gone" / "other.txt").read_text() == "other's"
    assert len(calls) == 2
