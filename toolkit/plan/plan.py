"""`toolkit plan`: three questions before any money is spent, answered in under a minute.

Is continued pre-training the right tool, what will it take, and which settings follow. Nothing is
trained, and of the network no more is read than a look needs: never a large model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.checkpoint.config import ShapeSection
from toolkit.data.config import DataSection
from toolkit.data.encode import find_separator
from toolkit.errors import ConfigError, DataError
from toolkit.pipeline.run import Run
from toolkit.pipeline.set_power import SCATTER_WORDS
from toolkit.plan.cost import find_origin, stage_work
from toolkit.plan.devices import CPU, DEVICES, Device, Fleet, parse_fleet
from toolkit.plan.evidence import Looked, evidence_of, look
from toolkit.plan.fit import Way, ways_to_train
from toolkit.plan.model import Located, MeasuredModel, locate_model, measure_model
from toolkit.plan.outcome import (
    ASSUMPTIONS,
    FORMAT,
    bill_values,
    memory_values,
    scratch_values,
    setting_values,
    source_values,
    stage_values,
    verdict_values,
)
from toolkit.plan.power import plan_claims, plan_power
from toolkit.plan.sample import Sample, sample_source
from toolkit.plan.settings import Setting, choose_settings, recipe_text, sft_advice
from toolkit.plan.shape import count_parameters, lora_parameters
from toolkit.plan.speed import this_machine
from toolkit.plan.token_budget import StageAmount, stage_amounts
from toolkit.plan.verdict import judge
from toolkit.plan.words import FolderTokenizer
from toolkit.plan.work import idle_devices, misfits, training_work
from toolkit.progress import say
from toolkit.recipe.checks import recipe_faults, token_faults
from toolkit.recipe.load import load_recipe
from toolkit.stage import write_atomically, write_json

READ_SECONDS, SFT_READ_SECONDS = 10.0, 3.0
"""For the documents of all sources together, and for those of fine-tuning."""


@dataclass(frozen=True)
class PlanRequest:
    """What the command line says.

    Attributes:
        fleets: devices by name, such as `8xH100`.
        devices: the table, with the user's prices.
        utilization: of GPUs, in place of the table's.
        pretraining_tokens: of the general model, where the table does not know them.
        measure: score the model and time this machine.
    """

    fleets: tuple[str, ...] = ()
    devices: dict[str, Device] = field(default_factory=lambda: dict(DEVICES))
    utilization: float | None = None
    pretraining_tokens: float | None = None
    measure: bool = True


def make_plan(run: Run, wanted: PlanRequest) -> dict[str, Any]:
    """All figures of a recipe's plan, as plain values.

    What is wrong with the recipe and can be known now stands under `problems`.

    Raises:
        ToolkitError: a local model cannot be read, or a device is unknown.
    """
    began = time.monotonic()
    recipe = run.recipe
    known = _with_utilization(wanted)
    if wanted.pretraining_tokens is not None and not 0.0 < wanted.pretraining_tokens < math.inf:
        raise ConfigError(
            f"--pretrained-on: must be tokens, above 0 (got {wanted.pretraining_tokens:g})."
        )
    named = [parse_fleet(text, {**known, CPU: this_machine(None)}) for text in wanted.fleets]
    located = locate_model(run)
    problems, notes = [], [located.why] if located.why else []
    tokenizer = FolderTokenizer(located.tokenizer) if located.tokenizer is not None else None
    problems += _late_faults(run, located)
    separator = 0
    if tokenizer is not None:
        try:
            separator = find_separator(recipe.data.end_of_document, tokenizer.text)
            leading = tokenizer.text.leading_token
            separator = separator if leading is None else leading  # pieces begin with it
        except DataError as error:
            problems += [] if problems else [str(error)]
    say("plan: looking at the documents")
    samples, faults = _samples(recipe.data, recipe.seed, READ_SECONDS)
    problems += faults
    looked = look(recipe.data, samples, tokenizer)
    talks = None
    if recipe.sft is not None:
        samples, faults = _samples(recipe.sft.data, recipe.seed, SFT_READ_SECONDS)
        problems += [f"sft: {fault}" for fault in faults]
        talks = look(recipe.sft.data, samples, tokenizer)
    notes += [f"{name}: {s.why}; not looked at" for name, s in looked.samples.items() if s.why]
    measured = MeasuredModel()
    if wanted.measure and located.weights is not None and tokenizer is not None:
        say("plan: the general model reads some of them, and a few steps are timed")
        measured = measure_model(located, looked, tokenizer, separator, recipe)
    elif wanted.measure and located.shape is not None:
        measured = measure_model(located, looked, None, separator, recipe)
    notes += measured.notes

    shape = located.shape
    try:
        amounts = stage_amounts(recipe.data, recipe.train, looked.amounts)
    except ConfigError as error:
        problems.append(str(error))
        amounts = []
    longest = max([recipe.data.sequence_length, *(a.sequence_length for a in amounts)])
    work = training_work(recipe, amounts, looked, shape, measured)
    if talks is not None and shape is not None and recipe.sft is not None:
        try:
            chats = stage_amounts(recipe.sft.data, recipe.sft.train, talks.amounts)
        except ConfigError as error:
            problems.append(f"sft.{error}")
            chats = []
        speed = measured.training_tokens_per_second
        work += [
            stage_work(a, shape, recipe.sft.train, name="sft", tokens_per_second=speed)
            for a in chats
        ]
    cpu = measured.machine
    fleets = [Fleet(1, cpu) if f.device.name == CPU else f for f in named]
    notes += idle_devices(recipe, fleets)
    memory: list[tuple[Fleet, list[Way]]] = []
    if shape is not None:
        chosen = fleets or [
            Fleet(1, cpu),
            *(_enough(shape, run, longest, d) for d in known.values()),
        ]
        kind = located.model_type
        memory = [(f, ways_to_train(shape, recipe.train, longest, f, kind)) for f in chosen]
    name = recipe.model.name or recipe.model.hub or run.name
    if shape is not None and fleets:
        others = sorted(known.values(), key=lambda d: d.memory_bytes)
        problems += misfits(recipe, shape, fleets, others, name, located.model_type)
    parameters = count_parameters(shape) if shape is not None else None
    evidence = evidence_of(
        looked,
        measured.surprise,
        trained_parameters=parameters.active if parameters is not None else None,
        num_talks=_num_talks(talks),
    )
    verdict = judge(evidence)
    origin = find_origin(name)
    origin_tokens = wanted.pretraining_tokens or (origin.tokens if origin is not None else None)
    settings = _settings(run, looked, amounts, verdict.shift, evidence.pieces_ratio,
                         parameters.total if parameters is not None else None, origin_tokens,
                         [ways for _, ways in memory] if fleets else [])  # fmt: skip
    cpt = sum(a.tokens for a in amounts) or None
    power, unseen = plan_power(
        recipe.data,
        recipe.evaluate,
        looked,
        tolerance=recipe.select.general_tolerance,
        tolerances=recipe.select.tolerances,
        confidence=recipe.select.confidence,
    )
    notes += [*unseen, *plan_claims(looked)]
    return {
        "format": FORMAT,
        "recipe": run.name,
        "description": recipe.description,
        "seconds": round(time.monotonic() - began, 1),
        "model": {
            "name": name,
            "parameters": parameters.total if parameters is not None else None,
            "active_parameters": parameters.active if parameters is not None else None,
            "lora_parameters": lora_parameters(shape, recipe.train.lora.rank)
            if shape is not None and recipe.train.lora is not None
            else None,
            "shape": shape.model_dump(exclude_none=True) if shape is not None else None,
            "is_here": located.weights is not None,
        },
        "is_it_the_right_tool": verdict_values(verdict, evidence, measured.surprise, looked),
        "sources": source_values(looked),
        "stages": stage_values(work),
        "machine": measured.values(),
        "devices_named": bool(fleets),
        "memory": [memory_values(fleet, ways) for fleet, ways in memory],
        "bills": [bill_values(work, f, ways[0].fits) for f, ways in memory] if work else [],
        "from_scratch": scratch_values(origin, work, shape, wanted.pretraining_tokens),
        "power": [one.as_json() for one in power],
        "settings": setting_values(settings),
        "fine_tuning": sft_advice(cpt),
        "assumptions": [*ASSUMPTIONS, SCATTER_WORDS] if power else list(ASSUMPTIONS),
        "notes": notes,
        "problems": problems,
    }


def write_plan(run: Run, plan: dict[str, Any]) -> Path:
    """Write `plan.json` and `plan.html` into the recipe's folder under `runs/`."""
    from toolkit.plan.page import write_plan_page

    run.root.mkdir(parents=True, exist_ok=True)
    write_json(run.root / "plan.json", plan)
    write_plan_page(run.root / "plan.html", plan)
    return run.root / "plan.json"


def check_write(path: Path) -> None:
    """Refuse a place for a recipe, before anything is measured.

    Raises:
        ConfigError: there is something, or its name is not that of a recipe.
    """
    if path.exists():
        raise ConfigError(f"--write {path}: is there already; give another name or remove it.")
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--write {path}: must end in .yaml.")


def write_recipe(run: Run, plan: dict[str, Any], path: Path) -> None:
    """Write a ready recipe with the plan's settings.

    Raises:
        ConfigError: there is something at `path`, or what would be written is no valid recipe.
    """
    check_write(path)
    assert run.path is not None  # noqa: S101  (a run that was opened by name has one)
    settings = [Setting(s["key"], s["value"], s["now"], s["why"]) for s in plan["settings"]]
    opening = [
        f"Made by `toolkit plan {run.name}` from {run.path.name}; settings with a reason above "
        "them follow from what was measured there.",
        f"Verdict: {plan['is_it_the_right_tool']['tool']}. Fine-tuning: {plan['fine_tuning']}.",
    ]
    values = run.recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)
    text = recipe_text(values, settings, opening)
    trial = path.with_name(f".{path.stem}.trial.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.write_text(text, encoding="utf-8")
        load_recipe(trial)
    finally:
        trial.unlink(missing_ok=True)
    with write_atomically(path) as file:
        file.write(text)


def _with_utilization(wanted: PlanRequest) -> dict[str, Device]:
    if wanted.utilization is None:
        return dict(wanted.devices)
    if not 0.0 < wanted.utilization <= 1.0:
        raise ConfigError(
            f"--utilization: must be above 0 and at most 1 (got {wanted.utilization:g})."
        )
    return {n: replace(d, utilization=wanted.utilization) for n, d in wanted.devices.items()}


def _enough(shape: ShapeSection, run: Run, longest: int, device: Device) -> Fleet:
    """As many devices as the recipe's own way needs, one where no number is enough."""
    ways = ways_to_train(shape, run.recipe.train, longest, Fleet(1, device))
    return Fleet(ways[0].fewest or 1, device)


def _samples(
    data: DataSection, seed: int, all_seconds: float
) -> tuple[dict[str, Sample], list[str]]:
    """A look at every source, and what is wrong with those that cannot be read."""
    seconds = all_seconds / len(data.sources)
    samples: dict[str, Sample] = {}
    faults: list[str] = []
    for name, source in data.sources.items():
        try:
            samples[name] = sample_source(name, source, data.cleaning, seed=seed, seconds=seconds)
        except DataError as error:
            faults.append(str(error))
            samples[name] = Sample(name, source.role, why="it cannot be read, see below")
    return samples, faults


def _num_talks(talks: Looked | None) -> int:
    """Conversations to fine-tune on."""
    if talks is None:
        return 0
    seen = (s for s in talks.samples.values() if s.role == "domain")
    return sum(round(s.train_documents / (s.seen_fraction or 1.0)) for s in seen)


def _late_faults(run: Run, located: Located) -> list[str]:
    """What does not fit in the recipe and could not be seen when it was read: the model was not
    here then, or nothing told its measures."""
    recipe = run.recipe
    if located.shape is not None:
        model = recipe.model.model_copy(update={"shape": located.shape})
        recipe = recipe.model_copy(update={"model": model})
    faults = recipe_faults(recipe)
    if located.tokenizer is not None:
        faults += token_faults(recipe, located.tokenizer)
    return list(dict.fromkeys(faults))


def _settings(
    run: Run,
    looked: Looked,
    amounts: Sequence[StageAmount],
    shift: Any,
    pieces_ratio: float | None,
    parameters: float | None,
    origin_tokens: float | None,
    ways: Sequence[Sequence[Way]],
) -> list[Setting]:
    recipe, train = run.recipe, run.recipe.train
    now: dict[str, Any] = {
        "train.schedule.kind": train.schedule.kind,
        "train.schedule.peak_lr": train.schedule.peak_lr,
        "train.schedule.warmup_fraction": train.schedule.warmup_fraction,
        "train.global_batch_size": train.global_batch_size,
        "train.micro_batch_size": train.micro_batch_size,
        "train.lora": train.lora.model_dump() if train.lora is not None else None,
        "tokenizer": recipe.tokenizer.model_dump() if recipe.tokenizer is not None else None,
    }
    if not recipe.data.stages:  # a curriculum has shares and amounts of its own
        now["data.replay_fraction"] = recipe.data.replay_fraction
        now["train.epochs"] = train.epochs
    lora_only = (
        bool(ways)
        and train.lora is None
        and not any(way.fits for each in ways for way in each if way.section.lora is None)
        and any(way.fits for each in ways for way in each if way.section.lora is not None)
    )
    return choose_settings(
        shift=shift,
        domain_tokens=looked.domain_tokens,
        parameters=parameters,
        steps=sum(a.steps for a in amounts) // train.epochs if amounts else None,
        tokens=sum(a.tokens for a in amounts) / train.epochs if amounts else None,
        origin_tokens=origin_tokens,
        lora_fits_only=lora_only,
        pieces_ratio=pieces_ratio,
        now=now,
    )


def finish(plan: dict[str, Any]) -> None:
    """End with what is wrong with the recipe, if anything is.

    Raises:
        ConfigError: with all problems.
    """
    if plan["problems"]:
        lines = "\n  ".join(plan["problems"])
        raise ConfigError(f"the plan of {plan['recipe']} found what would stop it:\n  {lines}")
