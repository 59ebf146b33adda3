"""A published bundle is checked, and its merge made again from its parents."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.helpers.hub_server import Hub
from tests.publish.conftest import hub, make_material, material, recipe_values
from toolkit.errors import ConfigError, PublishError, ToolkitError
from toolkit.publish.bundle import write_sums
from toolkit.publish.hub import HubTarget, upload_bundle
from toolkit.publish.material import Material
from toolkit.publish.replay import parse_parents, run_verify
from toolkit.publish.stage import make_bundle

__all__ = ["hub", "make_material", "material", "recipe_values"]


@pytest.fixture
def bundle(material: Material) -> Path:
    return make_bundle(material, "safetensors", "org/tiny", {})


def verify(
    where: str | Path, parents: dict[str, Path] | None = None, runs: Path | None = None
) -> bool:
    return run_verify(str(where), revision=None, parents=parents or {}, runs=runs)


def test_the_same_bytes_again(bundle: Path, capsys: pytest.CaptureFixture[str]):
    parents = {"general": Path("general"), "org/tiny-specialist": Path("runs/tiny/cpt")}
    assert verify(bundle, parents)
    shown = capsys.readouterr().out
    assert "all 13 files are as published" in shown
    assert "the merge made again from its parents has the same bytes as the published" in shown


def test_parents_are_found_among_the_runs_by_their_hashes(
    bundle: Path, capsys: pytest.CaptureFixture[str]
):
    assert verify(bundle, {"general": Path("general")}, runs=Path("runs"))
    assert "the same bytes" in capsys.readouterr().out


def test_without_parents_it_says_what_is_missing(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(bundle)
    shown = capsys.readouterr().out
    assert "was not made again: org/base is not at hand; give its folder" in shown
    assert "--parent general=FOLDER" in shown


def test_another_model_is_not_the_parent(bundle: Path):
    with pytest.raises(PublishError, match="is not the general model that was merged"):
        verify(bundle, {"general": Path("runs/tiny/cpt")})


@pytest.mark.parametrize("manifest", ["its own", "[]", '{"outputs": 3}'])
def test_a_parent_s_weights_are_read(bundle: Path, manifest: str):
    """What a manifest says of them may be old, or another program's."""
    specialist = Path("runs/tiny/cpt")
    if manifest != "its own":
        (specialist / "manifest.json").write_text(manifest)
    parents = {"general": Path("general"), "specialist": specialist}
    assert verify(bundle, parents)
    weights = specialist / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PublishError, match="is not the specialist model that was merged"):
        verify(bundle, parents)
    # Nor is it taken for the parent where it is looked for.
    assert verify(bundle, {"general": Path("general")}, runs=Path("runs"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "must hold keys and values"),
        ({"parents": [{"role": "general", "weights": {}}], "merge": {}}, "parents.0.name: "),
        ({"parents": 3, "merge": {}}, "parents: "),
    ],
)
def test_a_record_that_is_none(bundle: Path, record: object, words: str):
    (bundle / "bundle.json").write_text(json.dumps(record))
    write_sums(bundle)
    for where in (str(bundle), f"file://{bundle.absolute()}"):
        with pytest.raises(ToolkitError, match=words):
            verify(where)


def test_the_merge_is_made_again_in_the_cache_folder(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "memory"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert verify(bundle, {"general": Path("general"), "specialist": Path("runs/tiny/cpt")})
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "memory").exists()


def test_weights_that_are_no_such_merge(bundle: Path, capsys: pytest.CaptureFixture[str]):
    """Someone put other weights into the bundle and wrote its checksums anew."""
    (bundle / "model.safetensors").write_bytes(Path("general/model.safetensors").read_bytes())
    write_sums(bundle)
    assert not verify(bundle, {"general": Path("general"), "specialist": Path("runs/tiny/cpt")})
    assert "but the published weights are others" in capsys.readouterr().out


def test_a_merge_that_was_told_otherwise(bundle: Path, capsys: pytest.CaptureFixture[str]):
    text = (bundle / "merge.yaml").read_text()
    (bundle / "merge.yaml").write_text(text.replace("weight: 0.5", "weight: 0.25", 1))
    write_sums(bundle)
    assert not verify(bundle, {"general": Path("general"), "specialist": Path("runs/tiny/cpt")})
    assert "the merge made again differs: model.safetensors" in capsys.readouterr().out


def test_damaged_files(bundle: Path, capsys: pytest.CaptureFixture[str]):
    (bundle / "README.md").write_text("mine")
    (bundle / "config.json").unlink()
    (bundle / "more.txt").write_text("x")
    assert not verify(bundle)
    shown = capsys.readouterr().out
    assert "README.md: is not the file that was published" in shown
    assert "config.json: is missing" in shown
    assert "more.txt: is not named in SHA256SUMS" in shown


def test_a_repository(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]):
    upload_bundle(bundle, HubTarget("org/tiny"))
    assert verify("org/tiny", {"general": Path("general"), "specialist": Path("runs/tiny/cpt")})
    assert "the same bytes" in capsys.readouterr().out
    with pytest.raises(PublishError, match="neither a folder nor a repository"):
        verify("org/other")


def test_parents_as_the_command_line_gives_them(tmp_path: Path):
    assert parse_parents([f"org/a@v1={tmp_path}"]) == {"org/a@v1": tmp_path}
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        parse_parents(["x"])
    with pytest.raises(ConfigError, match="is no folder"):
        parse_parents([f"x={tmp_path}/no"])
