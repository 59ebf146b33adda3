"""What each tensor of a tuned model gets in an adapter, decided before any is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from toolkit.adapter.folder import FactorSettings
from toolkit.adapter.modules import Kind, Modules
from toolkit.adapter.report import by_layer
from toolkit.checkpoint.loadable_adapter import Placement, place_adapter
from toolkit.checkpoint.memory_tensors import MemoryTensors
from toolkit.checkpoint.read import is_float
from toolkit.checkpoint.tensor_names import is_buffer
from toolkit.errors import ConfigError, MergeError, sentence_end


@dataclass(frozen=True)
class ExtractSettings(FactorSettings):
    """What is extracted, and how it is written.

    Attributes:
        rank: most columns of the factors, at least 1.
        include: regular expressions, searched in the names of modules; all linear ones by default.
        exclude: the same, for modules that are left out.
        save_modules: names of modules, or their last parts, that are stored whole.
        embeddings: give embeddings factors too.
    """

    rank: int = 16
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    save_modules: tuple[str, ...] = ()
    embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"{pattern!r}: is no regular expression ({error}); --include and --exclude "
                    "take those, such as 'self_attn' or 'layers\\.[0-9]\\.'."
                ) from None


@dataclass(frozen=True)
class ExtractJob:
    """One tensor of the models in memory.

    Attributes:
        name: in memory.
        shown_as: its name in the files, where they store it as it is.
        kind: of its module; `stack` for the matrices of all experts in one parameter.
        verdict: what it gets.
        why: it gets no factors, where it gets none.
        is_parameter: whether peft reaches it by its own name, not by its module's.
    """

    name: str
    shown_as: str
    kind: Kind | Literal["stack"]
    verdict: Literal["factored", "saved", "left out"]
    why: str = ""
    is_parameter: bool = False

    @property
    def module(self) -> str:
        """The module's name, by which peft knows it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ExtractPlan:
    """All tensors, in order of layers, and how peft adapts them."""

    jobs: Sequence[ExtractJob]
    placement: Placement


def plan_extract(
    references: tuple[str, str],
    after: MemoryTensors,
    before: MemoryTensors,
    modules: Modules,
    settings: ExtractSettings,
    folder: Path,
) -> ExtractPlan:
    """Decide what each tensor gets, before any is read.

    Args:
        references: of the tuned model and its base, for messages.
        after: tensors of the tuned model.
        before: tensors of its base.
        modules: of both.
        settings: what is extracted.
        folder: of the base.

    Raises:
        ConfigError: patterns or modules match nothing, or leave nothing.
        MergeError: the models differ in names or shapes.
    """
    jobs: list[ExtractJob] = []
    for tensor_name in _common_names(references, after, before, modules):
        tuned_shape, base_shape = after.shapes[tensor_name], before.shapes[tensor_name]
        if tuned_shape != base_shape:
            raise MergeError(
                f"{before.stored_name(tensor_name)}: {references[0]} is {list(tuned_shape)} but "
                f"{references[1]} is {list(base_shape)}; an adapter cannot change shapes. Models "
                "must share an architecture and vocabulary."
            )
        jobs.append(_decide(tensor_name, after, before, modules, settings))
    _check_names(settings, jobs)
    if settings.embeddings and (tied := [n for n in modules.tied.values() if n in after.shapes]):
        raise MergeError(
            f"{tied[0]}: is input embedding and head at once, and peft would add factors to it "
            "twice when they are merged; store it whole "
            f"(--save-modules {tied[0].removesuffix('.weight')})."
        )
    if not any(job.verdict == "factored" for job in jobs):
        raise ConfigError(
            f"{references[1]}: has no linear weight that --include and --exclude leave; change "
            "them."
        )
    factored_jobs = [job for job in jobs if job.verdict == "factored"]
    linear_modules = [job.module for job in factored_jobs if job.kind in ("linear", "turned")]
    stack_names = [job.name for job in factored_jobs if job.kind == "stack"]
    # peft is asked last, of what is wanted alone: for each question the model is built anew.
    placement = place_adapter(folder, linear_modules, stack_names)
    jobs = [_place(job, placement, modules) for job in jobs]
    return ExtractPlan(sorted(jobs, key=lambda job: by_layer(job.name)), placement)


def _place(job: ExtractJob, placement: Placement, modules: Modules) -> ExtractJob:
    if job.verdict != "factored" or job.kind == "embedding":
        return job
    if (job.name if job.kind == "stack" else job.module) in placement.refused:
        why = "peft puts no LoRA on it, or does not load it"
        return replace(job, verdict="left out", why=why)
    if job.kind != "stack" and job.module in modules.bypassed:
        why = "the model's code reads its weight, past what peft would add"
        return replace(job, verdict="left out", why=why)
    return replace(job, is_parameter=job.kind == "stack" or job.module in placement.moved)


def _decide(
    name: str,
    after: MemoryTensors,
    before: MemoryTensors,
    modules: Modules,
    settings: ExtractSettings,
) -> ExtractJob:
    shown_name = before.stored_name(name)
    module, _, last_part = name.rpartition(".")
    kind = modules.kinds.get(module)
    if kind is None:
        why = "no module of the model as transformers builds it"
        return ExtractJob(name, shown_name, "other", "left out", why)
    # What is asked for by name goes before what a tensor is; patterns come last, so that the report
    # says of a norm that it is one and not that it was not included.
    if any(module == wanted or module.endswith(f".{wanted}") for wanted in settings.save_modules):
        return ExtractJob(name, shown_name, kind, "saved", "asked for")
    if name in modules.stacks:
        decided_job, searched_name = ExtractJob(name, shown_name, "stack", "factored"), name
    else:
        decided_job, searched_name = ExtractJob(name, shown_name, kind, "factored"), module
        is_matrix = last_part == "weight" and len(after.shapes[name]) == 2
        is_wanted = kind in ("linear", "turned") or (kind == "embedding" and settings.embeddings)
        if not (is_matrix and is_wanted):
            reason_by_kind = {"linear": "biases", "turned": "biases", "embedding": "embeddings"}
            why = reason_by_kind.get(kind, "neither linear nor embedding")
            return replace(decided_job, verdict="left out", why=why)
    if not is_float(after.info(name).dtype):
        return replace(decided_job, verdict="left out", why="whole numbers")
    if decided_job.kind != "embedding" and name in modules.tied.values():
        # peft changes a module, and the others that share its weight would compute as before.
        return replace(decided_job, verdict="left out", why="several modules share it")
    if settings.include and not any(
        re.search(pattern, searched_name) for pattern in settings.include
    ):
        return replace(decided_job, verdict="left out", why="not included")
    if any(re.search(pattern, searched_name) for pattern in settings.exclude):
        return replace(decided_job, verdict="left out", why="excluded")
    return decided_job


def _common_names(
    references: tuple[str, str], after: MemoryTensors, before: MemoryTensors, modules: Modules
) -> list[str]:
    common_names: list[str] = []
    for tensor_name in dict.fromkeys((*before.shapes, *after.shapes)):
        if tensor_name in modules.tied and modules.tied[tensor_name] in before.shapes:
            continue  # the other one's copy, which loading does not even read
        if tensor_name in before.shapes and tensor_name in after.shapes:
            common_names.append(tensor_name)
            continue
        having, lacking = references if tensor_name in after.shapes else references[::-1]
        owner_tensors = after if tensor_name in after.shapes else before
        if not is_buffer(tensor_name, owner_tensors.shapes[tensor_name]):
            raise MergeError(
                f"{owner_tensors.stored_name(tensor_name)}: {having} has it and {lacking} has not; "
                "models must share an architecture."
            )
    return common_names


def _check_names(settings: ExtractSettings, jobs: Sequence[ExtractJob]) -> None:
    """Refuse names and patterns that match nothing: they are mistyped."""
    module_names = [job.module for job in jobs]
    last_names = {name.rpartition(".")[2] for name in module_names}
    for wanted in settings.save_modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in module_names):
            raise ConfigError(
                f"--save-modules {wanted}: is no module of the model"
                f"{sentence_end(wanted, last_names)} Known: {', '.join(sorted(last_names))}."
            )
    searched_names = [job.name if job.kind == "stack" else job.module for job in jobs]
    for flag_name, patterns in (("include", settings.include), ("exclude", settings.exclude)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in searched_names):
                raise ConfigError(
                    f"--{flag_name} {pattern}: is found in no module's name; such as "
                    f"{module_names[0]}."
                )
