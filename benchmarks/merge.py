"""Whole merge commands on made-up Llamas: ours, mergekit's, and a copy of the same bytes, in turn.

    python benchmarks/merge.py --millions 660 --methods linear,slerp,ties --runs 3

Prints a table of median seconds, ratios pair by pair, and peak private memory (anonymous pages, not
the page cache). The models are random: a base, and two that differ from it as fine-tunes do.
"""

from __future__ import annotations

import argparse
import json
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
    110: (768, 2048, 12, 12),
    660: (1536, 4096, 20, 16),
    1100: (2048, 5632, 20, 32),
    3000: (3072, 8192, 24, 24),
}
VOCABULARY = 32000
METHODS = (
    "linear", "task_arithmetic", "slerp", "nuslerp", "ties", "dare_ties", "della", "breadcrumbs"
)  # fmt: skip


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
    weights = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (a, b)]
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
    """Wait until the system has taken back what the last run freed.

    A virtual machine gives free pages to its host after a second or two, and getting them again is
    slow. Without a pause whoever runs right after a deletion writes up to five times as fast.
    """
    time.sleep(4.0)


def measure(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of a whole command, and its peak private memory in megabytes."""
    settle()
    peak = 0.0
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
    return seconds, peak


def copy(inputs: Sequence[Path], target: Path) -> float:
    """Seconds to read all input weights and write as many bytes as a merge does."""
    settle()
    began = time.perf_counter()
    for path in inputs[1:]:
        with (path / "model.safetensors").open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass
    target.mkdir()
    shutil.copyfile(inputs[0] / "model.safetensors", target / "model.safetensors")
    return time.perf_counter() - began


def scaling(sizes: Sequence[int], runs: int) -> None:
    """TIES at several sizes: seconds for each gigabyte read, and memory."""
    toolkit = Path(sys.executable).parent / "toolkit"
    print("| parameters | GB read | s | s / GB | peak private MB |")
    print("|---|---|---|---|---|", flush=True)
    for millions in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-merge-") as name:
            folder = Path(name)
            models = make_models(folder, millions)
            config = folder / "ties.yml"
            config.write_text(yaml.safe_dump(configuration("ties", *models)))
            files = (file for model in models for file in model.glob("*.safetensors"))
            read = sum(file.stat().st_size for file in files) / 1e9
            rows = []
            for _ in range(runs):
                rows.append(measure([str(toolkit), "merge", "run", str(config), str(folder / "o")]))
                shutil.rmtree(folder / "o")
            seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"| {millions}M | {read:.2f} | {seconds:.2f} | {seconds / read:.2f} | "
                f"{memory:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=660, choices=SIZES)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-mergekit", action="store_true")
    parser.add_argument("--scaling", default="", help="sizes in millions: TIES of each, ours alone")
    options = parser.parse_args()
    tools = Path(sys.executable).parent
    if options.scaling:
        scaling([int(size) for size in options.scaling.split(",")], options.runs)
        return
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as name:
        folder = Path(name)
        base, a, b = make_models(folder, options.millions)
        print(f"{options.millions}M parameters, bfloat16, medians of {options.runs}")
        print("| method | ours s | MB | mergekit s | MB | times as fast | copy s | ours / copy |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for method in options.methods.split(","):
            config = folder / f"{method}.yml"
            data = configuration(method, base, a, b)
            config.write_text(yaml.safe_dump(data))
            used = [p for p in (base, a, b) if str(p) in config.read_text()]
            rows = []
            for _ in range(options.runs):
                mine = measure(
                    [str(tools / "toolkit"), "merge", "run", str(config), str(folder / "o")]
                )
                shutil.rmtree(folder / "o")
                theirs = (float("nan"), float("nan"))
                if not options.without_mergekit:
                    command = [str(tools / "mergekit-yaml"), str(config), str(folder / "m")]
                    theirs = measure([*command, "--no-copy-tokenizer", "--no-write-model-card"])
                    shutil.rmtree(folder / "m")
                copied = copy(used, folder / "c")
                shutil.rmtree(folder / "c")
                rows.append((*mine, *theirs, theirs[0] / mine[0], copied, mine[0] / copied))
            s, mb, ts, tmb, faster, copied, ratio = (
                statistics.median(c) for c in zip(*rows, strict=True)
            )
            print(
                f"| {method} | {s:.2f} | {mb:.0f} | {ts:.1f} | {tmb:.0f} | {faster:.1f} | "
                f"{copied:.2f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
