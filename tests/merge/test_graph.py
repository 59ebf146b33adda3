from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.adapters import make_adapter
from toolkit.cli.main import app
from toolkit.errors import ConfigError, ToolkitError
from toolkit.merge.achieved import AchievedFractions
from toolkit.merge.config import parse_merge_config
from toolkit.merge.graph import load_merge_graph, run_merge_graph
from toolkit.merge.to_disk import run_merge


def mean(
    first: str, second: str, name: str | None = None, weight: float = 0.5
) -> dict[str, object]:
    models = [
        {"model": first, "parameters": {"weight": 1.0 - weight}},
        {"model": second, "parameters": {"weight": weight}},
    ]
    config: dict[str, object] = {"merge_method": "linear", "models": models, "dtype": "float32"}
    return config if name is None else {"name": name, **config}


def write(path: Path, *documents: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    return path


def test_the_result_is_that_of_one_merge_after_the_other(
    tmp_path: Path, two_models: tuple[Path, Path]
):
    a, b = map(str, two_models)
    path = write(
        tmp_path / "several.yaml",
        mean("half", b, weight=0.25),  # the result stands first: order is found
        mean(a, b, "half"),
    )
    run_merge_graph(load_merge_graph(path), tmp_path / "out")
    run_merge(parse_merge_config(mean(a, b), where="one"), tmp_path / "half")
    two = parse_merge_config(mean(str(tmp_path / "half"), b, weight=0.25), where="two")
    run_merge(two, tmp_path / "by-hand")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "by-hand" / "model.safetensors").items():
        assert torch.equal(tensor, found[name])
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == path.read_text()
    assert not list(tmp_path.glob(".*.tmp"))


def dare(base: str, tuned: str, name: str | None = None) -> dict[str, object]:
    models = [{"model": tuned, "parameters": {"weight": 1.0, "density": 0.5}}]
    config: dict[str, object] = {
        "merge_method": "dare_linear", "base_model": base, "models": models, "dtype": "float32",
        "parameters": {"rescale": False},
    }  # fmt: skip
    return config if name is None else {"name": name, **config}


@pytest.mark.parametrize("engine", ["kernel", "definition"])
def test_each_step_of_a_graph_draws_for_itself(
    tmp_path: Path, two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, engine: str
):
    a, b = map(str, two_models)
    if engine == "definition":
        monkeypatch.setattr("toolkit.merge.compute.find_kernel", lambda *_: None)
    path = write(
        tmp_path / "m.yaml", dare(a, b, "one"), dare(a, b, "two"), mean("one", "two", weight=0.5)
    )
    run_merge_graph(load_merge_graph(path), tmp_path / "out", seed=3)
    base, merged = (load_file(Path(f) / "model.safetensors") for f in (a, tmp_path / "out"))
    tuned = load_file(Path(b) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = ((merged[name] - base[name]) / (tuned[name] - base[name])).round(decimals=1)
    # Each keeps half: of both a quarter, of neither a quarter, of one of them a half.
    for share, wanted in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        assert float((kept == share).float().mean()) == pytest.approx(wanted, abs=0.06)
    single = write(tmp_path / "one.yaml", dare(a, b, "one"))
    run_merge_graph(load_merge_graph(single), tmp_path / "single", seed=3)
    run_merge(parse_merge_config(dare(a, b), where="one"), tmp_path / "by-hand", seed=3)
    bytes_of = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("single", "by-hand")]
    assert bytes_of[0] == bytes_of[1]


def test_what_is_achieved_is_said_of_its_step(tmp_path: Path, two_models: tuple[Path, Path]):
    a, b = map(str, two_models)
    path = write(tmp_path / "m.yaml", mean(a, b, "half"), mean("half", b))
    told: list[AchievedFractions] = []
    run_merge_graph(load_merge_graph(path), tmp_path / "out", tell_achieved=told.append)
    first, last = (fractions.sentences()[0] for fractions in told)
    assert first.startswith(f"half: {b}: asked 0.5")
    assert last.startswith(f"{b}: asked 0.5")


def test_intermediate_models_go_when_nothing_needs_them(
    tmp_path: Path, two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    a, b = map(str, two_models)
    path = write(
        tmp_path / "chain.yaml",
        mean(a, b, "first"), mean("first", b, "second"), mean("second", b, "third"),
        mean("third", a),
    )  # fmt: skip
    most = 0
    from toolkit.merge import graph as module

    def counted(*arguments: object, **settings: object) -> object:
        nonlocal most
        done = run_merge(*arguments, **settings)  # type: ignore[arg-type]
        most = max(most, len(list(tmp_path.glob(".out.*.tmp/*/model.safetensors"))))
        return done

    monkeypatch.setattr(module, "run_merge", counted)
    run_merge_graph(load_merge_graph(path), tmp_path / "out")
    assert most == 2


def test_an_intermediate_model_takes_an_adapter(
    tmp_path: Path, two_models: tuple[Path, Path], make_model: Callable[..., Path]
):
    a, b = map(str, two_models)
    adapter = make_adapter(two_models[0], tmp_path / "lora")
    path = write(tmp_path / "m.yaml", mean(a, b, "half"), mean(f"half+{adapter}", b))
    run_merge_graph(load_merge_graph(path), tmp_path / "out")
    run_merge(parse_merge_config(mean(a, b), where="one"), tmp_path / "half")
    two = parse_merge_config(mean(f"{tmp_path / 'half'}+{adapter}", b), where="two")
    run_merge(two, tmp_path / "by-hand")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "by-hand" / "model.safetensors").items():
        assert torch.equal(tensor, found[name])


def test_one_document_may_have_a_name(tmp_path: Path, two_models: tuple[Path, Path]):
    path = write(tmp_path / "one.yaml", mean(*map(str, two_models), name="mine"))
    run_merge_graph(load_merge_graph(path), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_nothing_takes_is_not_made(
    tmp_path: Path, two_models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    a, b = map(str, two_models)
    path = write(tmp_path / "m.yaml", mean(a, b, "unused"), mean(a, b))
    assert len(load_merge_graph(path).steps) == 1
    assert "unused: nothing takes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([mean("a", "b"), mean("a", "b")], "documents 1, 2 have no name"),
        ([mean("a", "b", "x"), mean("a", "b", "x"), mean("x", "a")], "x stands twice"),
        ([mean("y", "a", "x"), mean("x", "a", "y"), mean("x", "b")], "in a circle: x -> y -> x"),
        ([mean("x", "a", "x"), mean("x", "b")], "in a circle: x -> x"),
        ([mean("a", "b", "a+b"), mean("a", "b")], "a word without"),
        ([{"name": 3, "merge_method": "linear"}, mean("a", "b")], "a word without"),
        (
            [{**mean("a", "b", "x"), "modelss": 1}, {**mean("x", "b"), "dtyp": 1}],
            "(?s)modelss.*dtyp",
        ),
    ],
)
def test_files_that_cannot_be_run(tmp_path: Path, documents: list[dict[str, object]], words: str):
    with pytest.raises(ConfigError, match=words):
        load_merge_graph(write(tmp_path / "m.yaml", *documents))


def test_an_absent_model_is_found_before_the_first_merge(
    tmp_path: Path, two_models: tuple[Path, Path]
):
    a, b = map(str, two_models)
    path = write(tmp_path / "m.yaml", mean(a, b, "half"), mean("half", str(tmp_path / "absent")))
    with pytest.raises(ToolkitError, match="absent"):
        run_merge_graph(load_merge_graph(path), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == []


def test_the_commands_take_several(tmp_path: Path, two_models: tuple[Path, Path]):
    from typer.testing import CliRunner

    a, b = map(str, two_models)
    path = write(tmp_path / "m.yaml", mean(a, b, "half"), mean("half", b))
    planned = CliRunner().invoke(app, ["merge", "plan", str(path)])
    assert planned.exit_code == 0, planned.output
    assert "takes half, made before" in planned.output
    done = CliRunner().invoke(app, ["merge", "run", str(path), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "config.json").is_file()
