"""The publish stage: the chosen merge as a bundle, checked, and sent where it was asked to go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from toolkit.config import load_yaml
from toolkit.manifest import read_manifest
from toolkit.progress import say
from toolkit.publish.bundle import check_bundle, write_bundle
from toolkit.publish.card import model_card
from toolkit.publish.upload import upload_bundle
from toolkit.recipe import Recipe


def run_publish(
    recipe: Recipe, merged: Path, target: Path, repository: str, *, upload: bool, public: bool
) -> None:
    """Write the bundle, check it, and upload it.

    Args:
        recipe: whose merge it is.
        merged: folder of the merge stage.
        target: folder of the bundle; an older one is replaced.
        repository: `org/name`.
        upload: False stops after the checks.
        public: make a new repository public.

    Raises:
        PublishError: a check failed, or the upload did.
    """
    results = read_manifest(merged)["results"]
    general = recipe.model.name or recipe.model.hub or "the general model"
    # Of the two parents the specialist is this run's own and has no public name.
    public_names = {0: general, 1: f"{repository}-specialist"}
    merge_yaml = _public(load_yaml(merged / "merge.yaml"), public_names)
    sources = [
        {"name": name, "role": source.role, "license": source.license or "not stated"}
        for name, source in recipe.data.sources.items()
    ]
    card = model_card(
        repository,
        results,
        general=general,
        license_name=recipe.model.license or "unknown",
        sources=sources,
        merge_yaml=merge_yaml,
    )
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_bundle(merged, work, card=card, merge_yaml=merge_yaml)
    check_bundle(work, results, recipe.model.license)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    say(f"publish: the bundle is in {target}; all checks passed")
    if upload:
        say(f"  uploaded: {upload_bundle(target, repository, public=public)}")


def _public(config: dict[str, Any], names: dict[int, str]) -> str:
    """The merge with public names in place of folders; `…/cpt` is the specialist."""

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names[int(str(value).rstrip("/").endswith("/cpt"))]
                if key in {"model", "base_model"} and isinstance(value, str)
                else rename(value)
                for key, value in node.items()
            }
        return [rename(item) for item in node] if isinstance(node, list) else node

    return yaml.safe_dump(rename(config), sort_keys=False, allow_unicode=True)
