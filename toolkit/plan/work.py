"""A plan's stages as work: tokens, operations, seconds; and what does not fit the devices."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.checkpoint.config import ShapeSection
from toolkit.data.config import DataSection
from toolkit.plan.cost import Work, stage_work
from toolkit.plan.devices import Device, Fleet
from toolkit.plan.evidence import Looked
from toolkit.plan.fit import misfit, ways_to_train
from toolkit.plan.model import MeasuredModel
from toolkit.plan.shape import training_flops
from toolkit.plan.token_budget import StageAmount
from toolkit.recipe.schema import Recipe


def training_work(
    recipe: Recipe,
    amounts: Sequence[StageAmount],
    looked: Looked,
    shape: ShapeSection | None,
    measured: MeasuredModel,
) -> list[Work]:
    """Training stages, and the search."""
    if shape is None or not amounts:
        return []
    watch = recipe.train.forgetting_monitor
    reading = measured.reading_tokens_per_second
    looks = watch.evaluations + 2 if watch.evaluations else 0
    watching = looks * 2 * watch.tokens_per_role / reading if reading else 0.0
    found = [
        stage_work(
            amount,
            shape,
            recipe.train,
            name=amount.name if len(amounts) > 1 else "cpt",
            tokens_per_second=measured.training_tokens_per_second,
            more_seconds=watching / len(amounts),
        )
        for amount in amounts
    ]
    validation = evaluation_tokens(recipe.data, looked)
    read = (recipe.search.num_trials + 3) * validation
    forward = training_flops(shape, recipe.evaluate.window_tokens) / 3.0
    seconds = read / reading if reading else None
    if validation == 0.0:
        return found  # nothing was seen of the validation sets
    found.append(
        Work("merge search, at most", 0.0, read, 0, read * forward, read * forward, seconds)
    )
    return found


def evaluation_tokens(data: DataSection, looked: Looked) -> float:
    """Tokens of the validation sets, as far as they are known."""
    total = 0.0
    for name, sample in looked.samples.items():
        rule = data.sources[name].split.get("validation")
        if rule is None:
            continue
        seen = sample.split_bytes["validation"] * looked.tokens_per_byte[sample.role]
        tokens = seen / (sample.seen_fraction or 1.0)
        total += min(tokens, rule.max_tokens or tokens)
    return total


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
        recipe: with the section sft or without.
        shape: of the model.
        fleets: the devices that were named.
        known: kinds of devices, to suggest larger ones.
        name: of the model.
        model_type: as in `config.json`, where it is known.
    """
    parts = [("", recipe.data, recipe.train)]
    if recipe.sft is not None:
        parts.append(("sft.", recipe.sft.data, recipe.sft.train))
    found = []
    for fleet in fleets:
        for prefix, data, section in parts:
            longest = max([data.sequence_length, *(s.sequence_length or 0 for s in data.stages)])
            ways = ways_to_train(shape, section, longest, fleet, model_type)
            others = []
            for device in (d for d in known if d.memory_bytes > fleet.device.memory_bytes):
                larger = ways_to_train(shape, section, longest, Fleet(1, device), model_type)
                others += [device] * any(way.fewest is not None for way in larger)
            if (wrong := misfit(ways, fleet, others, name)) is not None:
                found.append(prefix + wrong)
    return found


def idle_devices(recipe: Recipe, fleets: Sequence[Fleet]) -> list[str]:
    """Named devices that outnumber the blocks of a step, of which each needs one."""
    blocks = recipe.train.global_batch_size
    return [
        f"{fleet.text}: training does not start on more devices than a step has blocks "
        f"({blocks}); raise train.global_batch_size to {fleet.count} or more"
        for fleet in fleets
        if fleet.count > blocks
    ]
