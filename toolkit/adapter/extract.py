"""A LoRA adapter out of a tuned model and its base, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from toolkit.adapter.folder import AdapterWriter, check_written
from toolkit.adapter.lowrank import fit_dense, frobenius
from toolkit.adapter.report import AdapterReport, LayerRow, OtherRow, by_layer
from toolkit.checkpoint.appear import appearing, refuse_taken
from toolkit.checkpoint.loadable_adapter import refuse_unloadable_adapter, refused_modules
from toolkit.checkpoint.lora import PREFIX
from toolkit.checkpoint.memory_names import read_memory_names
from toolkit.checkpoint.modules import Kind, Modules, read_modules
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.read import Checkpoint, TensorInfo, is_float
from toolkit.checkpoint.tensor_names import is_buffer
from toolkit.errors import ConfigError, MergeError, sentence_end
from toolkit.merge.kernels.stream import stream_key
from toolkit.merge.models import Models
from toolkit.merge.references import find_folder, parse_reference


@dataclass(frozen=True)
class ExtractSettings:
    """What is extracted.

    Attributes:
        rank: most columns of the factors, at least 1.
        energy: with it, each tensor gets the smallest rank that keeps this share of its squared
            norm, up to `rank`; in (0, 1].
        include: regular expressions, searched in the names of modules; all linear ones by default.
        exclude: the same, for modules that are left out.
        save_modules: names of modules, or their last parts, that are stored whole.
        embeddings: give embeddings factors too.
        seed: of the sketches; each tensor's own follows from it and its name.
        dtype: of what is stored.
    """

    rank: int = 16
    energy: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    save_modules: tuple[str, ...] = ()
    embeddings: bool = False
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_written(self.rank, self.energy, self.dtype)
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"{pattern!r}: is no regular expression ({error}); --include and --exclude "
                    "take those, such as 'self_attn' or 'layers\\.[0-9]\\.'."
                ) from None


@dataclass(frozen=True)
class _Job:
    """One tensor by its name in the files: its kind of module, why it gets no factors where it
    gets none, and its name in memory."""

    name: str
    kind: Kind
    verdict: Literal["factored", "saved", "left out"]
    why: str
    memory_name: str

    @property
    def module(self) -> str:
        """The module's name in memory, by which peft knows it."""
        return self.memory_name.rpartition(".")[0]


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

    Every linear weight that differs gets the truncated SVD of its change; memory is bounded by a
    few copies of the largest tensor in float32.

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
    jobs = _plan(tuned, base, after, before, modules, settings)
    linear = [job.module for job in jobs if job.verdict == "factored" and job.kind != "embedding"]
    refused = refused_modules(before.folder, linear)
    jobs = [
        replace(job, verdict="left out", why="peft puts no LoRA on it")
        if job.verdict == "factored" and job.module in refused
        else job
        for job in jobs
    ]
    factored = [job for job in jobs if job.verdict == "factored"]
    saved = [job.memory_name for job in jobs if job.verdict == "saved"]
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
        begin(len(jobs))
    with appearing(out) as work:
        embeddings = [job.memory_name for job in factored if job.kind == "embedding"]
        names = [job.memory_name for job in factored]
        with AdapterWriter(work, names, [*saved, *twins], embeddings) as writer:
            for job in jobs:
                _run(job, after, before, settings, writer, twins, report)
                after.give_back(job.name)
                before.give_back(job.name)
                if advance is not None:
                    advance(1, job.name)
            if not (report.layers or report.saved or report.left_out):
                raise MergeError(f"{tuned}: is equal to {base}; there is nothing to extract.")
            done = {row.name for row in report.layers}
            kept = {j.memory_name for j in jobs if j.name in {row.name for row in report.saved}}
            writer.finish(
                base=place.model.path,
                revision=place.model.revision,
                is_causal=modules.is_causal,
                turned=_orientation([job for job in factored if job.name in done]),
                tied=[twin.rpartition(".")[0] for twin, name in twins.items() if name in kept],
                everything=list(modules.kinds),
            )
        refuse_unloadable_adapter(work, before.folder)
        report.sort()
        report.write(work)
    return report


def _plan(
    tuned: str,
    base: str,
    after: Checkpoint,
    before: Checkpoint,
    modules: Modules,
    settings: ExtractSettings,
) -> list[_Job]:
    """Decide what each tensor gets, before any is read."""
    jobs: list[_Job] = []
    names = read_memory_names(before.folder, before.names)
    in_memory = {name: own for own, name in names.stored.items()} if names is not None else {}
    for name in _common_names(tuned, base, after, before, modules):
        one, other = after.info(name), before.info(name)
        if one.shape != other.shape:
            raise MergeError(
                f"{name}: {tuned} is {list(one.shape)} but {base} is {list(other.shape)}; an "
                "adapter cannot change shapes. Models must share an architecture and vocabulary."
            )
        jobs.append(_job(name, in_memory.get(name, name), one, modules, settings))
    _check_names(settings, [job.module for job in jobs])
    if settings.embeddings and (tied := [n for n in modules.tied.values() if n in after]):
        raise MergeError(
            f"{tied[0]}: is input embedding and head at once, and peft would add factors to it "
            "twice when they are merged; store it whole "
            f"(--save-modules {tied[0].removesuffix('.weight')})."
        )
    if not any(job.verdict == "factored" for job in jobs):
        raise ConfigError(
            f"{base}: has no linear weight that --include and --exclude leave; change them."
        )
    return sorted(jobs, key=lambda job: by_layer(job.name))


def _job(
    name: str, memory_name: str, info: TensorInfo, modules: Modules, settings: ExtractSettings
) -> _Job:
    module, _, part = memory_name.rpartition(".")
    kind = modules.kinds.get(module)
    if kind is None:
        why = "no module of the model as transformers builds it"
        return _Job(name, "other", "left out", why, memory_name)
    if any(module == wanted or module.endswith(f".{wanted}") for wanted in settings.save_modules):
        return _Job(name, kind, "saved", "asked for", memory_name)
    is_matrix = part == "weight" and len(info.shape) == 2 and is_float(info.dtype)
    is_wanted = kind in ("linear", "turned") or (kind == "embedding" and settings.embeddings)
    if not (is_matrix and is_wanted):
        words = {"linear": "biases", "turned": "biases", "embedding": "embeddings"}
        why = words.get(kind, "neither linear nor embedding")
        return _Job(name, kind, "left out", why, memory_name)
    if settings.include and not any(re.search(pattern, module) for pattern in settings.include):
        return _Job(name, kind, "left out", "not included", memory_name)
    if any(re.search(pattern, module) for pattern in settings.exclude):
        return _Job(name, kind, "left out", "excluded", memory_name)
    return _Job(name, kind, "factored", "", memory_name)


def _common_names(
    tuned: str, base: str, after: Checkpoint, before: Checkpoint, modules: Modules
) -> Iterator[str]:
    for name in dict.fromkeys((*before.names, *after.names)):
        if name in modules.tied and modules.tied[name] in before:
            continue  # the other one's copy, which loading does not even read
        if name in before and name in after:
            yield name
            continue
        one, other = (tuned, base) if name in after else (base, tuned)
        info = (after if name in after else before).info(name)
        if not is_buffer(name, info.shape):
            raise MergeError(
                f"{name}: {one} has it and {other} has not; models must share an architecture."
            )


def _check_names(settings: ExtractSettings, modules: Sequence[str]) -> None:
    """Refuse names and patterns that match nothing: they are mistyped."""
    known = {name.rpartition(".")[2] for name in modules}
    for wanted in settings.save_modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in modules):
            raise ConfigError(
                f"--save-modules {wanted}: is no module of the model"
                f"{sentence_end(wanted, known)} Known: {', '.join(sorted(known))}."
            )
    for flag, patterns in (("include", settings.include), ("exclude", settings.exclude)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in modules):
                raise ConfigError(
                    f"--{flag} {pattern}: is found in no module's name; such as {modules[0]}."
                )


def _run(
    job: _Job,
    after: Checkpoint,
    before: Checkpoint,
    settings: ExtractSettings,
    writer: AdapterWriter,
    twins: dict[str, str],
    report: AdapterReport,
) -> None:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    stored = after.tensor(job.name)
    delta = _delta(stored, before.tensor(job.name))
    flat = delta.reshape(delta.shape[0], -1) if delta.dim() > 1 else delta.reshape(1, -1)
    norm = frobenius(flat)
    if not norm < float("inf"):
        raise MergeError(
            f"{job.name}: holds NaN or infinity in {after.folder} or {before.folder}; the model is "
            "damaged."
        )
    if norm == 0.0:
        return
    if job.verdict == "factored":
        matrix = delta.T.contiguous() if job.kind in ("turned", "embedding") else delta
        seed = stream_key(settings.seed, job.name, 0)
        fit = fit_dense(matrix, settings.rank, seed=seed, energy=settings.energy, dtype=dtype)
        writer.add_factors(job.memory_name, fit.factors)
        shape = tuple(delta.shape)
        report.layers.append(LayerRow.of(job.name, shape, fit.factors.rank, norm, fit.error))
        return
    length = frobenius(before.tensor(job.name).float().reshape(flat.shape))
    row = OtherRow(job.name, tuple(delta.shape), norm, norm / length if length else None, job.why)
    if job.verdict == "left out":
        report.left_out.append(row)
        return
    report.saved.append(row)
    writer.add_saved(job.memory_name, stored.to(dtype))
    for twin, name in twins.items():
        if name == job.memory_name:
            writer.add_saved(twin, stored.to(dtype), key=PREFIX + twin)


def _delta(after: Tensor, before: Tensor) -> Tensor:
    """`after - before` in new memory, float32; the tensors' own memory is the file."""
    return after.to(torch.float32, copy=True).sub_(before.float())


def _orientation(jobs: Sequence[_Job]) -> bool:
    """Whether linear weights are `[inputs, outputs]`: peft has one setting for all of them."""
    kinds = {job.kind for job in jobs} - {"embedding"}
    if len(kinds) > 1:
        odd = next(job for job in jobs if job.kind == "linear")
        raise MergeError(
            f"{odd.name}: is [outputs, inputs] and others are [inputs, outputs], which one adapter "
            f"cannot say; leave it out (--exclude {odd.module}) or store it whole "
            f"(--save-modules {odd.module})."
        )
    return kinds == {"turned"}
