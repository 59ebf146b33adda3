"""Where models are looked for: here, in the hub's cache, and on the hub last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from toolkit.checkpoint.references import PathAndRevision, find_folder
from toolkit.errors import MergeError

PLACE = PathAndRevision("org/model", "v1")
SHARDS = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


class Hub:
    """Stands for the hub's client: a cache, and files that it gives."""

    def __init__(self, cache: Path, cached: tuple[str, ...], given: tuple[str, ...]) -> None:
        self.cache, self.given = cache, given
        self.asked: list[list[str]] = []
        for name in cached:
            (cache / name).write_text("")

    def __call__(
        self,
        repository: str,
        *,
        revision: str | None,
        local_files_only: bool = False,
        allow_patterns: list[str] | None = None,
    ) -> str:
        assert (repository, revision) == (PLACE.path, PLACE.revision)
        if local_files_only:
            if not any(self.cache.iterdir()):
                raise LocalEntryNotFoundError("not cached")
            return str(self.cache)
        self.asked.append(allow_patterns or [])
        for name in self.given:
            if any(Path(name).match(pattern) for pattern in allow_patterns or []):
                (self.cache / name).write_text("")
        return str(self.cache)


@pytest.mark.parametrize(
    ("cached", "given", "calls", "found"),
    [
        (("model.safetensors",), (), 0, "model.safetensors"),
        (("config.json",), ("model.safetensors", "pytorch_model.bin"), 1, "model.safetensors"),
        ((), ("config.json", "pytorch_model.bin"), 2, "pytorch_model.bin"),
        # A download that broke off goes on.
        ((SHARDS[0],), (*SHARDS, "config.json"), 1, SHARDS[1]),
        ((SHARDS[0],), (SHARDS[1],), 1, SHARDS[1]),
        (SHARDS, (), 0, SHARDS[1]),
    ],
)
def test_the_cache_comes_before_the_hub(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: tuple[str, ...],
    given: tuple[str, ...],
    calls: int,
    found: str,
):
    hub = Hub(tmp_path, cached, given)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert (find_folder(PLACE) / found).is_file()
    assert len(hub.asked) == calls


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (tmp_path / "x", Path("./x"), Path("a/b/c")):
        place = PathAndRevision(f"./{path}" if str(path) == "x" else str(path))
        with pytest.raises(MergeError, match="no such model folder"):
            find_folder(place)


def test_what_the_hub_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline") if local_files_only else OSError("gated\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(MergeError, match=r"org/model: is neither .* gives \(gated\)"):
        find_folder(PLACE)
