"""Seconds of one candidate merged in memory, on a real model's two folders.

python benchmarks/live.py runs/finance/general runs/finance/cpt
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory import LiveMerge

REPEATS = 7


def candidate(method: str, number: int) -> dict[str, Any]:
    """A candidate with numbers of its own, as a search would ask for."""
    share = 0.3 + 0.05 * number
    models: list[dict[str, Any]] = [{"model": "specialist", "parameters": {"weight": share}}]
    config: dict[str, Any] = {"merge_method": method, "models": models}
    if method == "linear":
        models.insert(0, {"model": "general", "parameters": {"weight": 1.0 - share}})
        return config
    config["base_model"] = "general"
    if method == "slerp":
        models[0].pop("parameters")
        config["parameters"] = {"t": share}
    elif method == "ties":
        models[0]["parameters"]["density"] = share
    return config


def main() -> None:
    general, specialist = map(Path, sys.argv[1:3])
    live = LiveMerge({"general": general, "specialist": specialist})
    model = load_causal_model(general, stored_dtype(general))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.1f}M parameters, {stored_dtype(general)}, seconds a candidate")
    for method in ("linear", "task_arithmetic", "slerp", "ties"):
        seconds = []
        for number in range(REPEATS + 1):
            config = parse_merge_config(candidate(method, number), where=method)
            began = time.perf_counter()
            live.apply(config, model)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds[1:])
        print(f"  {method:16s} first {seconds[0]:.3f}, then median {median:.3f}")


if __name__ == "__main__":
    main()
