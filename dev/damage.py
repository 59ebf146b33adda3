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

from dev import damage_inputs as inputs
from dev.damage_project import FORMATS, TEMPLATE_NAME, make_project

CPU_SECONDS = 30
WALL_SECONDS = 600
MORE_BYTES = 3 << 30
"""Memory that a child may take beyond what it begins with; most sound runs take a tenth."""


@dataclass(frozen=True)
class Kind:
    """A file that is damaged, and the commands that read it.

    Attributes:
        file: in the project; a pattern where there are several.
        damage: a change of its bytes.
        commands: one of them is run.
        weight: how often it is taken.
        bombs: contents that are tried before all changes.
        keep: folder whose outputs must be the sound run's where the command says nothing.
    """

    file: str
    damage: inputs.Damage
    commands: tuple[tuple[str, ...], ...]
    weight: float = 1.0
    bombs: tuple[bytes, ...] = ()
    keep: str = ""


ASK = ("generate", "b", "--prompt", "a question", "--new-tokens", "2")


def _run(name: str) -> tuple[str, ...]:
    return ("merge", "run", f"{name}.yml", "out")


def kinds(folder: Path) -> dict[str, Kind]:
    """All that is damaged, by name."""
    tokenizer = (folder / "b" / "tokenizer.json").read_bytes()
    table = {
        f"merge {name}": Kind(
            f"{name}.yml",
            inputs.damage_yaml,
            (_run(name), ("merge", "check", f"{name}.yml"), ("merge", "plan", f"{name}.yml")),
            3.0,
            inputs.YAML_BOMBS if name == "linear" else (),
        )
        for name in ("linear", "ties", "slices", "slerp", "adapted")
    }
    table |= {
        "moe": Kind("moe.yml", inputs.damage_yaml, (("merge", "moe", "moe.yml", "out"),), 2.0),
        "recipe": Kind(
            "jsonl.yaml",
            inputs.damage_yaml,
            (("data", "run", "jsonl.yaml"),),
            8.0,
            inputs.YAML_BOMBS,
        ),
        "config.json": Kind(
            "b/config.json",
            inputs.damage_json,
            (_run("linear"), _run("ties"), ("merge", "check", "linear.yml"), ASK),
            8.0,
            inputs.JSON_BOMBS,
        ),
        "tokenizer.json": Kind(
            "b/tokenizer.json",
            inputs.damage_json,
            (_run("ties"), ASK, ("merge", "check", "ties.yml")),
            8.0,
            (*inputs.JSON_BOMBS, *inputs.tokenizer_bombs(tokenizer)),
        ),
        "tokenizer_config.json": Kind(
            "b/tokenizer_config.json", inputs.damage_json, (_run("ties"), ASK), 4.0
        ),
        "generation_config.json": Kind("b/generation_config.json", inputs.damage_json, (ASK,), 3.0),
        "chat template": Kind(
            f"b/{TEMPLATE_NAME}",
            inputs.damage_text,
            (ASK,),
            2.0,
            inputs.TEMPLATE_BOMBS,
        ),
        "template of talks": Kind(
            f"a/{TEMPLATE_NAME}",
            inputs.damage_text,
            (("data", "run", "talks.yaml"),),
            1.0,
            inputs.TEMPLATE_BOMBS,
        ),
        "safetensors": Kind(
            "b/model.safetensors",
            inputs.damage_safetensors,
            (_run("linear"), ("merge", "check", "linear.yml"), ASK),
            8.0,
        ),
        "index": Kind(
            "sharded/model.safetensors.index.json",
            inputs.damage_json,
            (_run("sharded"), ("merge", "check", "sharded.yml")),
            3.0,
        ),
        "pytorch_model.bin": Kind(
            "pickled/pytorch_model.bin", inputs.damage_bytes, (_run("pickled"),), 5.0
        ),
        "adapter_config.json": Kind(
            "adapter/adapter_config.json",
            inputs.damage_json,
            (_run("adapted"), ("generate", "a+adapter", *ASK[2:])),
            3.0,
        ),
        "adapter weights": Kind(
            "adapter/adapter_model.safetensors", inputs.damage_safetensors, (_run("adapted"),), 3.0
        ),
        "task file": Kind(
            "tasks/parts.yaml",
            inputs.damage_yaml,
            (("eval", "a", "--tasks", "parts", "--include-path", "tasks"),),
            1.5,
            inputs.YAML_BOMBS[:3],
        ),
        "rows of a task": Kind(
            "tasks/parts.jsonl",
            inputs.damage_lines,
            (("eval", "a", "--tasks", "parts", "--include-path", "tasks"),),
            1.0,
        ),
        "talks": Kind("talks.jsonl", inputs.damage_lines, (("data", "run", "talks.yaml"),), 2.0),
        "finished data": Kind(
            "runs/jsonl/data/*",
            inputs.damage_bytes,
            (("data", "run", "jsonl.yaml"),),
            4.0,
            keep="data",
        ),
        "finished tokens": Kind(
            "runs/jsonl/data/tokens/*",
            inputs.damage_bytes,
            (("data", "run", "jsonl.yaml"),),
            2.0,
            keep="data",
        ),
        "training state": Kind(
            "runs/jsonl/cpt.partial/state-*/*",
            inputs.damage_bytes,
            (("cpt", "run", "jsonl.yaml"),),
            2.0,
            keep="cpt",
        ),
        "state.json": Kind(
            "runs/jsonl/cpt.partial/**/*.json",
            inputs.damage_json,
            (("cpt", "run", "jsonl.yaml"),),
            1.5,
            keep="cpt",
        ),
    }
    for ending in FORMATS:
        damage = inputs.damage_lines if ending == "jsonl" else inputs.damage_bytes
        name = ending.replace(".", "-")
        table[ending] = Kind(
            f"docs.{ending}",
            inputs.damage_packed if ending == "jsonl.gz" else damage,
            (("data", "run", f"{name}.yaml"),),
            2.0,
        )
    return table


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
        from toolkit.entry import main

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
    place, digest = folder / "runs" / "jsonl" / stage, hashlib.sha256()
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
    parser.add_argument("--only", default="")
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
        table = {n: k for n, k in kinds(sound).items() if args.only in ("", n)}
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
    """Run the stages that are damaged later: a finished data stage, and a training cut short."""
    for words in (("data", "run", "jsonl.yaml"), ("cpt", "run", "jsonl.yaml")):
        code, text, _, _ = run_command(words, sound)
        if code:
            sys.exit(f"the sound project fails: toolkit {' '.join(words)}: {text}")
    keep = {stage: outputs_of(sound, stage) for stage in ("data", "cpt")}
    whole = place / "whole"
    shutil.copytree(sound / "runs", whole)
    shutil.rmtree(sound / "runs" / "jsonl" / "cpt")
    (sound / ".said").unlink(missing_ok=True)
    _interrupt_training(sound)
    return keep


def _interrupt_training(sound: Path) -> None:
    """Run the training again, in a process that ends itself once a second state stands."""
    pid = os.fork()
    if pid == 0:
        from toolkit.checkpoint.resume import StateWriter

        write = StateWriter._write

        def write_and_die(self: StateWriter, step: int, *parts: Any) -> None:
            write(self, step, *parts)
            if step >= 2:
                os.kill(os.getpid(), signal.SIGKILL)

        StateWriter._write = write_and_die  # type: ignore[method-assign]
        _child(("cpt", "run", "jsonl.yaml"), sound, sound / ".said")
    os.waitpid(pid, 0)
    (sound / ".said").unlink(missing_ok=True)
    if not list((sound / "runs" / "jsonl" / "cpt.partial").glob("state-*/sums.json")):
        sys.exit("the training left no state; make it longer")


if __name__ == "__main__":
    main()
