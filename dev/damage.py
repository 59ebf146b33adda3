"""Damaged inputs through the real command, some thousands of them, and how each ended: a table.

    PYTHONPATH=. python dev/damage.py [--inputs 2000] [--seed 0] [--only KIND] [--out FILE]

A sound project is made once. For each input one of its files is damaged (by a seed, or as one of
the bombs), and a command that reads it runs in a forked child, which has everything imported, with
bounds on memory and processor time. Ends are counted: refused in a line; worked; a traceback; a
hang (processor time is up); memory (killed, aborted, or far more than the sound run takes); and
*other*: a stage that was kept was damaged, and what came of it differs from the sound run's without
a word. What is not refused and did not work is listed with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.damage_kinds import Kind, kinds
from dev.damage_project import make_project

CPU_SECONDS = 30
WALL_SECONDS = 600
MORE_BYTES = 3 << 30
"""Memory that a child may take beyond what it begins with; most sound runs take a tenth."""


@dataclass
class End:
    """How one input ended."""

    kind: str
    number: int
    words: tuple[str, ...]
    end: str
    last: str
    seconds: float


def run_command(words: Sequence[str], folder: Path) -> tuple[int, str, float, int]:
    """Run the command in a child.

    Returns:
        Exit code (a signal as its negative number), what it said, processor seconds, and the most
        memory it had.
    """
    log = folder / ".said"
    pid = os.fork()
    if pid == 0:
        _child(words, folder, log)
    end = time.monotonic() + WALL_SECONDS
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    text = log.read_bytes().decode("utf-8", "replace") if log.is_file() else ""
    code = os.waitstatus_to_exitcode(status)
    return code, text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _child(words: Sequence[str], folder: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        os.environ["TOOLKIT_CACHE"] = str(folder / "cache")
        os.environ["TOOLKIT_MAX_TEMPLATE_SECONDS"] = "2"
        os.environ["TOOLKIT_MAX_TOKENIZER_SECONDS"] = "5"
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["toolkit", *words]
        from toolkit.cli.entry import main

        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def outputs_of(folder: Path, stage: str) -> str:
    """Hash of what a stage's folder holds, its manifest and logs with times left out."""
    place, digest = folder / "runs" / stage, hashlib.sha256()
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.suffix in {".npy", ".npz", ".safetensors", ".csv"}:
            digest.update(path.relative_to(place).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def classify(code: int, text: str, memory: int, base: int) -> str:
    """The kind of an end."""
    if code == -signal.SIGXCPU or code in (-signal.SIGKILL, -signal.SIGALRM):
        return "hang"
    if code < 0 or memory > base + (MORE_BYTES >> 1):
        return "memory"
    if "Traceback (most recent call last)" in text or code not in (0, 1, 2):
        return "traceback"
    return "worked" if code == 0 else "refused"


def try_input(
    name: str, kind: Kind, number: int, seed: int, sound: Path, keep: dict[str, str]
) -> End:
    """Damage a copy of the project and run a command on it."""
    chance = random.Random(zlib.crc32(f"{seed} {name} {number}".encode()))  # noqa: S311
    words = kind.commands[number % len(kind.commands)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "p"
        shutil.copytree(sound, folder, symlinks=True)
        files = [p for p in sorted(folder.glob(kind.file)) if p.is_file()]
        path = files[number % len(files)]
        data = path.read_bytes()
        bombs = kind.bombs * len(kind.commands)
        damaged = bombs[number] if number < len(bombs) else kind.damage(data, chance)
        path.write_bytes(damaged)
        kind.prepare(folder, path)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        code, text, seconds, memory = run_command(words, folder)
        end = classify(code, text, memory, base)
        changed = kind.keep and end == "worked" and outputs_of(folder, kind.keep) != keep[kind.keep]
        if changed and damaged != data:
            end = "other"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if end == "traceback":
        where = [line for line in lines if line.startswith("File ") and "/toolkit/" in line]
        raised = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
        lines = [f"{(raised or lines)[-1]} @ {(where or [''])[-1].rpartition('toolkit/')[2]}"]
    return End(name, number, words, end, lines[-1][:300], seconds)


def show(ends: Sequence[End]) -> str:
    """The table, and what is neither refused nor worked."""
    order = ("refused", "worked", "traceback", "hang", "memory", "other")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for end in ends:
        counts[end.kind][end.end] += 1
        counts["**all**"][end.end] += 1
    lines = ["| damaged | inputs | " + " | ".join(order) + " |", "|---|" + "---|" * 7]
    for name, row in counts.items():
        cells = [str(sum(row.values())), *(str(row[key]) for key in order)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the campaign, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    parser.add_argument("--number", type=int, help="one input alone, with all that it says")
    parser.add_argument("--out", type=Path, help="a line of JSON for each input")
    parser.add_argument("--table", type=Path, nargs="*", help="show what such files hold, no more")
    args = parser.parse_args()
    if args.table:
        rows = (line for path in args.table for line in path.read_text().splitlines())
        print(show([End(**json.loads(row)) for row in rows]))
        return
    _import_all()
    with tempfile.TemporaryDirectory() as place:
        sound = Path(place) / "sound"
        sound.mkdir()
        make_project(sound)
        keep = _finish_stages(sound, Path(place))
        table = {
            n: k for n, k in kinds(sound).items() if not args.only or n in args.only.split(",")
        }
        if args.number is not None:
            for name, kind in table.items():
                print(try_input(name, kind, args.number, args.seed, sound, keep))
            return
        total = sum(kind.weight for kind in table.values())
        plan = [
            (number / (args.inputs * kind.weight / total), name, number)
            for name, kind in table.items()
            for number in range(
                max(len(kind.bombs) * len(kind.commands), round(args.inputs * kind.weight / total))
            )
        ]
        ends = []
        for _, name, number in sorted(plan):  # so that a campaign cut short has all kinds
            end = try_input(name, table[name], number, args.seed, sound, keep)
            ends.append(end)
            if end.end not in ("refused", "worked"):
                print(f"{end.end}: {name} {number}: {' '.join(end.words)}: {end.last}", flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(end)) + "\n")
        print(show(ends))


def _import_all() -> None:
    """What commands import inside themselves, so that children need not."""
    import importlib
    import pkgutil

    import toolkit

    for module in pkgutil.walk_packages(toolkit.__path__, "toolkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import lm_eval.tasks
    import peft
    import transformers.models.llama.modeling_llama

    del lm_eval, peft, transformers


def _finish_stages(sound: Path, place: Path) -> dict[str, Any]:
    """Run the stages that are damaged later: finished data stages, a training and a search that
    were cut short."""
    for words in (("cpt", "run", "jsonl.yaml"), ("merge", "choose", "choose.yaml")):
        code, text, _, _ = run_command(words, sound)
        if code:
            sys.exit(f"the sound project fails: toolkit {' '.join(words)}: {text}")
    keep = {stage: outputs_of(sound, stage) for stage in KEPT}
    shutil.copytree(sound / "runs", place / "whole")
    for stage in ("jsonl/cpt", "choose/merge"):
        shutil.rmtree(sound / "runs" / stage)
    (sound / "runs" / "choose" / "test-ledger.json").unlink()
    _interrupt_training(sound)
    _interrupt_search(sound)
    return keep


KEPT = ("jsonl/data", "jsonl/cpt", "choose/merge")


def _interrupt_training(sound: Path) -> None:
    """Run the training again, in a process that ends itself once a second state stands."""
    from toolkit.checkpoint.training_state import StateWriter

    write = StateWriter._write

    def write_and_die(self: StateWriter, step: int, *parts: Any) -> None:
        write(self, step, *parts)
        if step >= 2:
            os.kill(os.getpid(), signal.SIGKILL)

    _run_changed(StateWriter, "_write", write_and_die, ("cpt", "run", "jsonl.yaml"), sound)
    if not list((sound / "runs" / "jsonl" / "cpt.partial").glob("state-*/sums.json")):
        sys.exit("the training left no state; make it longer")


def _interrupt_search(sound: Path) -> None:
    """Run the search again, in a process that ends itself once the test sets would be scored."""
    from toolkit.pipeline import merge_stage

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _run_changed(merge_stage, "score_test_once", die, ("merge", "choose", "choose.yaml"), sound)
    if not (sound / "runs" / "choose" / "merge.partial" / "scores.jsonl").is_file():
        sys.exit("the search left no journal")


def _run_changed(holder: Any, name: str, function: Any, words: Sequence[str], sound: Path) -> None:
    """Run a command in a process in which one function is another."""
    pid = os.fork()
    if pid == 0:
        setattr(holder, name, function)
        _child(words, sound, sound / ".said")
    os.waitpid(pid, 0)
    (sound / ".said").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
