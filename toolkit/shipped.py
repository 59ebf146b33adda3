"""Recipes and merge configurations that come with the package, and the user's own before them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

ShippedKind = Literal["recipes", "merges"]


def shipped_folder(kind: ShippedKind) -> Path:
    """Where the package's own stand: in it where it is installed, beside it in a checkout."""
    package = Path(str(resources.files("toolkit")))
    installed_folder = package / "packaged" / kind
    return installed_folder if installed_folder.is_dir() else package.parent / kind


def folders_of(kind: ShippedKind) -> list[Path]:
    """Folders to look in, in this order: that of the folder the command runs in, the package's."""
    own_folder, shipped = Path(kind), shipped_folder(kind)
    # In a checkout the two are one folder.
    if own_folder.is_dir() and shipped.is_dir() and own_folder.samefile(shipped):
        return [own_folder]
    return [folder for folder in (own_folder, shipped) if folder.is_dir()]


def find_in(folders: Sequence[Path], name: str) -> Path | None:
    """The first folder's `NAME.yaml`."""
    paths = (folder / f"{name}.yaml" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def names_in(folders: Sequence[Path]) -> list[str]:
    """Names of all files in them."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def shipped_file(path: str) -> Path | None:
    """The package's file for a path such as `recipes/finance-questions.jsonl` that is not where
    the command runs, so that shipped recipes work in any folder."""
    kind, _, rest = path.partition("/")
    # Never up and out of the package's folder: a recipe may be a stranger's.
    if kind not in ("recipes", "merges") or not rest or ".." in rest.split("/"):
        return None
    shipped_path = shipped_folder(kind) / rest  # type: ignore[arg-type]
    return shipped_path if shipped_path.exists() else None
