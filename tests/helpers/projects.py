"""A project folder with a tiny recipe, and the command run in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def recipe(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "seed": 3,
        "model": {"path": "model"},
        "data": {
            "sequence_length": 64,
            "cleaning": {
                "min_words": 5,
                "max_repeated_line_fraction": 1.0,
                "max_repeated_ngram_fraction": 1.0,
                "near_duplicate_similarity": None,
                "decontamination_ngram": None,
            },
            "sources": {
                "docs": {
                    "role": "domain",
                    "files": ["docs/*.txt"],
                    "split": {
                        "train": {"groups": ["train*"]},
                        "validation": {"groups": ["held*"], "fraction": 0.5},
                        "test": {"groups": ["held*"], "fraction": 0.5},
                    },
                },
                "web": {
                    "role": "general",
                    "files": ["web.jsonl"],
                    "split": {n: {"fraction": 1.0} for n in ("train", "validation", "test")},
                },
            },
        },
        "train": {"schedule": {"peak_lr": 5e-3}, "save_steps": 2},
        "evaluate": {"window_tokens": 64, "bootstrap_resamples": 500},
        "select": {"general_tolerance": 0.5},
    }
    return {**values, **changes}


def write(project: Path, values: dict[str, Any]) -> None:
    (project / "tiny.yaml").write_text(yaml.safe_dump(values))


def toolkit(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=project, capture_output=True, text=True, env=environment, check=False
    )
