"""Whether training fits some devices; which component is in the way, and what would fit."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.devices import CPU, Device, Fleet
from toolkit.plan.memory import Memory, training_memory
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
        name: in words.
        section: the recipe's, changed to it.
        memory: of one device.
        fits: on the devices that were named.
        fewest: devices of this kind on which it fits with FSDP; None where no number does.
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
        shape: of the model.
        section: of the recipe.
        sequence_length: the longest block.
        fleet: devices; several share the parameters (FSDP).
        model_type: as in `config.json`, where it is known.
    """
    section = precision_on(section, "CPU" if fleet.device.name == CPU else fleet.device.name)
    adapters = section.lora or LoraSection(rank=DEFAULT_RANK)
    full = section.model_copy(update={"lora": None})
    lora = section.model_copy(
        update={"lora": adapters, "block_expansion": None, "trainable": ("*",)}
    )
    spare = {"gradient_checkpointing": "full", "micro_batch_size": 1}
    rows = [
        ("full", full),
        ("full, sparing", full.model_copy(update=spare)),
        (f"LoRA r={adapters.rank}", lora),
        (f"LoRA r={adapters.rank}, sparing", lora.model_copy(update=spare)),
    ]
    if section.lora is not None:
        rows = [*rows[2:], *rows[:2]]
    different = [row for n, row in enumerate(rows) if row[1] not in [r[1] for r in rows[:n]]]
    return [
        _way(name, shape, changed, sequence_length, fleet, model_type)
        for name, changed in different
    ]


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


def _way(
    name: str,
    shape: ShapeSection,
    section: TrainSection,
    sequence_length: int,
    fleet: Fleet,
    model_type: str | None,
) -> Way:
    memory = memory_on(shape, section, sequence_length, fleet, model_type)
    fewest = None
    count = 1
    while count <= (1 if fleet.device.name == CPU else _MOST_DEVICES):
        one = memory_on(shape, section, sequence_length, Fleet(count, fleet.device), model_type)
        if fits(one, fleet.device):
            fewest = count
            break
        count *= 2
    return Way(name, section, memory, fits(memory, fleet.device), fewest)


def misfit(ways: list[Way], fleet: Fleet, others: list[Device], name: str) -> str | None:
    """What is wrong when the recipe's own way does not fit, and what would fit.

    Args:
        ways: of `ways_to_train`, the recipe's own first.
        fleet: the named devices.
        others: other kinds of devices on which, in some number, one of these ways fits.
        name: of the model.

    Returns:
        One message, or None where it fits.
    """
    own = ways[0]
    if own.fits:
        return None
    part = own.memory.largest
    size = getattr(own.memory, part)
    limit = USABLE * fleet.device.memory_bytes
    text = (
        f"train: {name} does not fit {fleet.text}: {own.name} training needs "
        f"{own.memory.total / 1e9:,.1f} GB a device and it can give {limit / 1e9:,.1f}; the "
        f"largest part: {part}, {size / 1e9:,.1f} GB."
    )
    would = [
        f"{way.name}{_how(way, own)} on {fleet.text} ({way.memory.total / 1e9:,.1f} GB)"
        for way in ways[1:]
        if way.fits
    ]
    if own.fewest is not None:
        would.append(f"{own.name} on {own.fewest}x{fleet.device.name} with FSDP")
    elif not would:
        spare = next((way for way in ways if way.fewest is not None), None)
        if spare is not None:
            would.append(f"{spare.name} on {spare.fewest}x{fleet.device.name} with FSDP")
    if not would:
        would += [f"a device with more memory ({', '.join(d.name for d in others)})"] * bool(others)
    less = "none of the devices known, however many: " + (
        "shorter blocks (sequence_length) or a smaller model"
        if ways[-1].memory.largest == "activations"
        else "a smaller model"
    )
    return f"{text} What would fit: {'; '.join(would) or less}."


def _how(way: Way, own: Way) -> str:
    if not way.name.endswith("sparing"):
        return ""
    changes = []
    if own.section.gradient_checkpointing != "full":
        changes.append("gradient_checkpointing: full")
    if own.section.micro_batch_size != 1:
        changes.append("micro_batch_size: 1")
    return f" ({', '.join(changes)})" if changes else ""
