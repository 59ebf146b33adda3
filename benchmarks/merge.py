"""Whole merge commands on made-up Llamas: ours, mergekit's, and a copy of the same bytes, in turn.

    python benchmarks/merge.py --millions 660 --methods linear,slerp,ties --runs 3

*Copying the same bytes* is: every byte of the models that the merge reads is read (plain reads of
1 MB), and one model's weights are written by `shutil.copyfile`, the system's own fastest way. Both
start with the inputs in the page cache and end when the output is whole for every process; neither
waits for the disk.

Methods take turns: each of them once, then each again. A merge is followed at once by a copy of its
own bytes, and before either what was written is on the disk and free memory is made alike, so that
the order of methods does not enter. Ratios are taken pair by pair; the table shows medians.
Processor seconds are those of our command, all threads: they depend less on what else is running.
Private memory is the peak of anonymous pages, without the page cache. The models are random: a
base, and two that differ from it as fine-tunes do. Results may be collected over several calls:

    python benchmarks/merge.py --models /tmp/m --results r.jsonl --methods ties --mergekit-runs 1
    python benchmarks/merge.py --results r.jsonl --table
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from toolkit.checkpoint.write import PlannedTensor, ShardWriter, tensor_bytes

SIZES = {  # millions: hidden, intermediate, layers, heads
    4: (64, 128, 2, 4),
    110: (768, 2048, 12, 12),
    660: (1536, 4096, 20, 16),
    1100: (2048, 5632, 20, 32),
    3000: (3072, 8192, 24, 24),
}
VOCABULARY = 32000
METHODS = (
    "linear", "task_arithmetic", "slerp", "nuslerp", "ties", "dare_ties", "della", "breadcrumbs"
)  # fmt: skip


SPARE = 5 << 30  # bytes: more than any of the three takes, page cache of its output included
TOUCH = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for place in range(0, size, 4096):
    memory[place] = 1
"""


def make_models(folder: Path, millions: int) -> list[Path]:
    """Write base, a and b as bfloat16 safetensors with config and no tokenizer."""
    hidden, intermediate, layers, heads = SIZES[millions]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for name in ("k", "o", "q", "v"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (hidden, hidden)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (VOCABULARY, hidden)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    planned = [PlannedTensor(name, "BF16", shape) for name, shape in shapes.items()]
    paths = [folder / name for name in ("base", "a", "b")]
    writers = []
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        writers.append(ShardWriter(path, planned))
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        base = torch.randn(shape, generator=generator) * 0.02
        writers[0].write(name, 0, tensor_bytes(base.bfloat16()))
        for writer in writers[1:]:
            tuned = base + torch.randn(shape, generator=generator) * 0.002
            writer.write(name, 0, tensor_bytes(tuned.bfloat16()))
    for writer in writers:
        writer.close()
    return paths


def configuration(method: str, base: Path, a: Path, b: Path) -> dict[str, Any]:
    """The mergekit configuration that both engines run."""
    data: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    weights: list[dict[str, Any]] = [
        {"model": str(path), "parameters": {"weight": 0.5}} for path in (a, b)
    ]
    if method == "slerp":
        return {
            **data,
            "base_model": str(a),
            "models": [{"model": str(b)}],
            "parameters": {"t": 0.4},
        }
    if method not in {"linear", "nuslerp"}:
        data["base_model"] = str(base)
    if method in {"ties", "dare_ties", "dare_linear", "della", "breadcrumbs", "breadcrumbs_ties"}:
        for item in weights:
            item["parameters"]["density"] = 0.5
    if method == "della":
        for item in weights:
            item["parameters"]["epsilon"] = 0.1
    return {**data, "models": weights}


def settle() -> None:
    """Wait until what the last run wrote is on the disk, and give every run the same free memory.

    Write-back takes processor time and memory bandwidth from whoever comes next. And a virtual
    machine gives free pages back to its host a second or two after they were freed; getting them
    again is many times slower than finding them, and what ran before decides how many are gone.
    So memory is taken, touched and freed before each run, as it would stand on a machine of one's
    own.
    """
    os.sync()
    subprocess.run([sys.executable, "-c", TOUCH, str(SPARE)], check=True)


def measure(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a whole command, its processor seconds, and peak private memory in megabytes."""
    settle()
    peak = 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        list(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def watch() -> None:
        nonlocal peak
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            kilobytes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            peak = max([peak, *(k / 1e3 for k in kilobytes)])
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{errors}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"s": seconds, "cpu": used, "mb": peak}


def copy(inputs: Sequence[Path], target: Path) -> float:
    """Seconds to read all input weights and write as many bytes as a merge does."""
    settle()
    began = time.perf_counter()
    buffer = bytearray(1 << 20)
    for shard in (shard for path in inputs[1:] for shard in shards(path)):
        with shard.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    target.mkdir()
    for shard in shards(inputs[0]):
        shutil.copyfile(shard, target / shard.name)
    return time.perf_counter() - began


def shards(folder: Path) -> list[Path]:
    """Weights of a model, in one file or several."""
    return sorted(folder.glob("*.safetensors"))


def compile_kernels(methods: Sequence[str], folder: Path) -> None:
    """Merge a tiny model by every method, unmeasured: kernels are compiled once a machine."""
    models = make_models(folder, 4)
    for method in methods:
        config = folder / f"{method}.yml"
        config.write_text(yaml.safe_dump(configuration(method, *models)))
        words = ["merge", "run", str(config), str(folder / f"{method}.out")]
        subprocess.run([sys.executable, "-m", "toolkit", *words], check=True, capture_output=True)


def run_once(method: str, folder: Path, with_mergekit: bool) -> dict[str, Any]:
    """One merge by ours, a copy of its bytes beside it, and mergekit's where it is asked for."""
    models = [folder / name for name in ("base", "a", "b")]
    config = folder / f"{method}.yml"
    config.write_text(yaml.safe_dump(configuration(method, *models)))
    used = [path for path in models if str(path) in config.read_text()]
    size = 0
    for path in used:
        for file in path.glob("*.safetensors"):
            size += file.stat().st_size
            with file.open("rb", buffering=0) as opened:
                while opened.read(1 << 20):  # into the page cache
                    pass
    tools = Path(sys.executable).parent
    merge = [sys.executable, "-m", "toolkit", "merge", "run", str(config), str(folder / "o")]
    found: dict[str, Any] = {"method": method, "gb": size / 1e9, "load": os.getloadavg()[0]}
    found["ours"] = measure(merge)
    shutil.rmtree(folder / "o")
    found["copy"] = copy(used, folder / "c")
    shutil.rmtree(folder / "c")
    if with_mergekit:
        command = [str(tools / "mergekit-yaml"), str(config), str(folder / "m")]
        found["mergekit"] = measure([*command, "--no-copy-tokenizer", "--no-write-model-card"])
        shutil.rmtree(folder / "m")
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a size and method: medians, and ratios pair by pair."""
    lines = [
        "| | method | ours s | s / GB read | processor s | MB | copy s | ours / copy | "
        "mergekit s (runs) | MB | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["millions"], row["method"]) for row in rows):
        own = [row for row in rows if (row["millions"], row["method"]) == key]
        ours = {
            name: statistics.median(row["ours"][name] for row in own) for name in own[0]["ours"]
        }
        copied = statistics.median(row["copy"] for row in own)
        ratio = statistics.median(row["ours"]["s"] / row["copy"] for row in own)
        line = (
            f"| {key[0]}M | {key[1]} | {ours['s']:.2f} | "
            f"{ours['s'] / own[0]['gb']:.2f} | {ours['cpu']:.2f} | {ours['mb']:.0f} | "
            f"{copied:.2f} | {ratio:.2f} | "
        )
        if theirs := [row for row in own if "mergekit" in row]:
            seconds = statistics.median(row["mergekit"]["s"] for row in theirs)
            memory = statistics.median(row["mergekit"]["mb"] for row in theirs)
            faster = statistics.median(row["mergekit"]["s"] / row["ours"]["s"] for row in theirs)
            lines.append(line + f"{seconds:.1f} ({len(theirs)}) | {memory:.0f} | {faster:.1f} |")
        else:
            lines.append(line + "| | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=660, choices=SIZES)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit-runs", type=int, help="as many as --runs; 0: ours alone")
    parser.add_argument("--models", type=Path, help="where models are, or are to be made and kept")
    parser.add_argument("--results", type=Path, help="JSON lines, added to")
    parser.add_argument("--table", action="store_true", help="only show what --results holds")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.results is not None and options.results.is_file():
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    if options.table:
        print(table(rows))
        return
    theirs = options.runs if options.mergekit_runs is None else options.mergekit_runs
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as name:
        folder = (options.models or Path(name)) / str(options.millions)
        if not shards(folder / "b"):
            make_models(folder, options.millions)
        methods = options.methods.split(",")
        compile_kernels(methods, Path(name) / "small")
        for number in range(options.runs):
            for method in methods:
                row = {"millions": options.millions, **run_once(method, folder, number < theirs)}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if options.results is not None:
                    with options.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
