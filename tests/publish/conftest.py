"""A run of tiny models with its manifests, as the stages leave it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.hub_server import TOKEN, Hub, running_hub
from tests.helpers.outcomes import candidate, interval, make_values, set_row
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge
from toolkit.publish.material import Material
from toolkit.recipe.schema import Recipe
from toolkit.section import parse_section
from toolkit.stage import Stage

RECIPE: dict[str, Any] = {
    "description": "tiny model on made-up filings",
    "seed": 7,
    "model": {"path": "general", "name": "org/base", "license": "apache-2.0"},
    "data": {
        "sources": {
            "docs": {"role": "domain", "files": ["docs/*.txt"], "license": "public"},
            "web": {"role": "general", "files": ["web.jsonl"]},
        }
    },
    "publish": {
        "language": ["en"],
        "adapter_rank": 4,
        "gguf": ["F32", "Q8_0"],
        "gguf_tolerance": None,
    },
}


def figures(domain: float, general: float) -> dict[str, Any]:
    docs, web = interval(domain, 0.01), interval(general, 0.01)
    changes = interval(domain - 0.9, 0.01), interval(general - 1.0, 0.01)
    return {
        "domain": docs,
        "domain_change": changes[0],
        "general": web,
        "general_change": changes[1],
        "sets": {"docs": docs, "web": web},
        "set_changes": {"docs": changes[0], "web": changes[1]},
    }


RESULTS: dict[str, Any] = make_values(
    description="tiny",
    chosen="linear alpha=0.5",
    reason="Because.",
    candidates=[candidate(n, f"linear alpha={n / 4:g}", n / 4) for n in (1, 2, 3)],
    sets=[
        set_row("docs", "domain", "bits per byte", items_test=4),
        set_row("web", "general", "bits per byte", items_test=5),
    ],
    models={
        "general": figures(0.9, 1.0),
        "specialist": figures(0.7, 1.1),
        "merge": figures(0.75, 1.02),
    },
)


def stage(root: Path, name: str, config: dict[str, Any]) -> Stage:
    return Stage(root / name, config, {}, 7)


@pytest.fixture
def recipe_values() -> dict[str, Any]:
    """The recipe as plain values, to be changed before `material` is asked for."""
    values: dict[str, Any] = json.loads(json.dumps(RECIPE))
    return values


@pytest.fixture
def make_material(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Material]:
    """`make_material(recipe_values, results=…, out_dtype=…)`: a run below the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(
        values: dict[str, Any],
        results: dict[str, Any] | None = None,
        out_dtype: str = "bfloat16",
    ) -> Material:
        general = make_model(Path("general"), seed=1, dtype=torch.bfloat16)
        root = Path("runs/tiny")
        cpt = stage(root, "cpt", {"train": {"epochs": 1, "schedule": {"peak_lr": 1e-3}}})
        with cpt.running() as work:
            make_model(work, seed=2, dtype=torch.bfloat16)
            cpt.finish({"num_steps": 3, "first_loss": 2.5, "last_loss": 1.5})
        data = stage(root, "data", {})
        with data.running():
            count = {"documents": 2, "bytes": 10, "tokens": 1234}
            data.finish(
                {
                    "train": {"domain_tokens": 1000, "general_tokens": 234, "replay_share": 0.19},
                    "sources": {"docs": {"role": "domain", "trained on": count, "test": count}},
                }
            )
        merge = stage(root, "merge", {})
        config = {
            "merge_method": "linear",
            "models": [
                {"model": "./general", "parameters": {"weight": 0.5}},
                {"model": "./runs/tiny/cpt", "parameters": {"weight": 0.5}},
            ],
            "dtype": "float32",
            "out_dtype": out_dtype,
        }
        with merge.running() as work:
            run_merge(parse_merge_config(config, where="test"), work / "model", seed=7)
            for path in (work / "model").iterdir():
                path.rename(work / path.name)
            (work / "model").rmdir()
            (work / "report.html").write_text("<html><body>tiny</body></html>")
            (work / "report.json").write_text(json.dumps(results or RESULTS))
            (work / "scores.jsonl").write_text("{}")
            merge.finish(results or RESULTS)
        recipe = parse_section(Recipe, values, where="test", what="recipe")
        return Material(
            recipe, root, general, {"specialist": cpt.folder}, data.folder, merge.folder
        )

    return make


@pytest.fixture
def material(make_material: Callable[..., Material], recipe_values: dict[str, Any]) -> Material:
    return make_material(recipe_values)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that the client in this process talks to, with a valid token."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
