"""The bundle: what leaves this machine, and what must hold of it first."""

from __future__ import annotations

import getpass
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.checkpoint.read import open_checkpoint
from toolkit.checkpoint.side_files import SIDE_FILES
from toolkit.errors import PublishError
from toolkit.manifest import hash_folder, write_atomically

_COPIED = ("config.json", "report.json", "report.html", *SIDE_FILES)
_TEXT = {".json", ".md", ".yaml", ".html", ".jinja", ".txt"}
_SECRET = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")
_PATH = re.compile(r"(?<![\w./:<-])/(?:home|root|Users|tmp|work|mnt|data|opt)/[\w./-]+")


def write_bundle(merged: Path, target: Path, *, card: str, merge_yaml: str) -> None:
    """Put together what is published: weights, tokenizer, card, merge, report, checksums.

    Args:
        merged: folder of the merge stage.
        target: an empty folder.
        card: text of README.md.
        merge_yaml: the merge with public names.
    """
    for name in _COPIED:
        if (merged / name).is_file():
            shutil.copyfile(merged / name, target / name)
    for path in sorted(
        {open_checkpoint(merged).info(n).file for n in open_checkpoint(merged).names}
    ):
        shutil.copyfile(path, target / path.name)
    index = "model.safetensors.index.json"
    if (merged / index).is_file():
        shutil.copyfile(merged / index, target / index)
    for name, text in (("README.md", card), ("merge.yaml", merge_yaml)):
        with write_atomically(target / name) as file:
            file.write(text)
    sums = hash_folder(target)
    with write_atomically(target / "SHA256SUMS") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sums.items())


def check_bundle(folder: Path, results: dict[str, Any], license_name: str | None) -> None:
    """Refuse a bundle that must not leave; every fault is named at once.

    Raises:
        PublishError: one line for each failed check.
    """
    faults = list(_faults(folder, results, license_name))
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise PublishError(f"{folder} is not ready to be published:\n{lines}")


def _faults(folder: Path, results: dict[str, Any], license_name: str | None) -> Iterator[str]:
    if not license_name:
        yield "licence: model.license is not given in the recipe; name the general model's terms"
    if not results.get("any_merge"):
        yield "merge: nothing qualified, so this is the general model itself; there is nothing new"
    try:
        names = (getpass.getuser(), socket.gethostname())
    except (KeyError, OSError):
        names = ("", "")
    own = [name for name in names if len(name) > 4]  # shorter ones are ordinary words
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        if path.suffix in {".bin", ".pt", ".pkl", ".pickle"}:
            yield f"{path.name}: is a pickle, which can carry code"
        # The plotting library inside report.html is no text of ours.
        if path.suffix not in _TEXT or path.name in {"tokenizer.json", "report.html"}:
            continue
        text = path.read_text(encoding="utf-8")
        for kind, pattern in (("secret", _SECRET), ("local path", _PATH)):
            if match := pattern.search(text):
                shown = match[0][:4] + "…" if kind == "secret" else match[0]
                yield f"{path.name}: holds what looks like a {kind} ({shown})"
        yield from (f"{path.name}: holds this machine's name or user" for n in own if n in text)
