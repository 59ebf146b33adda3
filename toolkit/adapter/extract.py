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
    request_values = {"made_by": "toolkit adapter extract", "tuned": tuned, "base": base}
    report = AdapterReport({**request_values, **settings.written()})
    if begin is not None:
        begin(len(extraction.plan.jobs))
    with appearing(out) as work_folder:
        # Tensor by tensor, each read, fitted and written before the next; the settings come last,
        # as what differs is known only then.
        with extraction.open_writer(work_folder) as writer:
            for job in extraction.plan.jobs:
                _run(job, extraction, writer, report)
                if advance is not None:
                    advance(1, job.shown_as)
            if not (report.layers or report.saved or report.left_out):
                raise MergeError(f"{tuned}: is equal to {base}; there is nothing to extract.")
            extraction.finish(writer, report)
        # Before the folder takes its name: what peft cannot load is not left for others to find.
        refuse_unloadable_adapter(work_folder, extraction.before.folder)
        report.sort()
        report.write(work_folder)
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
        saved_names = set(self.saved)
        return {twin: name for twin, name in self.modules.tied.items() if name in saved_names}

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
        shown_names = {row.name for row in report.layers} | {row.name for row in report.saved}
        written = {job.name for job in self.plan.jobs if job.shown_as in shown_names}
        adapter_base = AdapterBase(
            self.place.path,
            self.place.revision,
            is_causal=self.modules.is_causal,
            is_turned=_orientation([job for job in self.factored if job.name in written]),
            modules=list(self.modules.kinds),
        )
        tied = [twin.rpartition(".")[0] for twin, name in self.twins.items() if name in written]
        writer.finish(adapter_base, tied=tied)


def _open_models(tuned: str, base: str, settings: ExtractSettings) -> _Extraction:
    reference = parse_reference(base)
    if reference.adapter is not None:
        raise ConfigError(
            f"{base}: is a model with an adapter; an adapter belongs to a model that stands by "
            "itself. Merge it first (toolkit merge run), or give the plain model."
        )
    models = Models()
    tuned_model, base_model = models.checkpoint(tuned), models.checkpoint(base)
    modules = read_modules(find_folder(reference.model))
    if own_head(tuned_model) is not None or own_head(base_model) is not None:
        modules = replace(modules, tied={})  # a head that is stored and differs is not tied
    tensors = MemoryTensors(modules.model, tuned_model), MemoryTensors(modules.model, base_model)
    extract_plan = plan_extract((tuned, base), *tensors, modules, settings, base_model.folder)
    return _Extraction(reference.model, *tensors, modules, extract_plan, settings)


def _run(
    job: ExtractJob, extraction: _Extraction, writer: AdapterWriter, report: AdapterReport
) -> None:
    """Write what one tensor gets, and note it; nothing where both models are equal."""
    both_tensors = extraction.after, extraction.before
    after, before = (memory.tensor(job.name) for memory in both_tensors)
    change_norm = _norm(after, before)
    # NaN compares as neither; `not <` catches it with infinity.
    if not change_norm < float("inf"):
        folder_names = " or ".join(str(memory.folder) for memory in both_tensors)
        raise MergeError(
            f"{job.shown_as}: holds NaN or infinity in {folder_names}; the model is damaged."
        )
    if change_norm > 0.0 and job.verdict == "factored":
        _write_factors(job, extraction, change_norm, writer, report)
    elif change_norm > 0.0:
        base_norm = _norm(before, None)
        relative_change = change_norm / base_norm if base_norm else None
        row = OtherRow(job.shown_as, tuple(after.shape), change_norm, relative_change, job.why)
        if job.verdict == "saved":
            report.saved.append(row)
            _write_whole(job, extraction, after, writer)
        else:
            report.left_out.append(row)
    for memory in both_tensors:
        memory.give_back(job.name)


def _write_factors(
    job: ExtractJob,
    extraction: _Extraction,
    norm: float,
    writer: AdapterWriter,
    report: AdapterReport,
) -> None:
    after, before = extraction.after.tensor(job.name), extraction.before.tensor(job.name)
    shape = tuple(after.shape)
    low_rank = _fit(job, extraction, after, before, norm)
    # A stack's factors lie side by side: the rank of one expert is what peft calls the rank.
    own_rank = low_rank.factors.rank // (shape[0] if job.kind == "stack" else 1)
    if job.is_parameter:
        writer.add_parameter(job.name, low_rank.factors, rank=own_rank)
    else:
        writer.add_factors(job.name, low_rank.factors)
    report.layers.append(LayerRow.of(job.shown_as, shape, own_rank, norm, low_rank.error))


def _write_whole(
    job: ExtractJob, extraction: _Extraction, after: Tensor, writer: AdapterWriter
) -> None:
    stored_tensor = after.to(extraction.settings.torch_dtype)
    writer.add_saved(job.name, stored_tensor)
    for twin, original_name in extraction.twins.items():
        if original_name == job.name:
            writer.add_saved(twin, stored_tensor, key=PREFIX + twin)


def _fit(
    job: ExtractJob, extraction: _Extraction, after: Tensor, before: Tensor, norm: float
) -> LowRankFit:
    settings = extraction.settings
    # By name: what else is extracted, and in which order, changes no adapter.
    tensor_seed = stream_key(settings.seed, job.shown_as, 0)
    if job.kind == "stack":
        return fit_stack(
            *(after, before, settings.rank),
            norm=norm,
            is_swapped=job.name in extraction.plan.placement.swapped,
            seed=tensor_seed,
            energy=settings.energy,
            dtype=settings.torch_dtype,
        )
    delta = _delta(after, before)
    # peft computes `x A^T B^T`; where the weight is stored turned, so is its change.
    matrix = delta.T.contiguous() if job.kind in ("turned", "embedding") else delta
    return fit_dense(
        matrix, settings.rank, seed=tensor_seed, energy=settings.energy, dtype=settings.torch_dtype
    )


def _norm(after: Tensor, before: Tensor | None) -> float:
    """Frobenius norm of a change, or of a tensor; of several matrices one at a time is computed."""
    # A whole stack of experts in float32 may be several times what there is of memory.
    if after.dim() > 2:
        part_numbers = range(len(after))
        norms = [_norm(after[n], before[n] if before is not None else None) for n in part_numbers]
        return math.sqrt(math.fsum(part_norm**2 for part_norm in norms))
    matrix = after.float() if before is None else _delta(after, before)
    return frobenius(matrix if matrix.dim() == 2 else matrix.reshape(1, -1))


def _delta(after: Tensor, before: Tensor) -> Tensor:
    """`after - before` in new memory, float32; the tensors' own memory is the file."""
    return after.to(torch.float32, copy=True).sub_(before.float())


def _orientation(jobs: Sequence[ExtractJob]) -> bool:
    """Whether linear weights are `[inputs, outputs]`: peft has one setting for all of them."""
    linear_kinds = {job.kind for job in jobs} - {"embedding", "stack"}
    if len(linear_kinds) > 1:
        odd_job = next(job for job in jobs if job.kind == "linear")
        raise MergeError(
            f"{odd_job.shown_as}: is [outputs, inputs] and others are [inputs, outputs], which one "
            f"adapter cannot say; leave it out (--exclude {odd_job.module}) or store it whole "
            f"(--save-modules {odd_job.module})."
        )
    return linear_kinds == {"turned"}
