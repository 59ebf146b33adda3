"""The model in other forms than its own: GGUF files and a LoRA adapter, each with its error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.unpack import text_model
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.checkpoint.lora import SETTINGS_FILE, WEIGHTS_FILE
from toolkit.progress import progress
from toolkit.stage import load_json, write_json

ADAPTER_REPORT = "adapter.json"
Extract = Callable[[Path, Path, Path, int, int, str], None]
"""`extract(tuned, base, out, rank, seed, dtype)` writes an adapter folder with its report."""


def write_gguf_files(
    merged: Path, work: Path, types: Sequence[str], name: str, facts: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """Write a file for each type, load it again and compare it with the model.

    Returns:
        By file: `record`, its figures; `card`, the same in words.

    Raises:
        CheckpointError: llama.cpp computes the model otherwise, or a file is not what it should be.
    """
    figures_by_file: dict[str, dict[str, object]] = {}
    with (
        text_model(merged, work / "text-side") as model,
        progress("GGUF files", len(types)) as advance,
    ):
        for gguf_type in types:
            gguf_path = work / f"{name}-{gguf_type}.gguf"
            export_gguf(model, gguf_path, gguf_type, name=name, facts=facts)
            comparison = compare_gguf(model, gguf_path)
            figures_by_file[gguf_path.name] = {
                "record": asdict(comparison),
                "card": {
                    "size": f"{gguf_path.stat().st_size / 1e6:,.1f} MB",
                    "relative error": f"{comparison.relative:.2g}",
                    "divergence, nats a token": f"{comparison.divergence:.2g}",
                    "same likeliest token": f"{comparison.same_tokens:.0%}",
                    "read alike by": ", ".join(comparison.readers) or "this toolkit alone",
                },
            }
            advance(1, gguf_type)
    return figures_by_file


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
) -> dict[str, dict[str, object]]:
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

    adapter_folder = work / "adapter"
    stored_type = str(stored_dtype(merged)).removeprefix("torch.")
    extract(merged, general, adapter_folder, rank, seed, stored_type)
    report = load_json(adapter_folder / "report.json")
    adapter_settings = load_json(adapter_folder / SETTINGS_FILE)
    # The extraction names local folders; what is published names the public model.
    adapter_settings |= {"base_model_name_or_path": base, "revision": revision}
    write_json(work / SETTINGS_FILE, adapter_settings)
    (adapter_folder / WEIGHTS_FILE).rename(work / WEIGHTS_FILE)
    shutil.rmtree(adapter_folder)
    write_json(work / ADAPTER_REPORT, report | {"tuned": "the merged model", "base": base})
    kept_figures = {key: report[key] for key in ("rank", "relative_error", "energy_kept", "dtype")}
    card_figures = {
        "rank": str(rank),
        "relative error of the changed matrices": f"{report['relative_error']:.3f}",
        "kept of the whole change (squared norm)": f"{report['energy_kept']:.1%}",
    }
    return {WEIGHTS_FILE: {"record": json.loads(json.dumps(kept_figures)), "card": card_figures}}
