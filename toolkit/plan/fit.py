"""Whether training fits some devices; which component is in the way, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.devices import CPU, Device, Fleet
from toolkit.plan.memory import Memory, training_memory
from toolkit.recipe.schema import Recipe
from toolkit.section import replace_values
from toolkit.train.config import LoraSection, TrainSection
from toolkit.train.precision import precision_on

DEFAULT_RANK = 64
USABLE = 0.95
"""Share of a device's memory that is counted on: allocators leave gaps."""

_MOST_DEVICES = 4096


@dataclass(frozen=True)
class Way:
    """One way to train, and what it takes of each device.

    Attributes:
        name: way in words.
        section: the recipe's section, changed to this way.
        memory: memory of one device at the peak.
        fits: whether it fits the devices that were named.
        fewest: number of devices of this kind on which it fits with FSDP; None where no number
            does.
    """

    name: str
    section: TrainSection
    memory: Memory
    fits: bool
    fewest: int | None


def ways_to_train(
    shape: ShapeSection,
    section: TrainSection,
    sequence_length: int,
    fleet: Fleet,
    model_type: str | None = None,
) -> list[Way]:
    """The recipe's own way first, then full training or adapters, then the sparest of each.

    Args:
        shape: measures of the model.
        section: training section of the recipe.
        sequence_length: length of the longest block.
        fleet: devices; several share the parameters (FSDP).
        model_type: kind of model, as in `config.json`, where it is known.
    """
    section = precision_on(section, fleet.device.name)
    lora_section = section.lora or LoraSection(rank=DEFAULT_RANK)
    full_section = replace_values(section, lora=None)
    # What adapters cannot be combined with is taken back, or the section would be refused.
    adapter_section = replace_values(
        section, lora=lora_section, block_expansion=None, trainable=("*",)
    )
    sparing_settings = {"gradient_checkpointing": "full", "micro_batch_size": 1}
    named_sections = [
        ("full", full_section),
        ("full, sparing", replace_values(full_section, **sparing_settings)),
        (f"LoRA r={lora_section.rank}", adapter_section),
        (
            f"LoRA r={lora_section.rank}, sparing",
            replace_values(adapter_section, **sparing_settings),
        ),
    ]
    if section.lora is not None:
        named_sections = [*named_sections[2:], *named_sections[:2]]
    ways: list[Way] = []
    for name, changed_section in named_sections:
        # A recipe may be as sparing as can be already: one column then, and not two alike.
        if changed_section not in [way.section for way in ways]:
            ways.append(
                _measure_way(name, shape, changed_section, sequence_length, fleet, model_type)
            )
    return ways


def memory_on(
    shape: ShapeSection,
    section: TrainSection,
    sequence_length: int,
    fleet: Fleet,
    model_type: str | None = None,
) -> Memory:
    """Memory of one of these devices; several share the parameters."""
    on_cpu = fleet.device.name == CPU
    return training_memory(
        shape,
        section,
        sequence_length,
        processes=fleet.count,
        sharded=fleet.count > 1,
        device="CPU" if on_cpu else "GPU",
        saves=on_cpu,
        model_type=model_type,
    )


def fits(memory: Memory, device: Device) -> bool:
    return memory.total <= USABLE * device.memory_bytes


def _measure_way(
    name: str,
    shape: ShapeSection,
    section: TrainSection,
    sequence_length: int,
    fleet: Fleet,
    model_type: str | None,
) -> Way:
    device = fleet.device

    def memory_of(devices: Fleet) -> Memory:
        return memory_on(shape, section, sequence_length, devices, model_type)

    memory = memory_of(fleet)
    most_devices = 1 if device.name == CPU else _MOST_DEVICES
    # Powers of two: what clouds lend, and a dozen tries at most.
    device_counts = (2**power for power in range(most_devices.bit_length()))
    fewest_devices = next(
        (n for n in device_counts if fits(memory_of(Fleet(n, device)), device)), None
    )
    return Way(name, section, memory, fits(memory, device), fewest_devices)


def misfit(ways: list[Way], fleet: Fleet, others: list[Device], name: str) -> str | None:
    """What is wrong when the recipe's own way does not fit, and what would fit.

    Args:
        ways: what `ways_to_train` gave, the recipe's own first.
        fleet: devices that were named.
        others: other kinds of devices on which, in some number, one of these ways fits.
        name: name of the model.

    Returns:
        One message, or None where it fits.
    """
    recipe_way = ways[0]
    if recipe_way.fits:
        return None
    largest_part = recipe_way.memory.largest
    largest_bytes = getattr(recipe_way.memory, largest_part)
    usable_bytes = USABLE * fleet.device.memory_bytes
    problem = (
        f"train: {name} does not fit {fleet.text}: {recipe_way.name} training needs "
        f"{recipe_way.memory.total / 1e9:,.1f} GB per device and it can give "
        f"{usable_bytes / 1e9:,.1f}; the largest part: {largest_part}, {largest_bytes / 1e9:,.1f} "
        "GB."
    )
    ways_out = [
        f"{way.name}{_changed_keys(way, recipe_way)} on {fleet.text} "
        f"({way.memory.total / 1e9:,.1f} GB)"
        for way in ways[1:]
        if way.fits
    ]
    sharded_way = (
        recipe_way if recipe_way.fewest is not None or ways_out else _first_that_fits(ways)
    )
    if sharded_way is not None and sharded_way.fewest is not None:
        ways_out.append(f"{sharded_way.name} on {sharded_way.fewest}x{fleet.device.name} with FSDP")
    if not ways_out and others:
        ways_out.append(f"a device with more memory ({', '.join(d.name for d in others)})")
    no_way_out = "none of the devices known, however many: " + (
        "shorter blocks (sequence_length) or a smaller model"
        if ways[-1].memory.largest == "activations"
        else "a smaller model"
    )
    return f"{problem} What would fit: {'; '.join(ways_out) or no_way_out}."


def _first_that_fits(ways: Sequence[Way]) -> Way | None:
    return next((way for way in ways if way.fewest is not None), None)


def _changed_keys(way: Way, recipe_way: Way) -> str:
    """The keys of a recipe that a sparing way changes, in brackets."""
    if not way.name.endswith("sparing"):
        return ""
    changes = []
    if recipe_way.section.gradient_checkpointing != "full":
        changes.append("gradient_checkpointing: full")
    if recipe_way.section.micro_batch_size != 1:
        changes.append("micro_batch_size: 1")
    return f" ({', '.join(changes)})" if changes else ""


def misfits(
    recipe: Recipe,
    shape: ShapeSection,
    fleets: Sequence[Fleet],
    known: Sequence[Device],
    name: str,
    model_type: str | None,
) -> list[str]:
    """What does not fit the named devices: training, and fine-tuning with its own micro-batches.

    Args:
        recipe: recipe with the section sft or without.
        shape: measures of the model.
        fleets: devices that were named.
        known: kinds of devices, to suggest larger ones.
        name: name of the model.
        model_type: kind of model, as in `config.json`, where it is known.
    """
    trainings = [("", recipe.data, recipe.train)]
    if recipe.sft is not None:
        trainings.append(("sft.", recipe.sft.data, recipe.sft.train))
    problems = []
    for fleet in fleets:
        for prefix, data, section in trainings:
            longest_block = max(
                [data.sequence_length, *(s.sequence_length or 0 for s in data.stages)]
            )
            ways_on = partial(ways_to_train, shape, section, longest_block, model_type=model_type)
            larger_devices = [d for d in known if d.memory_bytes > fleet.device.memory_bytes]
            # A larger device is only named where training would fit it.
            fitting_devices = [
                d for d in larger_devices if _first_that_fits(ways_on(Fleet(1, d))) is not None
            ]
            if (problem := misfit(ways_on(fleet), fleet, fitting_devices, name)) is not None:
                problems.append(prefix + problem)
    return problems


def idle_devices(recipe: Recipe, fleets: Sequence[Fleet]) -> list[str]:
    """Named devices that outnumber the blocks of a step, of which each needs one."""
    global_batch_size = recipe.train.global_batch_size
    return [
        f"{fleet.text}: training does not start on more devices than a step has blocks "
        f"({global_batch_size}); raise train.global_batch_size to {fleet.count} or more"
        for fleet in fleets
        if fleet.count > global_batch_size
    ]
