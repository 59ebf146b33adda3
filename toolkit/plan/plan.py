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

from toolkit.checkpoint.config import ShapeSection
from toolkit.data.config import DataSection
from toolkit.data.encode import find_separator
from toolkit.errors import ConfigError, DataError
from toolkit.pipeline.run import Run
from toolkit.pipeline.set_power import SCATTER_WORDS
from toolkit.plan.cost import (
    Origin,
    Work,
    bill,
    compare_from_scratch,
    find_origin,
    stage_work,
    training_work,
)
from toolkit.plan.devices import CPU, DEVICES, Device, Fleet, parse_fleet
from toolkit.plan.evidence import Looked, evidence_of, look
from toolkit.plan.fit import Way, idle_devices, misfits, ways_to_train
from toolkit.plan.model import Located, MeasuredModel, locate_model, measure_model
from toolkit.plan.power import plan_claims, plan_power
from toolkit.plan.results import (
    ASSUMPTIONS,
    FORMAT,
    PlannedModel,
    PlanResults,
    RightTool,
    device_memory,
    measured_machine,
    planned_sources,
)
from toolkit.plan.sample import Sample, sample_source
from toolkit.plan.settings import (
    Setting,
    SettingInputs,
    choose_settings,
    current_settings,
    sft_advice,
)
from toolkit.plan.shape import count_parameters, lora_parameters
from toolkit.plan.speed import this_machine
from toolkit.plan.token_budget import StageAmount, stage_amounts
from toolkit.plan.verdict import judge
from toolkit.plan.words import FolderTokenizer
from toolkit.progress import say
from toolkit.recipe.checks import recipe_faults, token_faults
from toolkit.recipe.schema import Recipe
from toolkit.section import replace_values
from toolkit.stage import write_json
from toolkit.tokenizer_files import has_chat_template

_CHARACTERS_PER_TOKEN = 4
"""Of English, about: what a writer reads is estimated by it."""

_INSTRUCTION_TOKENS = 120
"""Of what a writer is told beside each passage."""


READ_SECONDS, SFT_READ_SECONDS = 10.0, 3.0
"""For the documents of all sources together, and for those of fine-tuning."""


@dataclass(frozen=True)
class PlanRequest:
    """What the command line says.

    Attributes:
        fleets: devices by name, such as `8xH100`.
        devices: table of known devices, with the user's prices.
        utilization: share of a GPU's peak, in place of the table's.
        pretraining_tokens: tokens of the general model's first training, where the table does not
            know them.
        measure: score the model and time this machine.
    """

    fleets: tuple[str, ...] = ()
    devices: dict[str, Device] = field(default_factory=lambda: dict(DEVICES))
    utilization: float | None = None
    pretraining_tokens: float | None = None
    measure: bool = True


@dataclass(frozen=True)
class _Documents:
    """What the documents and the tokenizer say.

    Attributes:
        looked: text for continued pre-training and its sets.
        conversations: text for fine-tuning, where the recipe has some.
        tokenizer: the model's own; None where it is not here.
        separator: token that documents begin with.
        problems: what cannot be read, or does not fit in the recipe.
    """

    looked: Looked
    conversations: Looked | None
    tokenizer: FolderTokenizer | None
    separator: int
    problems: list[str]


@dataclass(frozen=True)
class _Training:
    """What training takes.

    Attributes:
        amounts: tokens and steps of each stage of continued pre-training.
        work: the same with fine-tuning and the search, as operations and seconds.
        memory: ways to train by kind of devices, the recipe's own way first.
        problems: what is too long for the text, or too large for the devices.
    """

    amounts: list[StageAmount]
    work: list[Work]
    memory: list[tuple[Fleet, list[Way]]]
    problems: list[str]


def make_plan(run: Run, request: PlanRequest) -> PlanResults:
    """All figures of a recipe's plan.

    What is wrong with the recipe and can be known now stands under `problems`.

    Raises:
        ToolkitError: a local model cannot be read, or a device is unknown.
    """
    began = time.monotonic()
    recipe = run.recipe
    devices = _check_devices(request)
    named_fleets = [parse_fleet(t, {**devices, CPU: this_machine(None)}) for t in request.fleets]
    located = locate_model(run)
    documents = _look_at_documents(run, located)
    looked = documents.looked
    measured = _measure(run, request, located, documents)
    # The CPU was not timed yet when the devices were named.
    fleets = [Fleet(1, measured.machine) if f.device.name == CPU else f for f in named_fleets]
    training = _plan_training(run, located, documents, measured, fleets, devices)
    work, declared_tokens = training.work, request.pretraining_tokens
    origin = find_origin(_model_name(run))
    right_tool: RightTool | None = None
    settings: list[Setting] = []
    if recipe.trains:
        right_tool = _judge_tool(located, documents, measured)
        settings = _choose_settings(
            run, request, located, looked, training, right_tool, origin, fleets
        )
    power, unseen = plan_power(recipe.data, recipe.evaluate, recipe.select, looked)
    all_tokens = sum(amount.tokens for amount in training.amounts)
    assumptions = ASSUMPTIONS if recipe.trains else ()
    notes = [*measured.notes, *idle_devices(recipe, fleets), *unseen, *plan_claims(looked)]
    notes += writing_costs(recipe)
    return PlanResults(
        format=FORMAT,
        recipe=run.name,
        description=recipe.description,
        seconds=round(time.monotonic() - began, 1),
        model=_planned_model(run, located),
        is_it_the_right_tool=right_tool,
        sources=planned_sources(looked),
        stages=tuple(work),
        machine=measured_machine(measured),
        devices_named=bool(fleets),
        memory=tuple(device_memory(fleet, ways) for fleet, ways in training.memory),
        bills=tuple(bill(work, f, fits=ways[0].fits) for f, ways in training.memory if work),
        from_scratch=compare_from_scratch(origin, work, located.shape, declared_tokens)
        if recipe.trains
        else None,
        power=tuple(power),
        settings=tuple(settings),
        fine_tuning=sft_advice(all_tokens or None) if recipe.trains else "",
        assumptions=(*assumptions, SCATTER_WORDS) if power else assumptions,
        notes=(*_unseen_notes(located, looked), *notes),
        problems=(*documents.problems, *training.problems),
    )


def writing_costs(recipe: Recipe) -> list[str]:
    """What a model that writes questions or texts is asked at most, a sentence for each."""
    questions, writing = recipe.questions, recipe.writing
    asked = []
    if questions.writer is not None:
        # Passages of two sets, each asked about once.
        asked.append(("questions", questions.writer, 2, questions.passage_characters))
    if writing.writer is not None:
        num_kinds = len(writing.asked_for)
        asked.append(("texts", writing.writer, num_kinds, writing.asked_characters))
    sentences = []
    for what, writer, times, characters in asked:
        num_answers = writer.num_passages * times
        read_tokens = num_answers * (characters // _CHARACTERS_PER_TOKEN + _INSTRUCTION_TOKENS)
        written_tokens = num_answers * writer.max_new_tokens
        sentences.append(
            f"{writer.name} writes {what}: up to {num_answers:,} answers, for which it reads about "
            f"{read_tokens:,} tokens and writes at most {written_tokens:,}; what that costs is its "
            "server's to say"
        )
    return sentences


def _unseen_notes(located: Located, looked: Looked) -> list[str]:
    """What of the model and the documents could not be seen, and why."""
    model_notes = [located.why] if located.why else []
    samples = looked.samples.items()
    return model_notes + [f"{name}: {s.why}; not looked at" for name, s in samples if s.why]


def _check_devices(request: PlanRequest) -> dict[str, Device]:
    """The table of devices under the flags.

    Raises:
        ConfigError: a flag is out of range.
    """
    tokens, utilization = request.pretraining_tokens, request.utilization
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise ConfigError(f"--utilization: must be above 0 and at most 1 (got {utilization:g}).")
    if tokens is not None and not 0.0 < tokens < math.inf:
        raise ConfigError(f"--pretrained-on: must be tokens, above 0 (got {tokens:g}).")
    if utilization is None:
        return dict(request.devices)
    return {n: replace(d, utilization=utilization) for n, d in request.devices.items()}


def _model_name(run: Run) -> str:
    return run.recipe.model.name or run.recipe.model.hub or run.name


def _planned_model(run: Run, located: Located) -> PlannedModel:
    shape, lora_section = located.shape, run.recipe.train.lora
    parameters = count_parameters(shape) if shape is not None else None
    return PlannedModel(
        name=_model_name(run),
        parameters=parameters.total if parameters is not None else None,
        active_parameters=parameters.active if parameters is not None else None,
        lora_parameters=lora_parameters(shape, lora_section.rank)
        if shape and lora_section
        else None,
        shape=shape,
        is_here=located.weights is not None,
    )


def _look_at_documents(run: Run, located: Located) -> _Documents:
    """Read samples of all sources, and what the tokenizer makes of them."""
    recipe = run.recipe
    tokenizer = FolderTokenizer(located.tokenizer) if located.tokenizer is not None else None
    problems = _late_faults(run, located)
    separator = 0
    if tokenizer is not None:
        try:
            separator = find_separator(recipe.data.end_of_document, tokenizer.text)
            leading_token = tokenizer.text.leading_token
            separator = (
                separator if leading_token is None else leading_token
            )  # pieces begin with it
        except DataError as error:
            problems = problems or [str(error)]  # else the faults say it at its key
    say("plan: looking at the documents")
    samples, faults = _sample_sources(recipe.data, recipe.seed, READ_SECONDS)
    looked = look(recipe.data, samples, tokenizer)
    conversations = None
    if recipe.sft is not None:
        samples, sft_faults = _sample_sources(recipe.sft.data, recipe.seed, SFT_READ_SECONDS)
        faults += [f"sft: {fault}" for fault in sft_faults]
        conversations = look(recipe.sft.data, samples, tokenizer)
    return _Documents(looked, conversations, tokenizer, separator, problems + faults)


def _sample_sources(
    data: DataSection, seed: int, all_seconds: float
) -> tuple[dict[str, Sample], list[str]]:
    """A look at every source, and what is wrong with those that cannot be read."""
    seconds_per_source = all_seconds / len(data.sources)
    samples: dict[str, Sample] = {}
    faults: list[str] = []
    for name, source in data.sources.items():
        try:
            samples[name] = sample_source(
                name, source, data.cleaning, seed=seed, seconds=seconds_per_source
            )
        except DataError as error:
            faults.append(str(error))
            samples[name] = Sample(name, source.role, why="it cannot be read, see below")
    return samples, faults


def _late_faults(run: Run, located: Located) -> list[str]:
    """What does not fit in the recipe and could not be seen when it was read: the model was not
    here then, or nothing told its measures."""
    recipe = run.recipe
    if located.shape is not None:
        model = replace_values(recipe.model, shape=located.shape)
        recipe = replace_values(recipe, model=model)
    # Asked again with the measures that are known now.
    faults = recipe_faults(recipe)
    if located.tokenizer is not None:
        faults += token_faults(recipe, located.tokenizer)
    return list(dict.fromkeys(map(str, faults)))


def _measure(
    run: Run, request: PlanRequest, located: Located, documents: _Documents
) -> MeasuredModel:
    can_read = located.weights is not None and documents.tokenizer is not None
    if not request.measure or not (can_read or located.shape is not None):
        return MeasuredModel()
    if can_read:
        say("plan: the general model reads some of them, and a few steps are timed")
    tokenizer = documents.tokenizer if can_read else None
    return measure_model(located, documents.looked, tokenizer, documents.separator, run.recipe)


def _plan_training(
    run: Run,
    located: Located,
    documents: _Documents,
    measured: MeasuredModel,
    fleets: Sequence[Fleet],
    devices: dict[str, Device],
) -> _Training:
    recipe, shape = run.recipe, located.shape
    problems: list[str] = []
    amounts: list[StageAmount] = []
    try:
        if recipe.trains:
            amounts = stage_amounts(recipe.data, recipe.train, documents.looked.amounts)
    except ConfigError as error:
        problems.append(str(error))
    work = training_work(recipe, amounts, documents.looked, shape, measured)
    if documents.conversations is not None and shape is not None and recipe.sft is not None:
        try:
            sft_amounts = stage_amounts(
                recipe.sft.data, recipe.sft.train, documents.conversations.amounts
            )
        except ConfigError as error:
            problems.append(f"sft.{error}")
            sft_amounts = []
        tokens_per_second = measured.training_tokens_per_second
        work += [
            stage_work(
                amount, shape, recipe.sft.train, name="sft", tokens_per_second=tokens_per_second
            )
            for amount in sft_amounts
        ]
    if shape is None or not recipe.trains:
        return _Training(amounts, work, [], problems)
    longest_block = max([recipe.data.sequence_length, *(a.sequence_length for a in amounts)])
    shown_fleets = fleets or [
        Fleet(1, measured.machine),
        *(_enough_devices(shape, run, longest_block, device) for device in devices.values()),
    ]
    ways_by_fleet = [
        (fleet, ways_to_train(shape, recipe.train, longest_block, fleet, located.model_type))
        for fleet in shown_fleets
    ]
    by_memory = sorted(devices.values(), key=lambda device: device.memory_bytes)
    problems += misfits(recipe, shape, fleets, by_memory, _model_name(run), located.model_type)
    return _Training(amounts, work, ways_by_fleet, problems)


def _enough_devices(shape: ShapeSection, run: Run, longest: int, device: Device) -> Fleet:
    """As many devices as the recipe's own way needs, one where no number is enough."""
    ways = ways_to_train(shape, run.recipe.train, longest, Fleet(1, device))
    return Fleet(ways[0].fewest or 1, device)


def _judge_tool(located: Located, documents: _Documents, measured: MeasuredModel) -> RightTool:
    looked, shape = documents.looked, located.shape
    evidence = evidence_of(
        looked,
        measured.surprise,
        trained_parameters=count_parameters(shape).active if shape is not None else None,
        num_talks=_count_conversations(documents.conversations),
    )
    return RightTool(
        **vars(judge(evidence)),
        evidence=evidence,
        bits_per_byte=measured.surprise,
        words=looked.words,
        duplicate_fraction=looked.duplicate_fraction,
    )


def _count_conversations(conversations: Looked | None) -> int:
    """Conversations to fine-tune on, estimated from the part that was read."""
    if conversations is None:
        return 0
    domain_samples = (s for s in conversations.samples.values() if s.role == "domain")
    return sum(round(s.train_documents / (s.seen_fraction or 1.0)) for s in domain_samples)


def _choose_settings(
    run: Run,
    request: PlanRequest,
    located: Located,
    looked: Looked,
    training: _Training,
    right_tool: RightTool,
    origin: Origin | None,
    fleets: Sequence[Fleet],
) -> list[Setting]:
    recipe, amounts = run.recipe, training.amounts
    epochs = recipe.train.epochs
    # Without named devices nothing is said to be too small.
    ways = [way for _, ways in training.memory for way in ways] if fleets else []
    full_fits = any(way.fits for way in ways if way.section.lora is None)
    lora_fits = any(way.fits for way in ways if way.section.lora is not None)
    shape = located.shape
    return choose_settings(
        SettingInputs(
            shift=right_tool.shift,
            domain_tokens=looked.domain_tokens,
            parameters=count_parameters(shape).total if shape is not None else None,
            steps=sum(a.steps for a in amounts) // epochs if amounts else None,
            tokens=sum(a.tokens for a in amounts) / epochs if amounts else None,
            origin_tokens=request.pretraining_tokens or (origin.tokens if origin else None),
            lora_fits_only=recipe.train.lora is None and lora_fits and not full_fits,
            pieces_ratio=right_tool.evidence.pieces_ratio,
            is_instruct=located.tokenizer is not None and has_chat_template(located.tokenizer),
            now=current_settings(recipe),
            epochs=epochs,
        )
    )


def write_plan(run: Run, plan: PlanResults) -> Path:
    """Write `plan.json` and `plan.html` into the recipe's folder under `runs/`."""
    from toolkit.plan.page import write_plan_page

    run.root.mkdir(parents=True, exist_ok=True)
    write_json(run.root / "plan.json", plan.as_json())
    write_plan_page(run.root / "plan.html", plan)
    return run.root / "plan.json"


def finish(plan: PlanResults) -> None:
    """End with what is wrong with the recipe, if anything is.

    Raises:
        ConfigError: with all problems.
    """
    if plan.problems:
        problem_lines = "\n  ".join(plan.problems)
        raise ConfigError(f"the plan of {plan.recipe} found what would stop it:\n  {problem_lines}")
