"""What sections cannot see alone: whether the parts of a recipe fit each other.

Checked when a recipe is read, before anything is fetched; every fault at its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.config import KNOWN_FIM_TOKENS, DataSection, SourceSection
from toolkit.errors import ConfigError, ToolkitError, sentence_end
from toolkit.load_yaml import read_object
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.train.config import TrainSection

if TYPE_CHECKING:
    from toolkit.recipe.schema import Recipe

_ROUNDING = 0.001


def recipe_faults(recipe: Recipe) -> list[str]:
    """One line for each fault, each at its key."""
    return list(_faults(recipe))


def _faults(recipe: Recipe) -> Iterator[str]:
    limit = None
    try:
        shape = shape_of(recipe.model)
        limit = shape.max_position_embeddings if shape is not None else None
    except ConfigError as error:
        yield f"model.path: {error}"
    yield from _experts("model.moe", recipe.model)
    for name, model in recipe.models.items():
        yield from _experts(f"models.{name}.moe", model)
    yield from _amounts("data", recipe.data)
    yield from _stage_names("", recipe.data, recipe.train)
    yield from _positions("", recipe.data, recipe.train, limit)
    if recipe.sft is not None:
        sft = recipe.sft
        yield from _amounts("sft.data", sft.data)
        yield from _stage_names("sft.", sft.data, sft.train)
        if limit is not None and sft.start != "general":
            limit = max(limit, _reach(recipe.data, recipe.train, limit)[-1])
        yield from _positions("sft.", sft.data, sft.train, limit)
    yield from _models(recipe)
    if recipe.model.path is not None:
        yield from token_faults(recipe, recipe.model.path)


def _amounts(prefix: str, section: DataSection) -> Iterator[str]:
    names = [stage.name for stage in section.stages]
    for number, stage in enumerate(section.stages):
        key = f"{prefix}.stages.{number}"
        if names.index(stage.name) < number:
            yield f"{key}.name: {stage.name!r} stands twice; names of stages must differ"
        total = sum(stage.mixture.values())
        if abs(total - 1.0) > _ROUNDING:
            yield f"{key}.mixture: must add up to 1 (they add up to {total:.4g})"
            continue
        for name, share in stage.mixture.items():
            held = _known_tokens(section.sources[name])
            repeats = stage.tokens * share / held if held else 0.0
            if repeats > section.max_repeats * (1.0 + _ROUNDING):
                yield (
                    f"{key}.mixture.{name}: {stage.tokens * share:,.0f} tokens would repeat its "
                    f"{held:,} {repeats:.1f} times; lower the share or the stage's tokens, or "
                    f"raise data.max_repeats ({section.max_repeats:g})"
                )
    if not section.stages:
        yield from _replay(prefix, section)


def _replay(prefix: str, section: DataSection) -> Iterator[str]:
    held: dict[str, list[float | None]] = {"domain": [], "general": []}
    for source in section.sources.values():
        known = _known_tokens(source)
        if source.role == "domain":  # a limit alone does not say that there is as much
            known = None if source.tokens is None else known
        weight = (source.weight or 1.0) if source.role == "domain" else 1.0
        held[source.role].append(None if known is None else known * weight)
    domain, general = ([n for n in held[role] if n is not None] for role in ("domain", "general"))
    if len(domain) < len(held["domain"]) or len(general) < len(held["general"]):
        return
    share = section.replay_fraction
    need, there = sum(domain) * share / (1.0 - share), sum(general)
    if need > there * section.max_repeats * (1.0 + _ROUNDING):
        yield (
            f"{prefix}.replay_fraction: {share:g} of the training tokens needs {need:,.0f} tokens "
            f"of general text, but the sources hold {there:,.0f}, to be repeated "
            f"{section.max_repeats:g} times at most; lower it, or raise data.max_repeats"
        )


def _known_tokens(source: SourceSection) -> int | None:
    """How many training tokens a source can give at most, where the recipe says."""
    rule = source.split.get("train")
    limits = (source.tokens, rule.max_tokens if rule is not None else None)
    return min((n for n in limits if n is not None), default=None)


def _stage_names(prefix: str, data: DataSection, train: TrainSection) -> Iterator[str]:
    names = [stage.name for stage in data.stages] or ["train"]
    for name in train.stages:
        if name not in names:
            yield (
                f"{prefix}train.stages.{name}: there is no such stage in {prefix}data.stages"
                f"{sentence_end(name, names)} Stages: {', '.join(names)}"
            )


def _lengths(data: DataSection) -> list[tuple[str, str, int]]:
    """Name of each stage, the key of its length, and the length."""
    if not data.stages:
        return [("train", "sequence_length", data.sequence_length)]
    return [
        (stage.name, f"stages.{number}.sequence_length", stage.sequence_length)
        if stage.sequence_length is not None
        else (stage.name, "sequence_length", data.sequence_length)
        for number, stage in enumerate(data.stages)
    ]


def _reach(data: DataSection, train: TrainSection, limit: int) -> list[int]:
    """Positions that the model has in each stage."""
    found = []
    for name, _, length in _lengths(data):
        own = train.stages.get(name)
        if own is not None and own.rope_theta is not None:
            limit = max(limit, length)
        if own is not None and own.max_position_embeddings is not None:
            limit = max(limit, own.max_position_embeddings)
        found.append(limit)
    return found


def _positions(
    prefix: str, data: DataSection, train: TrainSection, limit: int | None
) -> Iterator[str]:
    if limit is None:
        return
    told = set()
    reach = _reach(data, train, limit)
    for (name, key, length), positions in zip(_lengths(data), reach, strict=True):
        if length > positions and key not in told:
            told.add(key)
            yield (
                f"{prefix}data.{key}: must be at most {positions}, the positions that the model "
                f"has (got {length}); shorten it, or give rope_theta or max_position_embeddings "
                f"in {prefix}train.stages.{name}"
            )


def _models(recipe: Recipe) -> Iterator[str]:
    yield from recipe.search.find_faults(recipe.models)
    if recipe.models and recipe.tokenizer is not None:
        yield "models: have the tokenizer that the section tokenizer adds to; drop one of the two"
    based = [name for name, stage in recipe.train.stages.items() if stage.rope_theta is not None]
    if based and recipe.sft is not None and recipe.sft.start == "merge":
        yield (
            f"sft.start: there is no merge to start from, as train.stages.{based[0]}.rope_theta "
            "sets the specialist's positions apart from the general model's; give specialist"
        )


_ALIKE = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
"""What experts must have in common with the model that they are put into."""


def _experts(key: str, model: ModelSection) -> Iterator[str]:
    """Experts of differing shapes, as far as the measures of both are known without fetching."""
    if model.moe is None:
        return
    try:
        base = shape_of(model.moe.base)
        shapes = [shape_of(expert) for expert in model.moe.experts]
    except ConfigError as error:
        yield f"{key}: {error}"
        return
    for number, shape in enumerate(shapes):
        if base is None or shape is None:
            continue
        for measure in _ALIKE:
            own, wanted = getattr(shape, measure), getattr(base, measure)
            if own != wanted:
                yield (
                    f"{key}.experts.{number}: its {measure} is {own}, that of the base {wanted}; "
                    "experts must have the base's shapes"
                )


def token_faults(recipe: Recipe, folder: Path) -> Iterator[str]:
    """What the recipe needs and a tokenizer lacks, where the tokenizer is at hand.

    Args:
        recipe: all of it.
        folder: of the general model, which may not be there yet.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        table = read_object(path)
        known = {*table["model"]["vocab"], *(t["content"] for t in table.get("added_tokens", ()))}
    except (ToolkitError, KeyError, TypeError):
        return  # another kind of tokenizer, or damage: whoever loads it says so
    own = recipe.tokenizer
    known |= set(own.special_tokens if own is not None else ())
    has_template = (own is not None and own.chat_template is not None) or _has_template(folder)
    infilling = recipe.evaluate.infilling
    if (
        infilling is not None
        and infilling.tokens is not None
        and not known.issuperset(infilling.tokens)
    ):
        yield (
            f"evaluate.infilling.tokens: the tokenizer of {folder} lacks "
            f"{', '.join(token for token in infilling.tokens if token not in known)}"
        )
    sections = {"data": recipe.data}
    if recipe.sft is not None:
        sections["sft.data"] = recipe.sft.data
    for prefix, section in sections.items():
        if not has_template:
            for name, source in section.sources.items():
                if source.messages_field is not None:
                    yield (
                        f"{prefix}.sources.{name}.messages_field: the tokenizer of {folder} has no "
                        "chat template to write conversations with; give one in "
                        "tokenizer.chat_template, or as chat_template.jinja beside the tokenizer"
                    )
        end = section.end_of_document
        if end is not None and end not in known:
            yield f"{prefix}.end_of_document: the tokenizer of {folder} has no token {end!r}"
        if not any(source.fim for source in section.sources.values()):
            continue
        wanted = section.fim.tokens
        if wanted is not None and (lacking := [token for token in wanted if token not in known]):
            yield (
                f"{prefix}.fim.tokens: the tokenizer of {folder} lacks {', '.join(lacking)}; "
                "name others, or add them by tokenizer.special_tokens"
            )
        elif wanted is None and not any(known.issuperset(names) for names in KNOWN_FIM_TOKENS):
            yield (
                f"{prefix}.fim.tokens: the tokenizer of {folder} has none of the tokens that code "
                "models use for fill-in-the-middle; name three, or add three by "
                "tokenizer.special_tokens"
            )


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_object(folder / "tokenizer_config.json").get("chat_template"))
    except ToolkitError:
        return False
