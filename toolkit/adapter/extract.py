"""A LoRA adapter out of a tuned model and its base, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from toolkit.adapter.extract_plan import ExtractJob, ExtractSettings, plan_extract
from toolkit.adapter.folder import AdapterWriter
from toolkit.adapter.lowrank import LowRankFit, fit_dense, frobenius
from toolkit.adapter.modules import read_modules
from toolkit.adapter.report import AdapterReport, LayerRow, OtherRow
from toolkit.adapter.stacked import fit_stack
from toolkit.checkpoint.loadable_adapter import Placement, refuse_unloadable_adapter
from toolkit.checkpoint.lora import PREFIX
from toolkit.checkpoint.memory_tensors import MemoryTensors
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.references import find_folder, parse_reference
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
    place = parse_reference(base)
    if place.adapter is not None:
        raise ConfigError(
            f"{base}: is a model with an adapter; an adapter belongs to a model that stands by "
            "itself. Merge it first (toolkit merge run), or give the plain model."
        )
    models = Models()
    after, before = models.checkpoint(tuned), models.checkpoint(base)
    modules = read_modules(find_folder(place.model))
    if own_head(after) is not None or own_head(before) is not None:
        modules = replace(modules, tied={})  # a head that is stored and differs is not tied
    tensors = MemoryTensors(modules.model, after), MemoryTensors(modules.model, before)
    plan = plan_extract((tuned, base), *tensors, modules, settings, before.folder)
    factored = [job for job in plan.jobs if job.verdict == "factored"]
    saved = [job.name for job in plan.jobs if job.verdict == "saved"]
    twins = {twin: name for twin, name in modules.tied.items() if name in saved}
    report = AdapterReport(
        {
            "made_by": "toolkit adapter extract",
            "tuned": tuned,
            "base": base,
            "rank": settings.rank,
            "energy": settings.energy,
            "seed": settings.seed,
            "dtype": settings.dtype,
        }
    )
    if begin is not None:
        begin(len(plan.jobs))
    with appearing(out) as work:
        embeddings = [job.name for job in factored if job.kind == "embedding"]
        names = [job.name for job in factored if not job.is_parameter]
        parameters = plan.placement.parameters
        with AdapterWriter(work, names, [*saved, *twins], embeddings, parameters) as writer:
            for job in plan.jobs:
                _run(job, tensors, plan.placement, settings, writer, twins, report)
                for one in tensors:
                    one.give_back(job.name)
                if advance is not None:
                    advance(1, job.shown_as)
            if not (report.layers or report.saved or report.left_out):
                raise MergeError(f"{tuned}: is equal to {base}; there is nothing to extract.")
            done = {row.name for row in report.layers} | {row.name for row in report.saved}
            kept = {job.name for job in plan.jobs if job.shown_as in done}
            writer.finish(
                base=place.model.path,
                revision=place.model.revision,
                is_causal=modules.is_causal,
                turned=_orientation([job for job in factored if job.name in kept]),
                tied=[twin.rpartition(".")[0] for twin, name in twins.items() if name in kept],
                everything=list(modules.kinds),
            )
        refuse_unloadable_adapter(work, before.folder)
        report.sort()
        report.write(work)
    return report


def _run(
    job: ExtractJob,
    tensors: tuple[MemoryTensors, MemoryTensors],
    placement: Placement,
    settings: ExtractSettings,
    writer: AdapterWriter,
    twins: dict[str, str],
    report: AdapterReport,
) -> None:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    stored, before = (one.tensor(job.name) for one in tensors)
    shape = tuple(stored.shape)
    norm = _norm(stored, before)
    if not norm < float("inf"):
        folders = " or ".join(str(one.folder) for one in tensors)
        raise MergeError(
            f"{job.shown_as}: holds NaN or infinity in {folders}; the model is damaged."
        )
    if norm == 0.0:
        return
    if job.verdict == "factored":
        fit = _fit(job, stored, before, norm, placement, settings)
        rank = fit.factors.rank // (shape[0] if job.kind == "stack" else 1)
        if job.is_parameter:
            writer.add_parameter(job.name, fit.factors, rank=rank)
        else:
            writer.add_factors(job.name, fit.factors)
        report.layers.append(LayerRow.of(job.shown_as, shape, rank, norm, fit.error))
        return
    length = _norm(before, None)
    row = OtherRow(job.shown_as, shape, norm, norm / length if length else None, job.why)
    if job.verdict == "left out":
        report.left_out.append(row)
        return
    report.saved.append(row)
    writer.add_saved(job.name, stored.to(dtype))
    for twin, name in twins.items():
        if name == job.name:
            writer.add_saved(twin, stored.to(dtype), key=PREFIX + twin)


def _fit(
    job: ExtractJob,
    after: Tensor,
    before: Tensor,
    norm: float,
    placement: Placement,
    settings: ExtractSettings,
) -> LowRankFit:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    seed = stream_key(settings.seed, job.shown_as, 0)
    if job.kind == "stack":
        is_swapped = job.name in placement.swapped
        return fit_stack(
            *(after, before, settings.rank),
            norm=norm,
            is_swapped=is_swapped,
            seed=seed,
            energy=settings.energy,
            dtype=dtype,
        )
    delta = _delta(after, before)
    matrix = delta.T.contiguous() if job.kind in ("turned", "embedding") else delta
    return fit_dense(matrix, settings.rank, seed=seed, energy=settings.energy, dtype=dtype)


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
