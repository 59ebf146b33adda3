"""The guide's blocks, and a project folder to run them in.

A block is run unless its title says `not run: REASON`, which readers see above it; those are parsed
against the real command line. A block of another language whose title is a path is a file, written
where the title says before the next command.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHELL = {"bash", "console", "shell"}
"""`sh` shows a script that is a file of its own."""
NOT_RUN = "not run: "
BASH = "/bin/bash"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def reason_not_run(self) -> str | None:
        return self.title.removeprefix(NOT_RUN) if self.title.startswith(NOT_RUN) else None

    def commands(self) -> list[str]:
        """Lines of a shell block, joined where they go on; of a console block those after `$`."""
        text = self.text.replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line and not line.startswith("#")]


def pages() -> list[Path]:
    """The guide's own pages; those that are generated hold no commands to run."""
    return sorted(page for page in DOCS.glob("*.md") if page.name != "architecture.md")


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks in their order, indented ones too."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = re.match(r"^(\s*)(`{3,})\s*([\w+-]*)\s*(.*)$", lines[number])
        number += 1
        if opening is None:
            continue
        indent, fence, language, rest = opening.groups()
        begun, body = number, []
        while number < len(lines) and lines[number].strip() != fence:
            body.append(lines[number].removeprefix(indent))
            number += 1
        number += 1
        title = re.search(r'title="([^"]*)"', rest)
        text = "\n".join(body) + "\n"
        yield Block(page.name, begun, language, title.group(1) if title else "", text)


def words_of(command: str) -> list[str]:
    """A command as words, comments and redirections left out."""
    words = shlex.split(command, comments=True)
    for mark in ("|", ">", "<", "&&", ";"):
        words = words[: words.index(mark)] if mark in words else words
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def toolkit_words(command: str) -> list[str] | None:
    """What a command tells the toolkit, directly or through a launcher; None where it does not."""
    words = words_of(command)
    if words and Path(words[0]).name == "toolkit":
        return words[1:]
    for first, second in itertools.pairwise(words):
        if (first, second) == ("-m", "toolkit"):
            return words[words.index("toolkit", words.index("-m")) + 1 :]
    return None


def parse_toolkit(words: list[str]) -> None:
    """Let the real command line parse words, and run nothing.

    Raises:
        ValueError: it would refuse them.
    """
    import typer

    from toolkit.cli.main import app

    command, rest, name = typer.main.get_command(app), list(words), "toolkit"
    while True:
        if hasattr(command, "commands"):
            if not rest or rest[0] not in command.commands:
                raise ValueError(f"{name}: has no command {rest[0] if rest else '(none)'!r}")
            name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
            continue
        try:
            command.make_context(name, rest)
        except Exception as error:
            if not type(error).__module__.startswith(("click", "typer")):
                raise
            raise ValueError(f"{name}: {getattr(error, 'message', '') or error}") from error
        return


class Project:
    """A folder as a clone of this repository looks to a user, with everything in it tiny."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.folder, self.socket = folder, socket

    def lay_out(self) -> None:
        """The Makefile itself, and an environment whose commands are this tree's."""
        binaries = self.folder / ".venv" / "bin"
        binaries.mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt", "Makefile"):
            (self.folder / name).write_bytes((ROOT / name).read_bytes())
        for stamp in (".installed", ".installed-dev"):  # newer than both, so nothing is set up
            (self.folder / ".venv" / stamp).touch()
        client = (Path(__file__).parent / "toolkit_server.py").read_text(encoding="utf-8")
        program = f"#!{sys.executable} -IS\nSOCKET = {str(self.socket)!r}\n{client}\nask(SOCKET)\n"
        (binaries / "toolkit").write_text(program, encoding="utf-8")
        (binaries / "toolkit").chmod(0o755)
        # A link would not find the environment's packages.
        (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf-8")
        (binaries / "python").chmod(0o755)
        (binaries / "activate").write_text(f'export PATH="{binaries}:$PATH"\n', encoding="utf-8")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """A shell script in the folder; nothing is typed in."""
        environment = {
            "PATH": f"{self.folder / '.venv/bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            [BASH, "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

    def make_lines(self, words: list[str]) -> list[str]:
        """The commands that `make` would run, as the Makefile has them."""
        done = self.run(shlex.join([words[0], "-n", *words[1:]]))
        if done.returncode:
            raise ValueError(done.stderr.strip())
        return [line.lstrip("@") for line in done.stdout.splitlines()]


def start_server(socket: Path) -> subprocess.Popen[bytes]:
    """A process with the libraries loaded, of which every command is a fork."""
    server = subprocess.Popen(
        # As a module: a script has its own folder first in its path, where `select` is of tests.
        [sys.executable, "-m", "tests.helpers.toolkit_server", str(socket)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    if server.stdout.readline() != b"ready\n":
        server.stdout.close()
        raise RuntimeError(f"the server of commands ended with {server.wait()}; see its traceback")
    return server


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def dedent(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def parse_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[:2] == ["accelerate", "launch"]
    values = [re.sub(r"^\$\{?\w+\}?$", "1", word) for word in words[2:]]  # variables of Slurm
    parsed = launch_command_parser().parse_args(values)
    if parsed.config_file:
        assert (ROOT / parsed.config_file).is_file(), parsed.config_file
