"""License texts and notices that go with the model: found, never made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from toolkit.errors import PublishError
from toolkit.publish.licenses import Parent, find_license, notices

_LICENSE_NAMES = ("LICENSE", "LICENCE", "COPYING", "USE_POLICY")
_NOTICE_NAME = "NOTICE"


@dataclass(frozen=True)
class Agreements:
    """Texts to be passed on.

    Attributes:
        files: by the name each gets.
        licenses: roles of the parents whose license's text is among them.
    """

    files: Mapping[str, bytes]
    licenses: frozenset[str]


def find_agreements(
    parents: Sequence[Parent],
    folders: Mapping[str, Path],
    given: Mapping[str, tuple[Path | None, Path | None]],
) -> Agreements:
    """The files that licenses ask to be passed on, by the name they get.

    A text is taken from where the recipe says, else from the parent's folder; Apache's, which is
    one for everyone, from this toolkit.

    Where the specialist came from the general model and has no text of its own, the general
    model's holds for both.

    Args:
        parents: of the merge.
        folders: where each stands, by role.
        given: `license_file` and `notice_file` of the recipe, by role.

    Raises:
        PublishError: a file that the recipe names cannot be read.
    """
    files: dict[str, bytes] = {}
    licenses: set[str] = set()
    for parent in parents:
        license_file, notice_file = given[parent.role]
        own = _texts(folders.get(parent.role), _LICENSE_NAMES)
        known = find_license(parent.license)
        if license_file is not None:
            own = {"LICENSE": _read(license_file, f"publish.{parent.role}.license_file")}
        elif not own and known is not None and known.id == "apache-2.0":
            own = {"LICENSE": apache_text()}
        if any(not name.startswith("USE_POLICY") for name in own):
            licenses.add(parent.role)
        if notice_file is not None:
            own[_NOTICE_NAME] = _read(notice_file, f"publish.{parent.role}.notice_file")
        else:
            own |= _texts(folders.get(parent.role), (_NOTICE_NAME,))
        for name, text in own.items():
            if text not in files.values():
                files[_free(name, parent.role, files)] = text
    general = next(parent for parent in parents if parent.role == "general")
    if general.role in licenses:
        same = {p.role for p in parents if p.license == general.license}
        licenses |= same
    if lines := notices(parents):
        before = files.get(_NOTICE_NAME, b"")
        missing = [line for line in lines if line.encode() not in before]
        files[_NOTICE_NAME] = before + "".join(f"{line}\n" for line in missing).encode()
    return Agreements(files, frozenset(licenses))


def apache_text() -> bytes:
    """The text of Apache-2.0, as this toolkit itself ships it."""
    beside = Path(str(resources.files("toolkit"))).parent / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    for path in metadata.files("cpt-toolkit") or ():
        if path.name == "LICENSE":
            return path.read_binary()
    raise PublishError("this toolkit's own LICENSE is not installed with it; install it again.")


def _texts(folder: Path | None, names: Sequence[str]) -> dict[str, bytes]:
    if folder is None or not folder.is_dir():
        return {}
    found = (p for p in sorted(folder.iterdir()) if p.is_file())
    return {p.name: p.read_bytes() for p in found if p.name.upper().split(".")[0] in names}


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishError(f"{key}: {path} cannot be read ({error.strerror}).") from error


def _free(name: str, role: str, files: Mapping[str, bytes]) -> str:
    return name if name not in files else f"{name}.{role}"
