"""Layers of a recipe: variants of it, and scales at which it runs.

`variants:` and `scales:` of a recipe hold mappings by name, each laid over the rest of the file. A
recipe is then asked for as `NAME@variant@scale`, either part left out. A variant may change
anything; a scale changes models, documents and amounts, and keeps what the recipe is about.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from toolkit.errors import ConfigError, Fault, did_you_mean, sentence_end
from toolkit.section import PositiveInt, Section, check_section

if TYPE_CHECKING:
    from toolkit.data.config import DataSection
    from toolkit.recipe.schema import Recipe
    from toolkit.train.config import ScheduleSection, TrainSection

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHORTEST = 8  # tokens of a block

PlainValues: TypeAlias = dict[str, Any]
"""What stands under the keys of a recipe file, as YAML gives it; checked as a `Recipe` once all
layers lie on one another."""


class AmountsSection(Section):
    """Keys of a scale that say how much; all else in it is laid over the recipe."""

    tokens: PositiveInt | None = None
    """Training tokens of all stages together, in one epoch; each stage keeps its share of them.
    Without stages, domain sources are cut to what replay leaves of it."""

    sft_tokens: PositiveInt | None = None
    """The same of the section `sft`."""

    sequence_divisor: PositiveInt = 1
    """By how much every length of a block is divided."""


@dataclass(frozen=True)
class Layers:
    """A recipe file, taken apart.

    Attributes:
        base: what stands outside the layers.
        variants: by name.
        scales: by name; each may hold `variants` of its own, laid over it for those variants.
    """

    base: PlainValues
    variants: dict[str, PlainValues]
    scales: dict[str, PlainValues]

    def combinations(self) -> Iterator[tuple[str | None, str | None]]:
        """Every variant and scale, first without the one or the other."""
        # None comes first: a scale is compared with the same recipe without one.
        for scale in (None, *self.scales):
            for variant in (None, *self.variants):
                yield variant, scale

    def overlaid(self, variant: str | None, scale: str | None) -> PlainValues:
        """Values of the recipe under a variant and a scale, before amounts are scaled."""
        values = overlay(self.base, self.variants[variant]) if variant else dict(self.base)
        if scale is None:
            return values
        layer = self.scales[scale]
        layer_of_variant = (layer.get("variants") or {}).get(variant) or {}
        # What a scale says for this variant lies on top of what it says for all.
        for part in (layer, layer_of_variant):
            plain = {k: v for k, v in part.items() if k not in {"variants", *_AMOUNTS}}
            values = overlay(values, _without_removed(plain, values, self.base))
        return values

    def amounts(self, variant: str | None, scale: str) -> PlainValues:
        """What the scale says about amounts, as plain values."""
        layer = self.scales[scale]
        parts = (layer, (layer.get("variants") or {}).get(variant) or {})
        return {key: part[key] for part in parts for key in _AMOUNTS if key in part}

    def choose(self, names: Sequence[str], where: str) -> tuple[str | None, str | None]:
        """The variant and the scale that are asked for.

        Raises:
            ConfigError: there is no such layer, or there are two of one kind.
        """
        for name in names:
            if name not in self.variants and name not in self.scales:
                hint = sentence_end(name, [*self.variants, *self.scales])
                raise ConfigError(
                    f"{where}: has no variant or scale {name!r}{hint} "
                    f"Variants: {', '.join(self.variants) or 'none'}. "
                    f"Scales: {', '.join(self.scales) or 'none'}."
                )
        variants = [name for name in names if name in self.variants]
        scales = [name for name in names if name in self.scales]
        if len(variants) > 1 or len(scales) > 1 or [*variants, *scales] != list(names):
            raise ConfigError(
                f"{where}: {'@'.join(names)}: one variant and one scale may follow the name, in "
                "this order: NAME@variant@scale."
            )
        return next(iter(variants), None), next(iter(scales), None)


_AMOUNTS = tuple(AmountsSection.model_fields)


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """A recipe as it is asked for: name or path, and layers.

    >>> split_name("replay@none@laptop"), split_name("a@b/mine.yaml@laptop")
    (('replay', ('none', 'laptop')), ('a@b/mine.yaml', ('laptop',)))
    """
    if name.endswith((".yaml", ".yml")):
        return name, ()
    # Signs behind the last slash only: a folder's name may hold one.
    match = re.fullmatch(r"(.*?)((?:@[^@/]*)*)", name)
    base, layers = match.groups() if match else (name, "")
    return base, tuple(layers.split("@")[1:])


def read_layers(values: PlainValues) -> tuple[Layers, list[Fault]]:
    """Take a recipe file apart.

    Returns:
        The layers that can be used, and the faults of those that cannot, each at its key.
    """
    faults: list[Fault] = []
    variants = _named_layers("variants", values.get("variants"), (), faults)
    scales = _named_layers("scales", values.get("scales"), variants, faults)
    for name, layer in scales.items():
        own_variants = layer.get("variants") or {}
        key = f"scales.{name}.variants"
        if not isinstance(own_variants, dict) or not all(
            isinstance(own_layer, dict) for own_layer in own_variants.values()
        ):
            faults.append(Fault(key, "must be names with mappings"))
            # Taken out, so that the other layers are still checked; the loop stands it, as no key
            # is new.
            scales[name] = {k: v for k, v in layer.items() if k != "variants"}
            continue
        for variant in own_variants:
            if variant not in variants:
                hint = did_you_mean(str(variant), variants)
                faults.append(Fault(f"{key}.{variant}", f"there is no such variant{hint}"))
    base = {key: value for key, value in values.items() if key not in {"variants", "scales"}}
    return Layers(base, variants, scales), faults


def _named_layers(
    kind: str, group: object, taken_names: Collection[str], faults: list[Fault]
) -> dict[str, PlainValues]:
    """The layers of one kind that can be used; what is wrong with others is added to `faults`."""
    if group is not None and not isinstance(group, dict):
        faults.append(Fault(kind, f"must be names with mappings (got {group!r})"))
    layers: dict[str, PlainValues] = {}
    for name, layer in group.items() if isinstance(group, dict) else ():
        key = f"{kind}.{name}"
        if not _NAME.fullmatch(str(name)):
            faults.append(Fault(key, "a name has letters, digits, dots and dashes only"))
        elif not isinstance(layer, dict):
            faults.append(Fault(key, f"must be a mapping (got {layer!r})"))
        elif str(name) in taken_names:
            faults.append(Fault(key, "is also a variant", "a name stands for one layer"))
        else:
            layers[str(name)] = layer
    return layers


def overlay(values: PlainValues, layer: PlainValues, path: tuple[str, ...] = ()) -> PlainValues:
    """One mapping laid over another.

    Mappings merge, all else replaces; a model and a source are replaced whole, and null takes away
    what stood there, so that the default holds.

    >>> overlay({"a": {"b": 1, "c": 2}, "model": {"path": "x"}}, {"a": {"b": None, "d": 3}})
    {'a': {'c': 2, 'd': 3}, 'model': {'path': 'x'}}
    >>> overlay({"model": {"hub": "org/name", "revision": "1"}}, {"model": {"path": "x"}})
    {'model': {'path': 'x'}}
    """
    result = dict(values)
    for key, value in layer.items():
        here = (*path, str(key))
        # A model of another place must not keep the revision or the license of the former one.
        is_whole = here in {("model",), ("specialist",)} or (
            path and path[-1] in {"sources", "models", "specialists"}
        )
        if value is None and key in result:
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict) and not is_whole:
            result[key] = overlay(result[key], value, here)
        else:
            result[key] = value
    return result


def _without_removed(layer: PlainValues, values: PlainValues, base: PlainValues) -> PlainValues:
    """A scale without the sources and models that the variant took out of the recipe."""
    result = dict(layer)
    for key, part in layer.items():
        if not isinstance(part, dict):
            continue
        here, before = _mapping(values, key), _mapping(base, key)
        if key in {"sources", "models", "specialists"}:
            result[key] = {n: v for n, v in part.items() if n in here or n not in before}
        elif here:
            result[key] = _without_removed(part, here, before)
        # A variant that took fine-tuning out would get half a section back.
        elif key == "sft" and before:
            del result[key]
    return result


def _mapping(values: PlainValues, key: str) -> PlainValues:
    inner = values.get(key)
    return inner if isinstance(inner, dict) else {}


def with_amounts(
    values: PlainValues, amounts: AmountsSection, recipe: Recipe, full: Recipe
) -> PlainValues:
    """Values with the amounts of a scale.

    Args:
        values: of the recipe under the scale, which are valid.
        amounts: of the scale.
        recipe: what `values` say.
        full: the recipe without the scale, whose sources say how much they hold.
    """
    result = dict(values)
    result["data"] = _scaled_data(
        values["data"], amounts.tokens, amounts.sequence_divisor, recipe.data, full.data
    )
    if recipe.sft is not None and full.sft is not None:
        data = _scaled_data(
            values["sft"]["data"],
            amounts.sft_tokens,
            amounts.sequence_divisor,
            recipe.sft.data,
            full.sft.data,
        )
        result["sft"] = {**values["sft"], "data": data}
    return result


def _scaled_data(
    values: PlainValues,
    tokens: int | None,
    divisor: int,
    section: DataSection,
    full: DataSection,
) -> PlainValues:
    result: PlainValues = {**values}
    if divisor > 1:
        result["sequence_length"] = max(_SHORTEST, section.sequence_length // divisor)
    total = sum(stage.tokens for stage in section.stages)
    stages = []
    for stage, given in zip(section.stages, values.get("stages") or (), strict=True):
        changed = dict(given)
        if tokens is not None:
            changed["tokens"] = max(1, round(stage.tokens * tokens / total))
        if stage.sequence_length is not None:
            changed["sequence_length"] = max(_SHORTEST, stage.sequence_length // divisor)
        stages.append(changed)
    if stages:
        result["stages"] = stages
    elif tokens is not None:
        result["sources"] = _cut_sources(values["sources"], tokens, section, full)
    return result


def _cut_sources(
    values: PlainValues, tokens: int, section: DataSection, full: DataSection
) -> PlainValues:
    """Domain sources cut to the tokens that replay leaves, in the proportions of what the full
    recipe says that they hold, else alike."""
    # A source that gives no training text takes nothing from the budget.
    names = [
        name
        for name, source in section.sources.items()
        if source.role == "domain" and "train" in source.split
    ]
    known_tokens = {n: s.tokens for n, s in full.sources.items() if s.tokens is not None}
    # All or none: a size beside a guess is no proportion.
    are_known = all(name in known_tokens for name in names)
    sizes = {name: float(known_tokens[name]) if are_known else 1.0 for name in names}
    # A source of weight 2 is seen twice, so it takes twice its size from the budget.
    seen = sum(sizes[name] * (section.sources[name].weight or 1.0) for name in names)
    budget = tokens * (1.0 - section.replay_fraction)
    result = dict(values)
    for name in names:
        split = section.sources[name].model_dump(mode="json", include={"split"})["split"]
        source_tokens = max(1, round(budget * sizes[name] / seen))
        # The recipe's own bound holds where it is the lower one.
        limit = split["train"]["max_tokens"]
        limits = [source_tokens] if limit is None else [source_tokens, limit]
        split["train"]["max_tokens"] = min(limits)
        result[name] = {**values[name], "split": split}
    return result


def parse_amounts(values: PlainValues) -> tuple[AmountsSection, list[Fault]]:
    """What a scale says about amounts, and its faults."""
    section, faults = check_section(AmountsSection, values)
    return section or AmountsSection(), faults


def broken_rules(full: Recipe, scaled: Recipe) -> list[Fault]:
    """What a scale changed although it must not, each at its key without the scale's own."""
    before, after = kept_of(full), kept_of(scaled)
    faults = []
    # In the order of the recipe, with what was added at the end.
    for key in (*before, *(key for key in after if key not in before)):
        if key not in after:
            faults.append(Fault(key, "a scale must keep it"))
        elif key not in before:
            faults.append(Fault(key, "a scale must not add it"))
        elif before[key] != after[key]:
            change = f"{before[key]!r} -> {after[key]!r}"
            faults.append(Fault(key, f"a scale must keep it ({change})"))
    return faults


def kept_of(recipe: Recipe) -> dict[str, object]:
    """What a recipe is about, by key: the same at every scale."""
    kept: dict[str, object] = {}
    kept.update(_kept_of_data("data.", recipe.data), **_kept_of_training("train.", recipe.train))
    if recipe.sft is not None:
        kept["sft.start"] = recipe.sft.start
        kept.update(_kept_of_data("sft.data.", recipe.sft.data))
        kept.update(_kept_of_training("sft.train.", recipe.sft.train))
    kept["search.merges"] = list(recipe.search.merges)
    kept["search.sweep"] = list(recipe.search.sweep)
    if recipe.study is not None:
        kept["study"] = recipe.study.model_dump(mode="json")
    return kept


def _kept_of_data(prefix: str, section: DataSection) -> Iterator[tuple[str, object]]:
    yield f"{prefix}replay_fraction", section.replay_fraction
    for number, stage in enumerate(section.stages):
        yield f"{prefix}stages.{number}.name", stage.name
        yield f"{prefix}stages.{number}.mixture", dict(stage.mixture)
    yield f"{prefix}fim.rate", section.fim.rate
    yield f"{prefix}fim.spm_rate", section.fim.spm_rate
    for name, source in section.sources.items():
        yield f"{prefix}sources.{name}.role", source.role
        yield f"{prefix}sources.{name}.weight", source.weight
        yield f"{prefix}sources.{name}.fim", source.fim


def _kept_of_training(prefix: str, section: TrainSection) -> dict[str, object]:
    kept: dict[str, object] = dict(_kept_of_schedule(f"{prefix}schedule.", section.schedule))
    for name, stage in section.stages.items():
        kept[f"{prefix}stages.{name}.rope_theta"] = stage.rope_theta
        schedule_key = f"{prefix}stages.{name}.schedule"
        # Only whether there is one: its figures follow key by key, but for the peak.
        kept[schedule_key] = "given" if stage.schedule is not None else None
        kept.update(_kept_of_schedule(f"{schedule_key}.", stage.schedule) if stage.schedule else ())
    kept[f"{prefix}trainable"] = list(section.trainable)
    kept[f"{prefix}lora"] = "given" if section.lora is not None else None
    kept[f"{prefix}block_expansion"] = "given" if section.block_expansion is not None else None
    kept[f"{prefix}use"] = section.use
    for name in ("anneal", "average"):
        values = getattr(section, name).model_dump(mode="json")
        kept.update({f"{prefix}{name}.{key}": value for key, value in values.items()})
    return kept


def _kept_of_schedule(prefix: str, section: ScheduleSection) -> Iterator[tuple[str, object]]:
    for key, value in section.model_dump(mode="json", exclude={"peak_lr"}).items():
        yield f"{prefix}{key}", value
