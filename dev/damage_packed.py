"""Archives for `dev/damage.py`: damaged ones, and small ones that hold gigabytes."""

from __future__ import annotations

import binascii
import bz2
import gzip
import hashlib
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import yaml

from dev import damage_inputs as inputs

_ZEROS = 16 << 20
_TIMES = 192
"""So often the zeros stand in a bomb: 3 GiB."""

MEMBER = "pack/docs.jsonl"


def tar_of(data: bytes, name: str = MEMBER, size: int | None = None) -> bytes:
    """A tar file of one member; of another size than its data where that is given."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data) if size is None else size
    padding = b"" if size is not None else bytes(-len(data) % 512) + bytes(1024)
    return entry.tobuf(tarfile.GNU_FORMAT) + data + padding


def zip_of(data: bytes, name: str = MEMBER) -> bytes:
    """A zip file of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def damage_tar(data: bytes, chance: random.Random) -> bytes:
    """A tar.gz file that is damaged itself, whose tar is, or whose document is."""
    if chance.random() < 0.4:
        return inputs.damage_bytes(data, chance)
    inner = gzip.decompress(data)
    if chance.random() < 0.6:
        return gzip.compress(inputs.damage_bytes(inner, chance), 1)
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        member = archive.extractfile(MEMBER)
        documents = member.read() if member is not None else b""
    return gzip.compress(tar_of(inputs.damage_lines(documents, chance)), 1)


def damage_zip(data: bytes, chance: random.Random) -> bytes:
    """A zip file that is damaged itself, or whose document is."""
    if chance.random() < 0.7:
        return inputs.damage_bytes(data, chance)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zip_of(inputs.damage_lines(archive.read(MEMBER), chance))


def _tar_bomb(pack: str) -> bytes:
    """A member of gigabytes: packed streams that follow each other are one."""
    header, zeros = tar_of(b"", size=_ZEROS * _TIMES), bytes(_ZEROS)
    if pack == "gz":
        return gzip.compress(header) + gzip.compress(zeros, 9) * _TIMES
    if pack == "bz2":
        return bz2.compress(header) + bz2.compress(zeros) * _TIMES
    return lzma.compress(header) + lzma.compress(zeros, preset=0) * _TIMES


def wide_xz(data: bytes) -> bytes:
    """The same xz file, asking for a dictionary of 4 GiB to be read."""
    header = bytearray(data[12 : 12 + 4 * (data[12] + 1)])
    header[4] = 40  # after size, flags, the filter's number and the length of its settings
    header[-4:] = binascii.crc32(header[:-4]).to_bytes(4, "little")
    return data[:12] + bytes(header) + data[12 + len(header) :]


def _overlapping_zip(times: int = 200) -> bytes:
    """Members that are all the same bytes, each unpacking to what one file may."""
    whole = zip_of(bytes(60 << 20), "pack/000.jsonl")
    at, end = whole.rfind(b"PK\x01\x02"), whole.rfind(b"PK\x05\x06")
    entries = b"".join(
        whole[at:end].replace(b"000.jsonl", f"{number:03d}.jsonl".encode())
        for number in range(times)
    )
    last = bytearray(whole[end:])
    last[8:10] = last[10:12] = times.to_bytes(2, "little")
    last[12:16] = len(entries).to_bytes(4, "little")
    return whole[:at] + entries + bytes(last)


def _lying_zip() -> bytes:
    """A member of gigabytes that claims to be as large packed."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(MEMBER, "w") as file,
    ):
        for _ in range(64):
            file.write(bytes(_ZEROS))
    data = bytearray(out.getvalue())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 24] = (900 << 20).to_bytes(4, "little")
    return bytes(data)


TAR_BOMBS = (*map(_tar_bomb, ("gz", "bz2", "xz")), wide_xz(lzma.compress(tar_of(b"x"))))
ZIP_BOMBS = (_lying_zip(), _overlapping_zip(), zip_of(zip_of(bytes(_ZEROS)), MEMBER))
XZ_BOMBS = (wide_xz(lzma.compress(b'{"text": "x"}\n')), lzma.compress(bytes(_ZEROS)) * _TIMES)


def pin(folder: Path, archive: Path) -> str:
    """Put an archive where artifacts are kept; its hash."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    place = folder / "cache" / "artifacts" / digest
    place.mkdir(parents=True, exist_ok=True)
    (place / archive.name).write_bytes(archive.read_bytes())
    return digest


def pin_documents(folder: Path, archive: Path) -> None:
    """Let the recipe of packed documents take them out of this archive."""
    values = yaml.safe_load((folder / "jsonl.yaml").read_text())
    source = values["data"]["sources"]["docs"]
    del source["files"]
    source["artifact"] = _artifact(pin(folder, archive), "*/*.jsonl")
    (folder / "packed.yaml").write_text(yaml.safe_dump(values))


def pin_nested(folder: Path, archive: Path) -> None:
    """The same for documents in an archive within the archive."""
    outer = folder / "outer.zip"
    outer.write_bytes(zip_of(archive.read_bytes(), "inner.zip"))
    pin_documents(folder, outer)
    text = (folder / "packed.yaml").read_text()
    (folder / "packed.yaml").write_text(text.replace("*/*.jsonl", "inner.zip//*/*.jsonl"))


def pin_gguf(folder: Path, file: Path) -> None:
    """Let a recipe's model be this GGUF file."""
    archive = folder / "gguf.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(file, "tiny.gguf")
    values = yaml.safe_load((folder / "jsonl.yaml").read_text())
    values["model"] = {"artifact": _artifact(pin(folder, archive), "*.gguf")}
    (folder / "gguf.yaml").write_text(yaml.safe_dump(values))


def _artifact(digest: str, member: str) -> dict[str, str]:
    return {"package": "tiny", "version": "1", "sha256": digest, "member": member}
