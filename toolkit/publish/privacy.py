"""What text files may not say: paths and names of this machine, secrets, addresses."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

_BINARY = {".safetensors", ".gguf", ".model"}
_VOCABULARY = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
"""Lists of pieces of words: any name or address may be among them by chance."""
_AGREEMENTS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
"""Others' texts, passed on as they are; they may give addresses to write to."""

# What stands before the first slash tells addresses (//host/data), tags of HTML (</data) and
# relative paths (a/data) from paths of a machine.
_PATH = re.compile(
    r"(?<![\w./<-])/(?P<root>[A-Za-z][\w.+-]{0,99})/[\w.+/-]+"
    r"|(?<![\w./~])~(?:[A-Za-z][\w-]*)?/[\w.][\w.+/-]*"
    # Of drives two folders at least: `A:\n` is the beginning of an answer in a template.
    r"|\b[A-Za-z]:(?:\\{1,2}(?![nrt](?![a-z]))|/)[\w .$-]+[\\/][^\s\"']+"
    r"|(?<!\\)\\\\[A-Za-z0-9][\w.-]+\\(?!\\)[\w$.-]{2,}"
    r"|\bfile:///?[\w./-]+"
)
_ROOTS = re.compile(
    "home|root|Users|Volumes|private|tmp|var|work|mnt|media|data|opt|srv|net|nfs|gpfs|lustre|beegfs"
    "|ceph|cluster|dbfs|efs|fsx|scratch|shared|storage|workspaces?|projects"
)
_OF_EVERY_MACHINE = re.compile("bin|boot|dev|etc|lib|lib64|proc|sbin|sys|usr")
"""Folders at the root of machines, those that tell of one and those that tell of none. Of others
this machine is asked: what is no folder here may be no path at all."""
_JSON_ESCAPES = {"\\\\": "\\", "\\/": "/", "\\n": " ", "\\r": " ", "\\t": " ", '\\"': '"'}
_EMAIL = re.compile(r"(?<![\w.+/@-])[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w@])")
_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|glpat-[\w-]{20,}|xox[abp]-[\w-]{10,}|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b[a-z][a-z0-9+]*://[^\s/:@\"']+:[^\s/@\"']+@"
)
_SECRET_VARIABLES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY")
_ORDINARY = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody", "localhost"}
"""User and machine names that are no one's."""


def find_leaks(files: Iterable[Path]) -> Iterator[str]:
    """Everything in text files that should not leave, one line each; secrets are not shown whole.

    >>> list(find_leaks([]))
    []
    """
    own_names, own_places, own_secrets = _own_names(), _own_places(), _own_secrets()
    for text_path in files:
        if text_path.suffix in _BINARY:
            continue
        try:
            text = text_path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            yield f"{text_path.name}: is not UTF-8 text, so it cannot be looked through"
            continue
        if text_path.suffix in {".json", ".jsonl"}:
            # As it reads, but for the ends of lines: a path's backslashes are doubled in JSON.
            text = re.sub(r"\\[\\/nrt\"]", lambda found: _JSON_ESCAPES[found[0]], text)
        is_prose = text_path.name not in _VOCABULARY
        # In vocabularies too: secrets and whole paths are too long to be in one by chance.
        for match in _SECRET.finditer(text):
            yield (
                f"{_where(text_path, text, match.start())}: what looks like a secret "
                f"({match[0][:4]}…)"
            )
        for secret in own_secrets:
            # Only where it stands is told: this line goes into logs.
            if (text_place := text.find(secret)) >= 0:
                yield (
                    f"{_where(text_path, text, text_place)}: a secret of this machine's environment"
                )
        for place in own_places:
            if (text_place := text.find(place)) >= 0:
                yield f"{_where(text_path, text, text_place)}: a path of this machine ({place})"
        if not is_prose:
            continue
        for match in filter(_is_path, _PATH.finditer(text)):
            yield f"{_where(text_path, text, match.start())}: a local path ({match[0]})"
        for name in own_names:
            if name_match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                text_place = name_match.start()
                yield (
                    f"{_where(text_path, text, text_place)}: the name of this machine or its user "
                    f"({name})"
                )
        if not text_path.name.startswith(_AGREEMENTS):
            for match in _EMAIL.finditer(text):
                yield f"{_where(text_path, text, match.start())}: an e-mail address ({match[0]})"


def _is_path(match: re.Match[str]) -> bool:
    root = match["root"]
    if root is None or _ROOTS.fullmatch(root):
        return True
    return not _OF_EVERY_MACHINE.fullmatch(root) and Path("/", root).is_dir()


def _where(path: Path, text: str, at: int) -> str:
    return f"{path.name}, line {text.count(chr(10), 0, at) + 1}"


def _own_names() -> list[str]:
    found_names: list[str] = []
    for ask_system in (getpass.getuser, socket.gethostname):
        try:
            found_names.append(ask_system())
        except (KeyError, OSError):
            continue
    # Names of three letters and fewer are parts of ordinary text.
    return [name for name in found_names if len(name) > 3 and name.lower() not in _ORDINARY]


def _own_places() -> list[str]:
    """This machine's folders; one that is a single name such as /root is left to the pattern."""
    own_folders = {str(Path.home()), str(Path.cwd())}
    return sorted(place for place in own_folders if place.count("/") > 1 or "\\" in place)


def _own_secrets() -> list[str]:
    return sorted(
        {
            value
            for name, value in os.environ.items()
            # Shorter ones are switches (HF_HUB_DISABLE_IMPLICIT_TOKEN=1), and what begins with a
            # slash is the path of a file that holds the secret.
            if any(word in name for word in _SECRET_VARIABLES) and len(value) >= 12
            if not value.startswith("/")
        }
    )
