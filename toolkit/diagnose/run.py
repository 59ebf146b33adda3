"""The diagnosis of a merge: figures from its tensors, losses on a short text, a table, a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.references import find_folder, parse_reference
from toolkit.checkpoint.tokens import read_tokens
from toolkit.diagnose.figures import diagnosis_of
from toolkit.diagnose.measure import measure
from toolkit.diagnose.page import write_diagnosis_page
from toolkit.diagnose.remarks import note_on_dropping, remarks_of
from toolkit.diagnose.results import DiagnosisResults, Loss
from toolkit.diagnose.short_text import SHORT_TEXT
from toolkit.diagnose.subjects import Subjects, open_subjects
from toolkit.diagnose.table import show_diagnosis
from toolkit.errors import ConfigError, MergeError, ToolkitError
from toolkit.library_errors import first_line
from toolkit.merge.achieved import AchievedFractions, measure_achieved
from toolkit.merge.compute import ComputeSettings
from toolkit.merge.config import MergeConfig
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.pipeline.merge_output import achieved_rows
from toolkit.progress import progress, say
from toolkit.stage import write_json
from toolkit.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    import torch

    from toolkit.evaluate.config import EvaluateSection


def run_diagnosis(
    merge: Path,
    against: Sequence[str] = (),
    *,
    base: str | None = None,
    text: Path | None = None,
    html: Path | None = None,
    with_losses: bool = True,
    seed: int | None = None,
) -> DiagnosisResults:
    """Compare a merge with its parents, print what was found, and write it where asked.

    Args:
        merge: folder of the merged model.
        against: references to its parents; those of its merge.yaml where none is given.
        base: model that task vectors are taken against; else merge.yaml's base model or the first
            parent.
        text: UTF-8 text to score; else a short one of ours. Blank lines by twos part documents.
        html: page to write; the same figures are written beside it as JSON.
        with_losses: load the models one after the other and score them.
        seed: seed of the merge, where it is known.

    Raises:
        ConfigError: the text cannot be read, or the page has the name of its figures.
        MergeError: a model is not there, or no parent is known.
        CheckpointError: a model is damaged.
    """
    if html is not None and html.suffix == ".json":
        raise ConfigError(
            f"--html {html}: the figures are written beside the page under this name; give the "
            "page one that ends in .html."
        )
    documents = SHORT_TEXT if text is None else load_text(text)
    workers = WorkerThreads()
    subjects = open_subjects(merge, against, base, workers)
    with progress("tensors", len(subjects.checkpoints[0].names)) as advance:
        measured = measure(subjects, workers, advance)
    diagnosis = diagnosis_of(subjects, measured)
    # After the tensors: a damaged model is told by its entries, even where it cannot be loaded.
    losses = score_subjects(subjects, documents) if with_losses else []
    remarks = remarks_of(diagnosis, losses, _token_names(subjects.checkpoints[0].folder))
    notes = tuple(note for note in (subjects.note, note_on_dropping(diagnosis)) if note)
    achieved = achieved_rows(_measure_achieved(subjects, workers, seed), subjects.label_of)
    results = DiagnosisResults(diagnosis, tuple(losses), tuple(remarks), notes, achieved)
    show_diagnosis(results)
    if html is not None:
        write_json(html.with_suffix(".json"), results.as_json())
        write_diagnosis_page(results, html)
        say(f"Written to {html} and {html.with_suffix('.json')}.")
    return results


def _measure_achieved(
    subjects: Subjects, workers: WorkerThreads, seed: int | None
) -> AchievedFractions | None:
    plan = subjects.plan
    if plan is None:
        return None
    settings = ComputeSettings(seed or 0, workers)
    # Masks that were drawn can be drawn again only with the seed of the merge.
    knows_masks = seed is not None or not plan.method.is_random
    merged = subjects.checkpoints[0]
    return measure_achieved(plan, merged, subjects.models, settings, with_computed=knows_masks)


def diagnose_merge(out: Path, config: MergeConfig, seed: int) -> None:
    """Diagnose a merge that was just run; page and JSON stand beside the model's folder.

    Beside it, not in it: the folder stays what was merged and nothing else, so that it can be
    hashed, loaded and sent on as it is.
    """
    place = out if out.name not in {"", ".."} else out.resolve()  # `.` has no name of its own
    html = place.with_name(f"{place.name}.diagnosis.html")
    run_diagnosis(out, config.model_names(), base=config.base_model, html=html, seed=seed)


def load_text(path: Path) -> tuple[str, ...]:
    """Documents of a text file: parted by two blank lines, else the whole file is one.

    Raises:
        ConfigError: the file cannot be read as UTF-8, or is empty.
    """
    try:
        file_text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    documents = tuple(part.strip() for part in file_text.split("\n\n\n") if part.strip())
    if not documents:
        raise ConfigError(f"{path}: holds no text; give a file with a few hundred words.")
    return documents


def score_subjects(subjects: Subjects, documents: Sequence[str]) -> list[Loss]:
    """Losses of the merge and its parents, one model in memory at a time."""
    from toolkit.checkpoint.load import silence_libraries
    from toolkit.evaluate.config import EvaluateSection
    from toolkit.evaluate.load import settle_scoring
    from toolkit.machine import dtype_of

    silence_libraries()
    # One type of arithmetic for all: a difference between two types would look like one of models.
    folders = [subjects.checkpoints[index].folder for index in (0, *subjects.parents)]
    dtype = dtype_of(settle_scoring(EvaluateSection(), *folders).precision)
    losses: list[Loss] = []
    with progress("losses, models", 1 + subjects.num_parents) as advance:
        for index in (0, *subjects.parents):
            label = subjects.labels[index]
            try:
                losses.append(_score(subjects.names[index], label, documents, dtype))
            # A model that transformers cannot load is a finding, and no reason to lose the others.
            except (ToolkitError, OSError, ValueError, LookupError, RuntimeError) as error:
                losses.append(Loss(label, problem=first_line(error)))
            advance(1, label)
    return losses


def _score(name: str, label: str, documents: Sequence[str], dtype: torch.dtype) -> Loss:
    import torch

    from toolkit.checkpoint.load import load_causal_model, merge_adapter
    from toolkit.data.document_tokens import document_tokens
    from toolkit.evaluate.likelihood import ItemSet, score_documents
    from toolkit.statistics.ratios import bits_per_byte

    reference = parse_reference(name)
    folder = find_folder(reference.model)
    model = load_causal_model(folder, dtype)
    if reference.adapter is not None:
        model = merge_adapter(model, find_folder(reference.adapter))
    tokenizer = load_tokenizer(folder)
    # A token in front, so that the first word is scored as well; which one hardly matters here.
    separator_token = next(
        (i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0
    )
    tokens = document_tokens(tokenizer, documents, separator_token)
    num_bytes = [len(part.encode()) for part in documents]
    items = ItemSet(
        ids=[f"{label}, document {number}" for number in range(1, len(documents) + 1)],
        roles=["general"] * len(documents),
        num_bytes=num_bytes,
        tokens=tokens,
    )
    vocabulary_size = int(model.get_output_embeddings().weight.shape[0])
    with torch.no_grad():
        # Before the text is read: attention turns one NaN into a loss without a cause. 8-bit types
        # have no `isfinite` in torch.
        if not all(bool(p.isfinite().all()) for p in model.parameters() if p.element_size() > 1):
            raise MergeError("its weights hold NaN or infinity")
        nats = score_documents(model, items, _scoring_section(model.config))
    # The token in front is read and not predicted.
    num_targets = sum(len(ids) - 1 for ids in tokens)
    bits_per_token = sum(nats) / math.log(2.0) / max(1, num_targets)
    return Loss(label, bits_per_byte(nats, num_bytes), bits_per_token, vocabulary_size)


def _scoring_section(config: Any) -> EvaluateSection:
    """How texts are scored: in windows that a model with few positions can look at."""
    from toolkit.evaluate.config import EvaluateSection

    default_section = EvaluateSection()
    # Models that see as well keep it one level down, where this method finds it.
    max_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(max_positions, int) or not 2 <= max_positions < default_section.window_tokens:
        return default_section
    context_tokens = min(default_section.context_tokens, max_positions // 2)
    return EvaluateSection(window_tokens=max_positions, context_tokens=context_tokens)


def _token_names(folder: Path) -> Callable[[int], str | None]:
    try:
        names = {number: token for token, number in read_tokens(folder).ids.items()}
    except (ToolkitError, OSError, ValueError):
        names = {}
    return names.get
