"""A LoRA adapter out of a tuned model and its base, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toolkit.adapter.extract_plan import ExtractJob, ExtractPlan, ExtractSettings, plan_extract
from toolkit.adapter.folder import AdapterBase, AdapterWriter
from toolkit.adapter.lowrank import LowRankFit, fit_dense, frobenius
from toolkit.adapter.modules import Modules, read_modules
from toolkit.adapter.report import AdapterReport, LayerRow, OtherRow
from toolkit.adapter.stacked import fit_stack
from toolkit.checkpoint.loadable_adapter import refuse_unloadable_adapter
from toolkit.checkpoint.lora import PREFIX
from toolkit.checkpoint.memory_tensors import MemoryTensors
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.references import PathAndRevision, find_folder, parse_reference
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.kernels.stream import stream_key
from toolkit.stage import appearing, refuse_taken


def run_extract(
    tuned: str,
    base: str,
    out: Path,
    settings: ExtractSettings,
    *,
    advance: Callable[[float, str], None] | None = None,
    begin: Callable[[int], None] | None = None,
) -> AdapterReport:
    """Write the adapter that takes a base model nearest to a tuned one.

    Every linear weight that differs gets the truncated SVD of its change, and so does every expert
    of a mixture, in one parameter or not; memory is bounded by a few copies of the largest tensor.

    Args:
        tuned: reference of the tuned model, `path[@revision][+adapter]`; through an adapter a DoRA
            becomes a LoRA.
        base: reference of the base model, without an adapter.
        out: the folder to make; it must not exist, or be empty.
        settings: what is extracted.
        advance: told of each tensor that is done.
        begin: told how many there are, before the first.

    Returns:
        What is kept, layer by layer; it stands in report.json too.

    Raises:
        ConfigError: patterns or modules match nothing.
        MergeError: the models differ in names or shapes, hold NaN, are equal, or `out` is taken.
        CheckpointError: a model cannot be read, or transformers does not know it.
    """
    refuse_taken(out)
    extraction = _open_models(tuned, base, settings)
    asked = {"made_by": "toolkit adapter extract", "tuned": tuned, "base": base}
    report = AdapterReport({**asked, **settings.written()})
    if begin is not None:
        begin(len(extraction.plan.jobs))
    with appearing(out) as work:
        with extraction.open_writer(work) as writer:
            for job in extraction.plan.jobs:
                _run(job, extraction, writer, report)
                if advance is not None:
                    advance(1, job.shown_as)
            if not (report.layers or report.saved or report.left_out):
                raise MergeError(f"{tuned}: is equal to {base}; there is nothing to extract.")
            extraction.finish(writer, report)
        refuse_unloadable_adapter(work, extraction.before.folder)
        report.sort()
        report.write(work)
    return report


@dataclass(frozen=True)
class _Extraction:
    """Two opened models, and what each tensor of their difference gets.

    Attributes:
        place: where the base stands.
        after: tensors of the tuned model.
        before: tensors of the base.
        modules: of the base.
        plan: a job for every tensor.
        settings: what was asked.
    """

    place: PathAndRevision
    after: MemoryTensors
    before: MemoryTensors
    modules: Modules
    plan: ExtractPlan
    settings: ExtractSettings

    @property
    def factored(self) -> list[ExtractJob]:
        return [job for job in self.plan.jobs if job.verdict == "factored"]

    @property
    def saved(self) -> list[str]:
        return [job.name for job in self.plan.jobs if job.verdict == "saved"]

    @property
    def twins(self) -> dict[str, str]:
        """Tensors that are a saved one once more, by their names; peft stores both."""
        saved = set(self.saved)
        return {twin: name for twin, name in self.modules.tied.items() if name in saved}

    def open_writer(self, work: Path) -> AdapterWriter:
        return AdapterWriter(
            work,
            factored=[job.name for job in self.factored if not job.is_parameter],
            saved=[*self.saved, *self.twins],
            embeddings=[job.name for job in self.factored if job.kind == "embedding"],
            parameters=self.plan.placement.parameters,
        )

    def finish(self, writer: AdapterWriter, report: AdapterReport) -> None:
        """Write the settings, by what differed and so was written."""
        shown = {row.name for row in report.layers} | {row.name for row in report.saved}
        written = {job.name for job in self.plan.jobs if job.shown_as in shown}
        base = AdapterBase(
            self.place.path,
            self.place.revision,
            is_causal=self.modules.is_causal,
            is_turned=_orientation([job for job in self.factored if job.name in written]),
            modules=list(self.modules.kinds),
        )
        tied = [twin.rpartition(".")[0] for twin, name in self.twins.items() if name in written]
        writer.finish(base, tied=tied)


def _open_models(tuned: str, base: str, settings: ExtractSettings) -> _Extraction:
    reference = parse_reference(base)
    if reference.adapter is not None:
        raise ConfigError(
            f"{base}: is a model with an adapter; an adapter belongs to a model that stands by "
            "itself. Merge it first (toolkit merge run), or give the plain model."
        )
    models = Models()
    after, before = models.checkpoint(tuned), models.checkpoint(base)
    modules = read_modules(find_folder(reference.model))
    if own_head(after) is not None or own_head(before) is not None:
        modules = replace(modules, tied={})  # a head that is stored and differs is not tied
    tensors = MemoryTensors(modules.model, after), MemoryTensors(modules.model, before)
    plan = plan_extract((tuned, base), *tensors, modules, settings, before.folder)
    return _Extraction(reference.model, *tensors, modules, plan, settings)


def _run(
    job: ExtractJob, extraction: _Extraction, writer: AdapterWriter, report: AdapterReport
) -> None:
    """Write what one tensor gets, and note it; nothing where both models are equal."""
    tensors = extraction.after, extraction.before
    after, before = (one.tensor(job.name) for one in tensors)
    norm = _norm(after, before)
    if not norm < float("inf"):
        folders = " or ".join(str(one.folder) for one in tensors)
        raise MergeError(
            f"{job.shown_as}: holds NaN or infinity in {folders}; the model is damaged."
        )
    if norm > 0.0 and job.verdict == "factored":
        _write_factors(job, extraction, norm, writer, report)
    elif norm > 0.0:
        length = _norm(before, None)
        relative = norm / length if length else None
        row = OtherRow(job.shown_as, tuple(after.shape), norm, relative, job.why)
        if job.verdict == "saved":
            report.saved.append(row)
            _write_whole(job, extraction, after, writer)
        else:
            report.left_out.append(row)
    for one in tensors:
        one.give_back(job.name)


def _write_factors(
    job: ExtractJob,
    extraction: _Extraction,
    norm: float,
    writer: AdapterWriter,
    report: AdapterReport,
) -> None:
    after, before = extraction.after.tensor(job.name), extraction.before.tensor(job.name)
    shape = tuple(after.shape)
    fit = _fit(job, extraction, after, before, norm)
    rank = fit.factors.rank // (shape[0] if job.kind == "stack" else 1)
    if job.is_parameter:
        writer.add_parameter(job.name, fit.factors, rank=rank)
    else:
        writer.add_factors(job.name, fit.factors)
    report.layers.append(LayerRow.of(job.shown_as, shape, rank, norm, fit.error))


def _write_whole(
    job: ExtractJob, extraction: _Extraction, after: Tensor, writer: AdapterWriter
) -> None:
    stored = after.to(extraction.settings.torch_dtype)
    writer.add_saved(job.name, stored)
    for twin, name in extraction.twins.items():
        if name == job.name:
            writer.add_saved(twin, stored, key=PREFIX + twin)


def _fit(
    job: ExtractJob, extraction: _Extraction, after: Tensor, before: Tensor, norm: float
) -> LowRankFit:
    settings = extraction.settings
    seed = stream_key(settings.seed, job.shown_as, 0)
    if job.kind == "stack":
        return fit_stack(
            *(after, before, settings.rank),
            norm=norm,
            is_swapped=job.name in extraction.plan.placement.swapped,
            seed=seed,
            energy=settings.energy,
            dtype=settings.torch_dtype,
        )
    delta = _delta(after, before)
    matrix = delta.T.contiguous() if job.kind in ("turned", "embedding") else delta
    return fit_dense(
        matrix, settings.rank, seed=seed, energy=settings.energy, dtype=settings.torch_dtype
    )


def _norm(after: Tensor, before: Tensor | None) -> float:
    """Frobenius norm of a change, or of a tensor; of several matrices one at a time is computed."""
    if after.dim() > 2:
        parts = range(len(after))
        norms = [_norm(after[n], before[n] if before is not None else None) for n in parts]
        return math.sqrt(math.fsum(own**2 for own in norms))
    matrix = after.float() if before is None else _delta(after, before)
    return frobenius(matrix if matrix.dim() == 2 else matrix.reshape(1, -1))


def _delta(after: Tensor, before: Tensor) -> Tensor:
    """`after - before` in new memory, float32; the tensors' own memory is the file."""
    return after.to(torch.float32, copy=True).sub_(before.float())


def _orientation(jobs: Sequence[ExtractJob]) -> bool:
    """Whether linear weights are `[inputs, outputs]`: peft has one setting for all of them."""
    kinds = {job.kind for job in jobs} - {"embedding", "stack"}
    if len(kinds) > 1:
        odd = next(job for job in jobs if job.kind == "linear")
        raise MergeError(
            f"{odd.shown_as}: is [outputs, inputs] and others are [inputs, outputs], which one "
            f"adapter cannot say; leave it out (--exclude {odd.module}) or store it whole "
            f"(--save-modules {odd.module})."
        )
    return kinds == {"turned"}
