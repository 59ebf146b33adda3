"""The model in other forms than its own: GGUF files and a LoRA adapter, each with its error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.checkpoint.lora import SETTINGS_FILE, WEIGHTS_FILE
from toolkit.progress import progress
from toolkit.stage import load_json, write_json

ADAPTER_REPORT = "adapter.json"
Extract = Callable[[Path, Path, Path, int, int, str], None]
"""`extract(tuned, base, out, rank, seed, dtype)` writes an adapter folder with its report."""


def write_gguf_files(
    merged: Path, work: Path, types: Sequence[str], name: str, facts: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write a file for each type, load it again and compare it with the model.

    Returns:
        By file: `record`, its figures; `card`, the same in words.

    Raises:
        CheckpointError: the model is not of the Llama family, or a file is not what it should be.
    """
    figures: dict[str, dict[str, Any]] = {}
    with progress("GGUF files", len(types)) as advance:
        for kind in types:
            path = work / f"{name}-{kind}.gguf"
            export_gguf(merged, path, kind, name=name, facts=facts)
            found = compare_gguf(merged, path)
            figures[path.name] = {
                "record": asdict(found),
                "card": {
                    "size": f"{path.stat().st_size / 1e6:,.1f} MB",
                    "relative error": f"{found.relative:.2g}",
                    "divergence, nats a token": f"{found.divergence:.2g}",
                    "same likeliest token": f"{found.same_tokens:.0%}",
                },
            }
            advance(1, kind)
    return figures


def write_adapter_files(
    merged: Path,
    general: Path,
    work: Path,
    *,
    rank: int,
    seed: int,
    base: str,
    revision: str | None,
    extract: Extract,
) -> dict[str, dict[str, Any]]:
    """Extract a LoRA of the merged model against the general one.

    Args:
        merged: folder of the merged model.
        general: folder of the general model.
        work: the bundle.
        rank: of the adapter.
        seed: of its sketches.
        base: public name of the general model.
        revision: of that.
        extract: does it.

    Returns:
        As `write_gguf_files` does.

    Raises:
        MergeError: the models differ in shapes, or not at all.
    """
    from toolkit.checkpoint.folder import stored_dtype

    out = work / "adapter"
    dtype = str(stored_dtype(merged)).removeprefix("torch.")
    extract(merged, general, out, rank, seed, dtype)
    report = load_json(out / "report.json")
    settings = load_json(out / SETTINGS_FILE)
    settings |= {"base_model_name_or_path": base, "revision": revision}
    write_json(work / SETTINGS_FILE, settings)
    (out / WEIGHTS_FILE).rename(work / WEIGHTS_FILE)
    shutil.rmtree(out)
    write_json(work / ADAPTER_REPORT, report | {"tuned": "the merged model", "base": base})
    record = {key: report[key] for key in ("rank", "relative_error", "energy_kept", "dtype")}
    card = {
        "rank": str(rank),
        "relative error of the changed matrices": f"{report['relative_error']:.3f}",
        "kept of the whole change (squared norm)": f"{report['energy_kept']:.1%}",
    }
    return {WEIGHTS_FILE: {"record": json.loads(json.dumps(record)), "card": card}}
