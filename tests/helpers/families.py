"""What the tests of diagnoses share: tensors by name, and a diagnosis of folders side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit.diagnose.figures import Diagnosis, diagnosis_of
from toolkit.diagnose.measure import measure
from toolkit.diagnose.remarks import remarks_of
from toolkit.diagnose.subjects import open_subjects
from toolkit.merge.kernels.workers import WorkerThreads

State = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def mean(family: dict[str, State]) -> State:
    return {name: (family["a"][name] + family["b"][name]) / 2 for name in family["a"]}


def diagnose(folder: Path, *against: str, base: str | None = "base") -> Diagnosis:
    root, workers = folder.parent, WorkerThreads(2)
    names = [str(root / name) for name in against]
    subjects = open_subjects(folder, names, str(root / base) if base else None, workers)
    return diagnosis_of(subjects, measure(subjects, workers))


def texts(diagnosis: Diagnosis, kind: str) -> list[str]:
    return [remark.text for remark in remarks_of(diagnosis) if remark.kind == kind]


def ties(root: Path, **settings: Any) -> dict[str, Any]:
    models = [{"model": str(root / "a"), "parameters": {"weight": 1.0, **settings}}]
    return {"merge_method": "ties", "base_model": str(root / "base"), "models": models}
