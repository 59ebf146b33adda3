"""Where kernels are kept: a folder of the user's own, that nobody else may put code into."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.merge.kernels import cache
from toolkit.merge.kernels.cache import kernel_folder, locked_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "shared"))
    return tmp_path


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    kernel_folder.cache_clear()
    yield
    kernel_folder.cache_clear()


def test_a_folder_that_others_may_write_to_is_closed(own_cache: Path):
    folder = kernel_folder()
    assert folder is not None
    assert own_cache / "shared" in folder.parents
    folder.chmod(0o777)
    kernel_folder.cache_clear()
    assert kernel_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_left_for_one_of_one_s_own(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    real = cache._fault_of_folder
    monkeypatch.setattr(
        cache,
        "_fault_of_folder",
        lambda p: "belongs to another user" if own_cache / "shared" in p.parents else real(p),
    )
    folder = kernel_folder()
    assert folder is not None
    assert own_cache / "home" in folder.parents
    assert "belongs to another user; its kernels are not run" in capsys.readouterr().err


def test_files_of_another_user_are_not_run(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    del own_cache
    folder = kernel_folder()
    assert folder is not None
    user = folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: user + 1)
    assert cache._fault_of_folder(folder) == "belongs to another user"
    monkeypatch.undo()
    (folder / "planted").touch()
    folder.chmod(0o777)
    real = Path.lstat

    class Planted:
        st_uid = user + 1

    monkeypatch.setattr(Path, "lstat", lambda p: Planted() if p.name == "planted" else real(p))
    assert cache._fault_of_folder(folder) == "holds files of another user"


def test_a_file_system_without_locks_has_a_compiler_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_cache():
        entered = True
    assert entered
