"""Merges by every kernel, hashed; run as a program on another processor or without numba.

python -m tests.helpers.merge_by_kernels FOLDER [--without-numba]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.checkpoint.write import PlannedTensor, ShardWriter
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

SHAPES = {"embed.weight": (280, 256), "layers.0.norm.weight": (96,), "layers.0.up.weight": (9, 70)}
"""The first is larger than what is ranked whole, so that windows of magnitudes are collected."""

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.7},
    "slerp": {"t": 0.35},
    "nuslerp": {},
    "ties": {"lambda": 1.3},
    "breadcrumbs": {"rescale": True},
    "dare_ties": {},
    "della": {},
    "ties_global": {},
}


def write_models(folder: Path) -> dict[str, Path]:
    """`base`, `a` and `b`, bfloat16, the tuned ones near the base; returns their folders."""
    folders = {}
    for number, name in enumerate(("base", "a", "b")):
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        (folders[name] / "config.json").write_text('{"model_type": "of nobody"}')
        planned = [PlannedTensor(key, "BF16", shape) for key, shape in SHAPES.items()]
        with ShardWriter(folders[name], planned) as writer:
            for key, shape in SHAPES.items():
                size = int(np.prod(shape))
                values = np.random.default_rng(0).normal(0.0, 0.02, size)
                if number:
                    values += np.random.default_rng(number).normal(0.0, 0.003, size)
                patterns = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
                writer.write(key, 0, memoryview(patterns))
    return folders


def hash_merges(folder: Path) -> dict[str, str]:
    """sha256 of the weights that every method writes."""
    folders = write_models(folder)
    hashes = {}
    for method, options in METHODS.items():
        per_model = {"weight": 0.6} if method != "slerp" else {}
        if method in {"ties", "ties_global", "breadcrumbs", "dare_ties", "della"}:
            per_model["density"] = 0.4
        names = ["a"] if method == "slerp" else ["a", "b"]
        data: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": name, "parameters": per_model} for name in names],
            "parameters": options,
        }
        if method not in {"linear", "nuslerp"}:
            data["base_model"] = "base"
        out = folder / f"out-{method}"
        run_merge(parse_merge_config(data, where=method), out, folders=folders, num_threads=2)
        weights = (out / "model.safetensors").read_bytes()
        hashes[method] = hashlib.sha256(weights).hexdigest()
    return hashes


if __name__ == "__main__":
    if "--without-numba" in sys.argv:
        sys.modules["numba"] = None  # type: ignore[assignment]  # an import of it then fails
    hashes = hash_merges(Path(sys.argv[1]))
    print(json.dumps({"hashes": hashes, "modules": sorted({"numba", "torch"} & set(sys.modules))}))
