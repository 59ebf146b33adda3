"""What a plan found: the table and the page take it as it is, and `plan.json` is its dump."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.cost import Bill, FromScratch, Work
from toolkit.plan.devices import PRICES_DATED, Fleet
from toolkit.plan.evidence import Looked
from toolkit.plan.fit import Way
from toolkit.plan.model import MeasuredModel
from toolkit.plan.settings import Setting
from toolkit.plan.surprise import Surprise
from toolkit.plan.token_budget import SourceAmount
from toolkit.plan.verdict import Evidence, PlanVerdict
from toolkit.plan.words import WordFigures
from toolkit.statistics.power import SetPower

FORMAT = 1
"""Of `plan.json`; rises when a key changes its meaning."""

ASSUMPTIONS = (
    f"prices: {PRICES_DATED}",
    "utilization of GPUs: assumed, not measured (--utilization)",
    "FLOPs: 6 for each parameter and token, attention over half of the sequence",
)


@dataclass(frozen=True)
class PlannedModel:
    """The general model; None where its measures are not known.

    Attributes:
        name: public name, or the recipe's.
        parameters: number of all parameters.
        active_parameters: number of those that one token goes through.
        lora_parameters: number of those in the recipe's adapters, where it has some.
        shape: measures of the model.
        is_here: whether its weights are on this machine.
    """

    name: str
    parameters: int | None
    active_parameters: int | None
    lora_parameters: int | None
    shape: ShapeSection | None
    is_here: bool


@dataclass(frozen=True)
class RightTool(PlanVerdict):
    """The first question: is it the right tool.

    Attributes:
        evidence: figures that the verdict stands on.
        bits_per_byte: what the general model took; None where it was not tried.
        words: figures of the tokenizer by role.
        duplicate_fraction: share of the domain's sampled text that repeats other text of it.
    """

    evidence: Evidence
    bits_per_byte: Surprise | None
    words: dict[str, WordFigures]
    duplicate_fraction: float | None


@dataclass(frozen=True)
class PlannedSource(SourceAmount):
    """A source with its amount and what was read of it.

    Attributes:
        documents_read, bytes_read: text that was read, before cleaning.
        read_whole: whether everything was read.
        duplicate_fraction: share of the sampled text that repeats other text of it.
        not_seen_because: why nothing was read, where nothing was.
    """

    documents_read: int
    bytes_read: int
    read_whole: bool
    duplicate_fraction: float | None
    not_seen_because: str


@dataclass(frozen=True)
class MeasuredMachine:
    """What this machine was found to do."""

    memory_bytes: float
    training_tokens_per_second: float | None
    reading_tokens_per_second: float | None
    flops_per_second: float | None
    how: str


@dataclass(frozen=True)
class WayMemory:
    """Memory of one way to train.

    Attributes:
        name: way in words.
        fits: whether it fits the devices that were named.
        fewest_devices: number of devices on which it fits; None where no number does.
        total_bytes: memory of one device at the peak.
        peak_at: moment of the peak, in words.
        parts_bytes: the same memory by component.
    """

    name: str
    fits: bool
    fewest_devices: int | None
    total_bytes: float
    peak_at: str
    parts_bytes: dict[str, float]


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on one kind of devices, by way to train; the recipe's own way is the first."""

    devices: str
    memory_bytes: float
    ways: tuple[WayMemory, ...]


@dataclass(frozen=True)
class PlanResults:
    """All figures of a recipe's plan, in the order of `plan.json`.

    Attributes:
        recipe, description: the recipe's own.
        seconds: how long planning took.
        model: the general model.
        is_it_the_right_tool: verdict with its reasons; None where a finished specialist is named.
        sources: text of each source.
        stages: work of each stage.
        machine: what this machine was found to do.
        devices_named: whether the user named devices; else all known ones are shown.
        memory: memory by kind of devices.
        bills: time and money by kind of devices.
        from_scratch: the work beside the model's first training, where that is known.
        power: what each set will be able to see of a change.
        settings: settings that follow.
        fine_tuning: how much of it, in a sentence.
        assumptions, notes: sentences.
        problems: what would stop the recipe.
        format: version of the keys.
    """

    format: int
    recipe: str
    description: str
    seconds: float
    model: PlannedModel
    is_it_the_right_tool: RightTool | None
    sources: tuple[PlannedSource, ...]
    stages: tuple[Work, ...]
    machine: MeasuredMachine
    devices_named: bool
    memory: tuple[DeviceMemory, ...]
    bills: tuple[Bill, ...]
    from_scratch: FromScratch | None
    power: tuple[SetPower, ...]
    settings: tuple[Setting, ...]
    fine_tuning: str
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The values of `plan.json`."""
        values = asdict(self)
        shape = self.model.shape
        values["model"]["shape"] = shape and shape.model_dump(exclude_none=True)
        values["power"] = [one_set.as_json() for one_set in self.power]
        for setting, row in zip(self.settings, values["settings"], strict=True):
            row["changes"] = setting.changes
        return values


def planned_sources(looked: Looked) -> tuple[PlannedSource, ...]:
    """Sources with their amounts and what was read of them."""
    return tuple(
        PlannedSource(
            **vars(amount),
            documents_read=looked.samples[name].read_documents,
            bytes_read=looked.samples[name].read_bytes,
            read_whole=looked.samples[name].whole,
            duplicate_fraction=looked.samples[name].duplicate_fraction,
            not_seen_because=looked.samples[name].why,
        )
        for name, amount in looked.amounts.items()
    )


def measured_machine(measured: MeasuredModel) -> MeasuredMachine:
    """What the tried model says of this machine."""
    return MeasuredMachine(
        measured.machine.memory_bytes,
        measured.training_tokens_per_second,
        measured.reading_tokens_per_second,
        measured.flops,
        measured.how,
    )


def device_memory(fleet: Fleet, ways: Sequence[Way]) -> DeviceMemory:
    """Memory on one kind of devices."""
    moment_words = {"loss": "the loss", "backward": "backward's end"}
    return DeviceMemory(
        fleet.text,
        fleet.device.memory_bytes,
        tuple(
            WayMemory(
                name=way.name,
                fits=way.fits,
                fewest_devices=way.fewest,
                total_bytes=way.memory.total,
                peak_at=moment_words[way.memory.moment],
                parts_bytes=way.memory.parts(),
            )
            for way in ways
        ),
    )
