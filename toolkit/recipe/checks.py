"""What sections cannot see alone: whether the parts of a recipe fit each other.

Checked when a recipe is read, before anything is fetched; every fault at its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.config import KNOWN_FIM_TOKENS, DataSection, FimSection, SourceSection
from toolkit.errors import ConfigError, Fault, ToolkitError, sentence_end
from toolkit.library_errors import missing_library
from toolkit.load_yaml import read_object
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.tokenizer_files import has_chat_template
from toolkit.train.config import TrainSection

if TYPE_CHECKING:
    from toolkit.recipe.schema import Recipe

# A third is written as 0.333, and three of them must still add up to 1.
_ROUNDING = 0.001


def recipe_faults(recipe: Recipe) -> list[Fault]:
    """What does not fit together in a recipe, each at its key."""
    return list(_faults(recipe))


def _faults(recipe: Recipe) -> Iterator[Fault]:
    # What the models themselves say, as far as it is known without fetching them.
    limit = None
    try:
        shape = shape_of(recipe.model)
        limit = shape.max_position_embeddings if shape is not None else None
    except ConfigError as error:
        yield Fault("model.path", str(error))
    yield from _experts("model.moe", recipe.model)
    for name, model in recipe.models.items():
        yield from _experts(f"models.{name}.moe", model)
    yield from _nothing_general(recipe)
    yield from _several(recipe)
    if recipe.trains:
        yield from _amounts("data", recipe.data)
        yield from _stage_names("", recipe.data, recipe.train)
        yield from _positions("", recipe.data, recipe.train, limit)
        yield from _nothing_to_monitor("", recipe.data, recipe.train)
    else:
        yield from _finished(recipe)
    if recipe.sft is not None:
        sft = recipe.sft
        yield from _amounts("sft.data", sft.data)
        yield from _stage_names("sft.", sft.data, sft.train)
        if sft.train.self_distillation is not None:
            yield Fault(
                "sft.train.self_distillation",
                "is for continued pre-training, whose text shows no answers; conversations do",
                "drop it, or replay general text by sft.data.replay_fraction",
            )
        # Fine-tuning has the positions that training reached, but for a start from the general
        # model.
        if limit is not None and sft.start != "general":
            limit = max(limit, _reach(recipe.data, recipe.train, limit)[-1])
        yield from _positions("sft.", sft.data, sft.train, limit)
        yield from _nothing_to_monitor("sft.", sft.data, sft.train)
    yield from _models(recipe)
    if recipe.model.path is not None:
        yield from token_faults(recipe, recipe.model.path)


def _finished(recipe: Recipe) -> Iterator[Fault]:
    """What has no effect where the recipe names a finished specialist, or several."""
    advice = "leave it out (in a variant, null takes away what stands outside)"
    if "train" in recipe.model_fields_set:
        yield Fault("train", "has no effect beside specialist, which is trained already", advice)
    if recipe.tokenizer is not None:
        yield Fault(
            "tokenizer", "adds tokens to be trained, and the specialist is trained already", advice
        )
    if recipe.data.stages:
        yield Fault("data.stages", "has no effect where nothing is trained", advice)


def _several(recipe: Recipe) -> Iterator[Fault]:
    """Whether several specialists have names and sets that can be told apart."""
    names = list(recipe.specialists)
    # Owners come first: one that is named is wrong as well where there are not several.
    owned = {f"data.sources.{n}": s.specialist for n, s in recipe.data.sources.items()}
    evaluate = recipe.evaluate
    for number, choices in enumerate(evaluate.multiple_choice):
        owned[f"evaluate.multiple_choice.{number}"] = choices.specialist
    for number, task in enumerate(evaluate.tasks):
        owned[f"evaluate.tasks.{number}"] = task.specialist
    for key, owner in owned.items():
        if owner is not None and owner not in names:
            what = f"there is no specialist {owner!r}{sentence_end(owner, names)}"
            listed = ", ".join(names) or "none; the recipe has not several"
            yield Fault(f"{key}.specialist", f"{what} Specialists: {listed}")
    if not names:
        return
    if recipe.specialist is not None:
        yield Fault("specialists", "stand beside specialist", "give the one or the others")
    if len(names) == 1:
        yield Fault("specialists", "are one only", "give it as specialist")
    for name in names:
        if not _NAME.fullmatch(name) or name in _RESERVED or name in recipe.models:
            yield Fault(
                f"specialists.{name}",
                "must be a word of letters, digits, _ and -, and no name of another model",
                "give another",
            )
    owners = recipe.find_owners()
    for name, owner in owners.items():
        if owner is None:
            yield Fault(
                f"data.sources.{name}" if name in recipe.data.sources else f"evaluate ({name})",
                "has role domain, and is of none of the specialists",
                f"say whose it is (specialist: {names[0]}), or give it another role",
            )
    for name in names:
        if name not in owners.values():
            yield Fault(
                f"specialists.{name}",
                "has no domain set of its own, so nothing shows what it is good for",
                f"give a source of role domain `specialist: {name}`",
            )
    if evaluate.infilling is not None and evaluate.infilling.role == "domain":
        yield Fault(
            "evaluate.infilling.role", "is domain, and middles are of no one specialist", "watch"
        )
    if recipe.sft is not None and recipe.sft.start == "specialist":
        yield Fault(
            "sft.start", "is the specialist, and there are several", "give merge or general"
        )


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED = ("general", "specialist", "specialists", "merge")


def _amounts(prefix: str, section: DataSection) -> Iterator[Fault]:
    names = [stage.name for stage in section.stages]
    for number, stage in enumerate(section.stages):
        key = f"{prefix}.stages.{number}"
        if names.index(stage.name) < number:
            yield Fault(
                f"{key}.name", f"{stage.name!r} stands twice", "names of stages must differ"
            )
        total = sum(stage.mixture.values())
        if abs(total - 1.0) > _ROUNDING:
            yield Fault(f"{key}.mixture", f"must add up to 1 (they add up to {total:.4g})")
            continue
        for name, fraction in stage.mixture.items():
            source_tokens = _known_tokens(section.sources[name])
            repeats = stage.tokens * fraction / source_tokens if source_tokens else 0.0
            if repeats > section.max_repeats * (1.0 + _ROUNDING):
                yield Fault(
                    f"{key}.mixture.{name}",
                    f"{stage.tokens * fraction:,.0f} tokens would repeat its {source_tokens:,} "
                    f"{repeats:.1f} times",
                    "lower the fraction or the stage's tokens, or raise data.max_repeats "
                    f"({section.max_repeats:g})",
                )
    if not section.stages:
        yield from _replay(prefix, section)


def _replay(prefix: str, section: DataSection) -> Iterator[Fault]:
    if "general" not in section.roles and section.replay_fraction > 0.0:
        yield Fault(
            f"{prefix}.replay_fraction",
            f"no source has role general, so there is nothing to replay (got "
            f"{section.replay_fraction:g})",
            "add general text, or set it to 0: what fades then shows in evaluate.retention alone",
        )
        return
    tokens_by_role: dict[str, float] = {"domain": 0.0, "general": 0.0}
    for source in section.sources.values():
        known_tokens = _known_tokens(source)
        # A limit alone does not say that a source holds as much, so how much replay would have to
        # be is not known.
        if known_tokens is None or (source.role == "domain" and source.tokens is None):
            return
        weight = (source.weight or 1.0) if source.role == "domain" else 1.0
        tokens_by_role[source.role] += known_tokens * weight
    fraction, there = section.replay_fraction, tokens_by_role["general"]
    # general / (domain + general) = fraction, solved for general.
    need = tokens_by_role["domain"] * fraction / (1.0 - fraction)
    if need > there * section.max_repeats * (1.0 + _ROUNDING):
        yield Fault(
            f"{prefix}.replay_fraction",
            f"{fraction:g} of the training tokens needs {need:,.0f} tokens of general text, but "
            f"the sources hold {there:,.0f}, to be repeated {section.max_repeats:g} times at most",
            "lower it, or raise data.max_repeats",
        )


def _known_tokens(source: SourceSection) -> int | None:
    """How many training tokens a source can give at most, where the recipe says."""
    rule = source.split.get("train")
    limits = (source.tokens, rule.max_tokens if rule is not None else None)
    return min((n for n in limits if n is not None), default=None)


def _stage_names(prefix: str, data: DataSection, train: TrainSection) -> Iterator[Fault]:
    # Without stages all training is one, called train.
    names = [stage.name for stage in data.stages] or ["train"]
    for name in train.stages:
        if name not in names:
            yield Fault(
                f"{prefix}train.stages.{name}",
                f"there is no such stage in {prefix}data.stages{sentence_end(name, names)} "
                f"Stages: {', '.join(names)}",
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
    limits = []
    for name, _, length in _lengths(data):
        stage = train.stages.get(name)
        # Stages follow each other: what one reached holds in those after it.
        if stage is not None and stage.rope_theta is not None:
            limit = max(limit, length)
        if stage is not None and stage.max_position_embeddings is not None:
            limit = max(limit, stage.max_position_embeddings)
        limits.append(limit)
    return limits


def _positions(
    prefix: str, data: DataSection, train: TrainSection, limit: int | None
) -> Iterator[Fault]:
    if limit is None:
        return
    faulty_keys = set()  # stages without a length of their own share one key, told once
    reach = _reach(data, train, limit)
    for (name, key, length), positions in zip(_lengths(data), reach, strict=True):
        if length > positions and key not in faulty_keys:
            faulty_keys.add(key)
            yield Fault(
                f"{prefix}data.{key}",
                f"must be at most {positions}, the positions that the model has (got {length})",
                "shorten it, or give rope_theta or max_position_embeddings in "
                f"{prefix}train.stages.{name}",
            )


def _nothing_general(recipe: Recipe) -> Iterator[Fault]:
    """No set that a merge must not lose on: the specialist itself would always be chosen."""
    section, retention = recipe.evaluate, recipe.evaluate.retention
    roles: list[str] = [choices.role for choices in section.multiple_choice]
    roles += [task.role for task in section.tasks]
    if retention.num_prompts:
        roles += [retention.loss_role, retention.kl_role]
    if section.infilling is not None:
        roles.append(section.infilling.role)
    if section.behavior is not None:
        roles += section.behavior.roles.values()
    if "general" not in (*recipe.data.roles, *roles):
        yield Fault(
            "evaluate.retention",
            "no set has the role general, so nothing could show what a merge forgets",
            "turn retention on (num_prompts, loss_role: general), or give a general source",
        )


def _nothing_to_monitor(prefix: str, data: DataSection, train: TrainSection) -> Iterator[Fault]:
    action = train.forgetting_monitor.action
    if "general" not in data.roles and action != "warn":
        yield Fault(
            f"{prefix}train.forgetting_monitor.action",
            f"{action} acts on a loss on general text, and no source has role general",
            "add general text, or give warn",
        )


def _models(recipe: Recipe) -> Iterator[Fault]:
    names = [*recipe.specialists, *recipe.models]
    for name in recipe.publish.parents:
        if name not in names:
            yield Fault(
                f"publish.parents.{name}",
                f"there is no such specialist or model{sentence_end(name, names)} Names: "
                f"{', '.join(names) or 'none; general and specialist have keys of their own'}",
            )
    yield from recipe.search.find_faults(
        recipe.models,
        list(recipe.specialists),
        beside_a_base=recipe.train.start is not None,
    )
    if recipe.models and recipe.tokenizer is not None:
        yield Fault(
            "models", "have the tokenizer that the section tokenizer adds to", "drop one of the two"
        )
    based = [name for name, stage in recipe.train.stages.items() if stage.rope_theta is not None]
    if based and recipe.sft is not None and recipe.sft.start == "merge":
        yield Fault(
            "sft.start",
            f"there is no merge to start from, as train.stages.{based[0]}.rope_theta sets the "
            "specialist's positions apart from the general model's",
            "give specialist",
        )


def library_faults(recipe: Recipe) -> Iterator[Fault]:
    """What the recipe needs and the package was installed without: it would stop hours later."""
    section = recipe.evaluate
    missing = missing_library("lm_eval") if section.tasks or section.multiple_choice else None
    if missing is not None:
        what, _, advice = missing.partition("; ")
        yield Fault(f"evaluate.{'tasks' if section.tasks else 'multiple_choice'}", what, advice)


_ALIKE = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
"""What experts must have in common with the model that they are put into."""


def _experts(key: str, model: ModelSection) -> Iterator[Fault]:
    """Experts of differing shapes, as far as the measures of both are known without fetching."""
    if model.moe is None:
        return
    try:
        base = shape_of(model.moe.base)
        shapes = [shape_of(expert) for expert in model.moe.experts]
    except ConfigError as error:
        yield Fault(key, str(error))
        return
    for number, shape in enumerate(shapes):
        if base is None or shape is None:
            continue
        for measure in _ALIKE:
            expert_size, base_size = getattr(shape, measure), getattr(base, measure)
            if expert_size != base_size:
                yield Fault(
                    f"{key}.experts.{number}",
                    f"its {measure} is {expert_size}, that of the base {base_size}",
                    "experts must have the base's shapes",
                )


def token_faults(recipe: Recipe, folder: Path) -> Iterator[Fault]:
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
        added_tokens = (token["content"] for token in table.get("added_tokens", ()))
        # Of a Unigram model the vocabulary is a list of pairs: a TypeError, caught below.
        known_tokens = {*table["model"]["vocab"], *added_tokens}
    except (ToolkitError, KeyError, TypeError):
        return  # another kind of tokenizer, or damage: whoever loads it says so
    extension = recipe.tokenizer
    # Tokens that the recipe adds will be there by then.
    known_tokens |= set(extension.special_tokens if extension is not None else ())
    has_own_template = extension is not None and extension.chat_template is not None
    infilling = recipe.evaluate.infilling
    infilling_tokens = (infilling.tokens if infilling is not None else None) or ()
    if lacking := [token for token in infilling_tokens if token not in known_tokens]:
        what = f"the tokenizer of {folder} lacks {', '.join(lacking)}"
        yield Fault("evaluate.infilling.tokens", what)
    sections = {"data": recipe.data}
    if recipe.sft is not None:
        sections["sft.data"] = recipe.sft.data
    for prefix, section in sections.items():
        if not has_own_template and not has_chat_template(folder):
            yield from _template_faults(prefix, section, folder)
        end = section.end_of_document
        if end is not None and end not in known_tokens:
            yield Fault(
                f"{prefix}.end_of_document", f"the tokenizer of {folder} has no token {end!r}"
            )
        if any(source.fim for source in section.sources.values()):
            yield from _fim_faults(prefix, section.fim, known_tokens, folder)


def _template_faults(prefix: str, section: DataSection, folder: Path) -> Iterator[Fault]:
    for name, source in section.sources.items():
        if source.messages_field is not None:
            yield Fault(
                f"{prefix}.sources.{name}.messages_field",
                f"the tokenizer of {folder} has no chat template to write conversations with",
                "give one in tokenizer.chat_template, or as chat_template.jinja beside the "
                "tokenizer",
            )


def _fim_faults(
    prefix: str, section: FimSection, known_tokens: set[str], folder: Path
) -> Iterator[Fault]:
    key = f"{prefix}.fim.tokens"
    if section.tokens is not None:
        if lacking := [token for token in section.tokens if token not in known_tokens]:
            yield Fault(
                key,
                f"the tokenizer of {folder} lacks {', '.join(lacking)}",
                "name others, or add them by tokenizer.special_tokens",
            )
    elif not any(known_tokens.issuperset(names) for names in KNOWN_FIM_TOKENS):
        yield Fault(
            key,
            f"the tokenizer of {folder} has none of the tokens that code models use for "
            "fill-in-the-middle",
            "name three, or add three by tokenizer.special_tokens",
        )
