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

    A parent without a text of its own shares that of another parent under the same license, where
    there is one text for everyone, or where it was trained from that parent. A text that carries
    its holder's name is no one else's.

    Args:
        parents: of the merge.
        folders: where each stands, by role.
        given: `license_file` and `notice_file` of the recipe, by role.

    Raises:
        PublishError: a file that the recipe names cannot be read.
    """
    texts_by_name: dict[str, bytes] = {}
    licensed_roles: set[str] = set()
    for parent in parents:
        license_file, notice_file = given[parent.role]
        own_texts = _texts(folders.get(parent.role), _LICENSE_NAMES)
        parent_license = find_license(parent.license)
        if license_file is not None:
            own_texts = {"LICENSE": _read(license_file, f"{parent.recipe_key}.license_file")}
        elif not own_texts and parent_license is not None and parent_license.id == "apache-2.0":
            own_texts = {"LICENSE": apache_text()}
        # A policy of use goes with an agreement, and is none by itself.
        if any(not name.startswith("USE_POLICY") for name in own_texts):
            licensed_roles.add(parent.role)
        if notice_file is not None:
            own_texts[_NOTICE_NAME] = _read(notice_file, f"{parent.recipe_key}.notice_file")
        else:
            own_texts |= _texts(folders.get(parent.role), (_NOTICE_NAME,))
        for text_name, text_bytes in own_texts.items():
            if text_bytes not in texts_by_name.values():
                # One text of two parents is passed on once; another of its name gets its role's.
                texts_by_name[_free(text_name, parent.role, texts_by_name)] = text_bytes
    with_texts = [parent for parent in parents if parent.role in licensed_roles]
    for parent in parents:
        if any(_is_text_of(other, parent) for other in with_texts):
            licensed_roles.add(parent.role)
    if lines := notices(parents):
        before = texts_by_name.get(_NOTICE_NAME, b"")
        missing = [line for line in lines if line.encode() not in before]
        if before and missing and not before.endswith(b"\n"):
            before += b"\n"
        texts_by_name[_NOTICE_NAME] = before + "".join(f"{line}\n" for line in missing).encode()
    return Agreements(texts_by_name, frozenset(licensed_roles))


def _is_text_of(licensed: Parent, parent: Parent) -> bool:
    terms = find_license(parent.license)
    if terms is None or terms != find_license(licensed.license):
        return False
    return terms.text == "standard" or parent.trained_from == licensed.role


def apache_text() -> bytes:
    """The text of Apache-2.0, as this toolkit itself ships it."""
    # In a checkout it lies beside the package, in an installation among the metadata.
    license_beside = Path(str(resources.files("toolkit"))).parent / "LICENSE"
    if license_beside.is_file():
        return license_beside.read_bytes()
    for package_file in metadata.files("cpt-toolkit") or ():
        if package_file.name == "LICENSE":
            return package_file.read_binary()
    raise PublishError("this toolkit's own LICENSE is not installed with it; install it again.")


def _texts(folder: Path | None, names: Sequence[str]) -> dict[str, bytes]:
    if folder is None or not folder.is_dir():
        return {}
    folder_files = (p for p in sorted(folder.iterdir()) if p.is_file())
    # LICENSE, LICENSE.txt and license.md alike.
    return {p.name: p.read_bytes() for p in folder_files if p.name.upper().split(".")[0] in names}


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishError(f"{key}: {path} cannot be read ({error.strerror}).") from error


def _free(name: str, role: str, files: Mapping[str, bytes]) -> str:
    return name if name not in files else f"{name}.{role}"
