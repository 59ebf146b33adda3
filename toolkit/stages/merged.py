"""The merge that was chosen, as a plain mergekit configuration, and as a model on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.run import run_merge
from toolkit.progress import progress


def references(folders: Mapping[str, Path], runs: Path) -> dict[str, str]:
    """How merge.yaml refers to models, so that nothing of this machine enters.

    Paths count from the folder the command runs in, or from the one that holds the folder of all
    runs; of a model that stands in neither only the folder's name is said.

    Args:
        folders: of the models, by the names that the search has for them.
        runs: folder of all runs.

    >>> places = {"general": Path("/models/llama"), "specialist": Path("/big/runs/x/cpt")}
    >>> references(places, Path("/big/runs"))
    {'general': './llama', 'specialist': './runs/x/cpt'}
    """
    paths = {name: _absolute(folder) for name, folder in folders.items()}
    bases = [_absolute(base) for base in (Path(), runs.parent)]
    found: dict[str, str] = {}
    for name, path in paths.items():
        base = next((b for b in bases if b != b.parent and path.is_relative_to(b)), path.parent)
        # Beginning with a dot, so that mergekit does not take it for a name on the hub.
        found[name] = f"./{path.relative_to(base).as_posix()}"
    texts = list(found.values())  # folders of one name are told apart by what they are
    return {name: text if texts.count(text) == 1 else f"./{name}" for name, text in found.items()}


def _absolute(path: Path) -> Path:
    """Without following links: a folder is spoken of where its owner sees it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def named(config: MergeConfig, names: Mapping[str, str], dtype: torch.dtype) -> MergeConfig:
    """A candidate as a plain mergekit configuration: float32 arithmetic, one cast.

    Args:
        config: of the candidate.
        names: what to call its models, by the names it has for them.
        dtype: that the merge is written in.
    """
    plain = json.loads(config.model_dump_json(exclude_none=True))

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names.get(value, value) if key in {"model", "base_model"} else rename(value)
                for key, value in node.items()
            }
        return [rename(item) for item in node] if isinstance(node, list) else node

    whole = {**rename(plain), "dtype": "float32", "out_dtype": str(dtype).removeprefix("torch.")}
    return parse_merge_config(whole, where="merge.yaml")


def write_model(config: MergeConfig, folders: Mapping[str, Path], work: Path, seed: int) -> None:
    """Merge to disk beside the scores; done anew when a killed call left it half.

    Args:
        config: from `named`.
        folders: where its models stand, by what it calls them.
        work: folder of the stage.
        seed: of random methods.
    """
    merged = work / "model"
    if not merged.exists():
        with progress("writing the merge", 1) as advance:
            run_merge(config, merged, folders=folders, seed=seed)
            advance(1, "")
    for path in sorted(merged.iterdir()):
        path.rename(work / path.name)
    merged.rmdir()
