"""What `dev/damage.py` damages, and the commands that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev import damage_inputs as inputs
from dev import damage_packed as packed
from dev.damage_project import FORMATS, TEMPLATE_NAME


@dataclass(frozen=True)
class Kind:
    """A file that is damaged, and the commands that read it.

    Attributes:
        file: in the project; a pattern where there are several.
        damage: a change of its bytes.
        commands: one of them is run.
        weight: how often it is taken.
        bombs: contents that are tried before all changes.
        keep: in `runs/`, whose outputs must be the sound run's where the command says nothing.
        prepare: is called with the project and the damaged file before the command.
    """

    file: str
    damage: inputs.Damage
    commands: tuple[tuple[str, ...], ...]
    weight: float = 1.0
    bombs: tuple[bytes, ...] = ()
    keep: str = ""
    prepare: Callable[[Path, Path], object] = lambda *_: None


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
            (
                _run("adapted"),
                ("generate", "a+adapter", *ASK[2:]),
                ("adapter", "merge", "adapters.yml", "out"),
            ),
            3.0,
        ),
        "adapter weights": Kind(
            "adapter/adapter_model.safetensors",
            inputs.damage_safetensors,
            (_run("adapted"), ("adapter", "merge", "adapters.yml", "out")),
            3.0,
        ),
        "tuned model": Kind(
            "b/model.safetensors",
            inputs.damage_safetensors,
            (
                ("adapter", "extract", "b", "a", "out", "--rank", "2"),
                ("checkpoint", "average", "a", "b", "out"),
            ),
            2.0,
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
            keep="jsonl/data",
        ),
        "finished tokens": Kind(
            "runs/jsonl/data/tokens/*",
            inputs.damage_bytes,
            (("data", "run", "jsonl.yaml"),),
            2.0,
            keep="jsonl/data",
        ),
        "training state": Kind(
            "runs/jsonl/cpt.partial/state-*/*",
            inputs.damage_bytes,
            (("cpt", "run", "jsonl.yaml"),),
            2.0,
            keep="jsonl/cpt",
        ),
        "state.json": Kind(
            "runs/jsonl/cpt.partial/**/*.json",
            inputs.damage_json,
            (("cpt", "run", "jsonl.yaml"),),
            1.5,
            keep="jsonl/cpt",
        ),
    }
    table |= _numbers() | _searches() | _archives() | {"flags": _flags()}
    for ending in FORMATS:
        damage = inputs.damage_lines if ending == "jsonl" else inputs.damage_bytes
        name = ending.replace(".", "-")
        table[ending] = Kind(
            f"docs.{ending}",
            inputs.damage_packed if ending == "jsonl.gz" else damage,
            (("data", "run", f"{name}.yaml"),),
            2.0,
            packed.XZ_BOMBS if ending == "jsonl.xz" else (),
        )
    return table


def _numbers() -> dict[str, Kind]:
    """Files whose numbers are huge."""
    table = {
        f"numbers of {name}": Kind(
            f"{name}.yml", inputs.damage_numbers, (words or _run(name),), 1.5
        )
        for name, words in (
            *((name, ()) for name in ("ties", "slices", "slerp")),
            ("moe", ("merge", "moe", "moe.yml", "out")),
            ("adapters", ("adapter", "merge", "adapters.yml", "out")),
        )
    }
    commands = (("data", "run"), ("merge", "choose"), ("plan", "--no-measure"), ("cpt", "run"))
    table["numbers of a recipe"] = Kind(
        "numbers.yaml",
        inputs.damage_numbers,
        tuple((*words, "numbers.yaml") for words in commands),
        8.0,
    )
    return table


def _searches() -> dict[str, Kind]:
    """What a search that was interrupted left."""
    words = (("merge", "choose", "choose.yaml"),)
    return {
        "journal of a search": Kind(
            "runs/choose/merge.partial/scores.jsonl",
            inputs.damage_lines,
            words,
            1.5,
            keep="choose/merge",
        ),
        "score cache": Kind(
            "runs/scores-cache.jsonl", inputs.damage_lines, words, 1.5, keep="choose/merge"
        ),
        "bytes of a search": Kind(
            "runs/**/scores*.jsonl", inputs.damage_bytes, words, 1.5, keep="choose/merge"
        ),
        "ledger and partial scores": Kind(
            "runs/choose/**/*.json", inputs.damage_json, words, 1.5, keep="choose/merge"
        ),
    }


def _archives() -> dict[str, Kind]:
    """Artifacts: a model's GGUF file, and archives of documents."""
    documents = (("data", "run", "packed.yaml"),)
    return {
        "GGUF": Kind(
            "tiny.gguf",
            inputs.damage_bytes,
            (("data", "run", "gguf.yaml"),),
            5.0,
            prepare=packed.pin_gguf,
        ),
        "tar.gz": Kind(
            "docs.tar.gz",
            packed.damage_tar,
            documents,
            2.0,
            packed.TAR_BOMBS,
            prepare=packed.pin_documents,
        ),
        "zip": Kind(
            "docs.zip",
            packed.damage_zip,
            documents,
            2.0,
            packed.ZIP_BOMBS,
            prepare=packed.pin_documents,
        ),
        "zip in a zip": Kind(
            "docs.zip",
            packed.damage_zip,
            documents,
            1.0,
            packed.ZIP_BOMBS,
            prepare=packed.pin_nested,
        ),
    }


def _flags() -> Kind:
    """Sound files, and flags that are none: every command is one input."""
    values = ("-1", "0", "999999999999", "9" * 30, "nan", "1e400", "x", "", "(((")
    places = (
        *((ASK, flag) for flag in ("--new-tokens", "--seed", "--temperature", "--top-p")),
        *(
            (("adapter", "extract", "b", "a", "out"), flag)
            for flag in ("--rank", "--energy", "--seed", "--include", "--dtype")
        ),
        *((("adapter", "merge", "adapters.yml", "out"), flag) for flag in ("--rank", "--energy")),
        (("checkpoint", "average", "a", "b", "out"), "--weights"),
        (("checkpoint", "average", "a", "b", "out"), "--decay"),
        *((_run("dare"), flag) for flag in ("--seed", "--device")),
        (("plan", "jsonl.yaml", "--no-measure"), "--devices"),
        (("plan", "jsonl.yaml", "--no-measure"), "--utilization"),
    )
    commands = tuple((*words, flag, value) for words, flag in places for value in values)
    return Kind("linear.yml", lambda data, _: data, commands, 9.0)
