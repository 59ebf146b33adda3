"""The model in other forms than its own: GGUF files and a LoRA adapter, each with its error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.families import family_of
from toolkit.checkpoint.gguf.importance import measure_importance
from toolkit.checkpoint.gguf.quantize import K_TYPES, check_quantizer
from toolkit.checkpoint.gguf.tensors import Array, plan_tensors
from toolkit.checkpoint.gguf.unpack import text_model, unpacked_gguf
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.checkpoint.load import load_causal_model, load_model_config, scoring_dtype
from toolkit.checkpoint.lora import SETTINGS_FILE, WEIGHTS_FILE
from toolkit.checkpoint.open import open_checkpoint
from toolkit.evaluate.likelihood import read_rows
from toolkit.progress import progress, say
from toolkit.publish.file_scores import FileLoss
from toolkit.publish.modelfile import write_modelfile
from toolkit.stage import load_json, write_json
from toolkit.tokenizer_files import load_tokenizer

ADAPTER_REPORT = "adapter.json"
Extract = Callable[[Path, Path, Path, int, int, str], None]
"""`extract(tuned, base, out, rank, seed, dtype)` writes an adapter folder with its report."""


FileLosses = Callable[[Path, str], list[FileLoss]]
"""`score(folder, file_name)`: what a file loses, of a folder of what it holds."""

_IMPORTANCE_TOKENS, _IMPORTANCE_DOCUMENTS = 4096, 32
"""Tokens that importance is measured on, and most documents that they are of."""


def write_gguf_files(
    merged: Path,
    work: Path,
    types: Sequence[str],
    name: str,
    facts: Mapping[str, object],
    *,
    documents: Path,
    score: FileLosses | None = None,
) -> dict[str, dict[str, object]]:
    """Write a file for each type, load it again, compare it with the model and score it.

    Args:
        merged: folder of the model.
        work: the bundle.
        types: of the files.
        name: of the files, without their type.
        facts: of the model, for the metadata.
        documents: the validation documents, by which K-quants weigh their errors.
        score: what a file loses on the test sets, of a folder of what it holds and its name; None
            scores nothing.

    Returns:
        By file: `record`, its figures; `card`, the same in words; `faults`, what does not hold.

    Raises:
        CheckpointError: llama.cpp computes the model otherwise, or a file is not what it should be.
    """
    figures_by_file: dict[str, dict[str, object]] = {}
    with (
        text_model(merged, work / "text-side") as model,
        progress("GGUF files", len(types)) as advance,
    ):
        # Only K-quants weigh errors, and measuring loads the model once more.
        importance = _importance(model, documents) if set(types) & set(K_TYPES) else {}
        for gguf_type in types:
            gguf_path = work / f"{name}-{gguf_type}.gguf"
            weights = importance if gguf_type in K_TYPES else None
            fallbacks = export_gguf(
                model, gguf_path, gguf_type, name=name, facts=facts, importance=weights
            )
            if fallbacks:
                say(
                    f"  {gguf_path.name}: {len(fallbacks)} tensors have rows that {gguf_type} does "
                    f"not fit, and a type that does: {fallbacks[0]} and so on"
                )
            figures_by_file[gguf_path.name] = _measure_file(model, gguf_path, fallbacks, score)
            advance(1, gguf_type)
        say(f"  {write_modelfile(model, smallest_file(work))}")
    return figures_by_file


def _measure_file(
    model: Path, gguf_path: Path, fallbacks: Sequence[str], score: FileLosses | None
) -> dict[str, object]:
    """The figures of one file, as `write_gguf_files` returns them."""
    comparison = compare_gguf(model, gguf_path)
    losses: list[FileLoss] = []
    # A file with the merge's own numbers would have the merge's own figures.
    if score is not None and not comparison.is_exact:
        with unpacked_gguf(gguf_path, model) as unpacked:
            losses = score(unpacked, gguf_path.name)
    for loss in losses:
        say(f"  {gguf_path.name}, {loss.name}: {loss.change.words(4, '+')} {loss.unit}")
    return {
        "record": asdict(comparison)
        | {"fallbacks": fallbacks, "losses": {loss.name: loss.as_record() for loss in losses}},
        "faults": [f"{gguf_path.name}: {loss.fault}" for loss in losses if loss.fault],
        "card": {
            "size": f"{gguf_path.stat().st_size / 1e6:,.1f} MB",
            "relative error": f"{comparison.relative:.2g}",
            "divergence, nats a token": f"{comparison.divergence:.2g}",
            "same likeliest token": f"{comparison.same_tokens:.0%}",
            "read alike by": ", ".join(comparison.readers) or "this toolkit alone",
            **{f"{loss.name}, {loss.unit}": loss.change.words(4, "+") for loss in losses},
        },
    }


def smallest_file(work: Path) -> Path:
    """The file that most people run: the smallest."""
    return min(sorted(work.glob("*.gguf")), key=lambda path: path.stat().st_size)


def _importance(model: Path, documents: Path) -> Mapping[str, Array]:
    """Mean squares of what is multiplied with each matrix, on documents from all over the file."""
    check_quantizer()
    config, tokenizer = load_model_config(model), load_tokenizer(model)
    tensors = plan_tensors(open_checkpoint(model), config, family_of(config, model))
    rows = read_rows(documents)
    num_documents = min(len(rows), _IMPORTANCE_DOCUMENTS)
    chosen = [rows[n * len(rows) // num_documents] for n in range(num_documents)]
    most_tokens = _IMPORTANCE_TOKENS // num_documents
    # Cut before tokenizing: a document may be a book.
    texts = [row["text"][: 16 * most_tokens] for row in chosen]
    token_lists = [tokenizer(text)["input_ids"][:most_tokens] for text in texts]
    with progress("importance of each weight", 1) as advance:
        found = measure_importance(
            load_causal_model(model, scoring_dtype(model)), token_lists, tensors
        )
        advance(1, "")
    return found


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
    # Both lie on one disk, so that gigabytes are moved by name alone.
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
