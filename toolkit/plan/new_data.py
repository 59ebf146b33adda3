"""Data and training of a new recipe: splits, amounts, rates and replay, each with why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoint.config import ShapeSection
from toolkit.data.config import SourceSection
from toolkit.data.sources import Document
from toolkit.data.split import assign_split
from toolkit.errors import ConfigError
from toolkit.pipeline.set_power import ASSUMED_SCATTER
from toolkit.plan.new_model import DraftModel
from toolkit.plan.new_sources import DraftSource, counted
from toolkit.plan.settings import SettingInputs, choose_settings
from toolkit.plan.shape import count_parameters, training_flops
from toolkit.plan.token_budget import ASSUMED_TOKENS_PER_BYTE
from toolkit.plan.verdict import words_of
from toolkit.plan.words import FolderTokenizer
from toolkit.select.config import SelectSection
from toolkit.statistics.paired import expected_change
from toolkit.statistics.power import needed_groups
from toolkit.train.config import TrainSection

DOCUMENT_TOKENS = 256
"""Length that documents of evaluation are cut to: many short ones see more than few long ones."""

_DOMAIN_ITEMS = 60
"""Domain documents, or groups, of each evaluation set: the domain has no tolerance to show."""

_FEWEST_GROUPS, _FEWEST_FILES = 5, 20
"""With fewer groups that the user's fields or folders tell, or fewer files of several documents,
none is held out whole, and each is divided."""

_MOST_HELD_OUT = {"domain": 0.2, "general": 0.3}
"""Largest fraction of a source for each evaluation set; general text is mostly for evaluation."""

_SEEDS, _COUNTED_UNITS = 300, 400
"""Seeds that are tried for the splits of a source with so few documents or groups."""

_NEARLY = 0.8
"""Share of its fraction that a set must have at least."""

_CPU_LENGTH, _GPU_LENGTH = 512, 2048
_CPU_SECONDS, _GPU_SECONDS = 15 * 60.0, 60 * 60.0
"""How long training may take at first: enough to see what comes of it."""

_REACHED = {"cpu": 0.5, "gpu": 0.4}
"""Share of the speed of matrix products that training reaches; see `plan.speed` and `devices`."""

_SAMPLED_TEXTS = 200


@dataclass
class RecipeDraft:
    """The recipe as it grows: its values, and settings with why by key."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether the specialist is trained, and not named."""
        return not {"specialist", "specialists"} & set(self.values)

    def set(self, key: str, value: Any, why: str = "") -> None:
        """Set a value at a key with dots; without a reason it has no comment."""
        *sections, last = key.split(".")
        part = self.values
        for name in sections:
            part = part.setdefault(name, {})
        part[last] = value
        if why:
            self.reasons[key] = why


def set_data(
    draft: RecipeDraft,
    model: DraftModel | None,
    domain: Sequence[DraftSource],
    general: Sequence[DraftSource],
    *,
    is_new: bool,
) -> None:
    """Set everything that follows from the documents, and from the model they are for.

    Args:
        draft: recipe with its models; gains `data`, `train`, `seed` and windows of `evaluate`.
        model: general model, where it is named anew.
        domain, general: sources that come to those there are.
        is_new: whether settings that no file answers are set too, rather than kept.
    """
    shape = model.located.shape if model is not None else None
    tokenizer = model.located.tokenizer if model is not None else None
    data = draft.values.setdefault("data", {})
    old_sources = data.pop("sources", {})
    length = data.get("sequence_length", _CPU_LENGTH)
    if is_new or (shape is not None and length > shape.max_position_embeddings):
        _set_lengths(draft, shape)
    if model is not None and model.end_of_document is not None:
        draft.set("data.end_of_document", *model.end_of_document)
    if (domain or general) and (is_new or "evaluation_document_tokens" not in data):
        length = min(DOCUMENT_TOKENS, data.get("sequence_length", DOCUMENT_TOKENS))
        why = "evaluation sets see more in many short documents than in few long ones"
        draft.set("data.evaluation_document_tokens", length, why)
    if draft.trains:
        data.setdefault("replay_fraction", 0.15)  # it stands before the sources
    cleaning = {k: v for s in (*domain, *general) for k, v in s.cleaning.items()}
    for key, (value, why) in cleaning.items():
        draft.set(f"data.cleaning.{key}", value, why)
    data["sources"] = old_sources
    for source in (*domain, *general):
        source.tokens_per_byte = _tokens_per_byte(source, tokenizer)
        _set_source(draft, source)
    _choose_seed(draft, [*domain, *general])
    if domain and draft.trains:
        _set_amounts(draft, shape, domain, general, is_new=is_new)


def _set_lengths(draft: RecipeDraft, shape: ShapeSection | None) -> None:
    usual = _GPU_LENGTH if _has_accelerator() else _CPU_LENGTH
    limit = shape.max_position_embeddings if shape is not None else usual
    why = f"the model has {limit:,} positions" if limit < usual else ""
    if draft.trains:
        draft.set("data.sequence_length", min(usual, limit), why)
    if limit < 512:
        draft.set("evaluate.window_tokens", limit, why)


def _has_accelerator() -> bool:
    from toolkit.machine import current_device

    return current_device().type != "cpu"


def _tokens_per_byte(source: DraftSource, tokenizer: Path | None) -> float:
    texts = [document.text for document in source.sample.documents[:_SAMPLED_TEXTS]]
    if tokenizer is None or not texts:
        return ASSUMED_TOKENS_PER_BYTE
    num_tokens = sum(FolderTokenizer(tokenizer).count_many(texts))
    return num_tokens / max(1, sum(len(text.encode()) for text in texts))


def _set_source(draft: RecipeDraft, source: DraftSource) -> None:
    """The source with the splits that its documents can bear."""
    key = f"data.sources.{source.name}"
    draft.set(key, dict(source.values))
    for name, why in source.reasons.items():
        draft.reasons[f"{key}.{name}"] = why
    if source.sample.why:
        return
    sets = ("training", "validation", "test") if draft.trains else ("validation", "test")
    if source.num_documents < len(sets):
        option = "--documents" if source.role == "domain" else "--general"
        raise ConfigError(
            f"{option} {', '.join(source.values['files'])}: holds {source.num_documents} "
            f"document{'s' if source.num_documents > 1 else ''}, and {len(sets)} sets are made of "
            f"it ({', '.join(sets)}); cut it into parts, such as a file for each chapter, or "
            "rows of JSONL."
        )
    has_groups = 1 < source.num_groups < source.num_documents
    fewest = _FEWEST_GROUPS if source.has_own_groups else _FEWEST_FILES
    if has_groups and source.num_groups >= fewest:
        what = "documents of one group go to one set: those held out are new to the model"
        draft.set(f"{key}.group_together", True, what)
    elif has_groups or source.num_groups == 1:
        kind = "group" if source.has_own_groups else "file"
        source.notes.append(
            f"{source.name}: its documents come from {counted(source.num_groups, kind)}, too few "
            "to hold some out; each is divided, and figures hold for more text of these alone"
        )
    num_units = _num_units(draft, source)
    wanted = _wanted_units(source, num_units)
    fraction = 0.5  # of a source that is for evaluation alone; tokens bound what is scored of it
    if draft.trains:
        most = _MOST_HELD_OUT[source.role]
        fraction = min(most, max(0.01, wanted / num_units, 1.0 / num_units))
    # Up to whole hundredths, as a person would write it; the tiny number keeps 0.07, which is a
    # little more in binary, from becoming 0.08.
    fraction = math.ceil(100.0 * fraction - 1e-9) / 100.0
    held_out: dict[str, Any] = {"fraction": fraction}
    num_documents = source.num_documents / (source.sample.seen_fraction or 1.0)
    if fraction * num_documents > 2 * wanted:  # more would take time and tell little
        held_out["max_tokens"] = 1000 * math.ceil(2 * wanted * DOCUMENT_TOKENS / 1000)
    split = {"validation": held_out, "test": dict(held_out)}
    if draft.trains:
        split = {"train": {"fraction": round(1.0 - 2.0 * fraction, 2)}, **split}
    together = "group_together" in draft.values["data"]["sources"][source.name]
    kind = "group" if together else "document"
    expected = max(1, round(fraction * num_units))
    seen = f"about {counted(expected, kind)} in each evaluation set"
    draft.set(f"{key}.split", split, _why_so_large(source, wanted, fraction * num_units, seen))


def _why_so_large(source: DraftSource, wanted: int, expected: float, seen: str) -> str:
    if source.role == "domain":
        few = "; more of them would narrow the intervals" if expected < 0.5 * wanted else ""
        return f"{seen}{few}"
    tolerance = SelectSection().general_tolerance
    if expected < 0.9 * wanted:
        return (
            f"{seen}; to show that no more than {tolerance:g} bits per byte are lost takes about "
            f"{wanted}: more general text would show smaller losses"
        )
    return f"{seen}: enough to show that no more than {tolerance:g} bits per byte are lost"


def _num_units(draft: RecipeDraft, source: DraftSource) -> int:
    """Groups or documents, whichever a hash divides, estimated for all of the source."""
    together = draft.values["data"]["sources"][source.name].get("group_together", False)
    num_seen = source.num_groups if together else source.num_documents
    return round(num_seen / (source.sample.seen_fraction or 1.0))


def _wanted_units(source: DraftSource, num_units: int) -> int:
    if source.role == "domain":
        return _DOMAIN_ITEMS
    change = expected_change(ASSUMED_SCATTER, max(num_units, 2))
    return needed_groups(change, SelectSection().general_tolerance)


def _choose_seed(draft: RecipeDraft, drafts: Sequence[DraftSource]) -> None:
    """A seed that gives every set of few documents or groups its share, where the recipe's own
    does not."""
    few = [s for s in drafts if s.sample.whole and _num_units(draft, s) <= _COUNTED_UNITS]
    if not few:
        return
    first_seed = int(draft.values.get("seed", 0))
    # The recipe's own seed first, so that it is only changed where another one is better.
    missing_by_seed: dict[int, int] = {}
    for seed in (first_seed, *range(_SEEDS)):
        missing_by_seed[seed] = sum(_missing_units(draft, source, seed) for source in few)
        if missing_by_seed[seed] == 0:
            break
    seed = min(missing_by_seed, key=lambda s: missing_by_seed[s])
    draft.values["seed"] = seed
    if seed != first_seed:
        why = "a hash divides documents; with this seed every set has its share of the few"
        draft.reasons["seed"] = why


def _missing_units(draft: RecipeDraft, source: DraftSource, seed: int) -> int:
    """By how many documents or groups the sets of a source fall short of their fractions."""
    section = SourceSection.model_validate(draft.values["data"]["sources"][source.name])
    # One entry per group: a hash divides groups, and their documents follow.
    units = {
        (size.group if section.group_together else size.id): size for size in source.sample.sizes
    }
    counts = dict.fromkeys(section.split, 0)
    for size in units.values():
        name = assign_split(Document(size.id, source.name, size.group, ""), section, seed)
        if name is not None:
            counts[name] += 1
    return sum(
        max(0, max(1, math.floor(_NEARLY * rule.fraction * len(units))) - counts[name])
        for name, rule in section.split.items()
    )


def _set_amounts(
    draft: RecipeDraft,
    shape: ShapeSection | None,
    domain: Sequence[DraftSource],
    general: Sequence[DraftSource],
    *,
    is_new: bool,
) -> None:
    """How much is trained on, at what rate, and how much is replayed."""
    tokens = {source.name: _train_tokens(draft, source) for source in (*domain, *general)}
    domain_tokens = sum(tokens[source.name] for source in domain)
    taken_tokens = domain_tokens
    sequence_length = draft.values["data"].get("sequence_length", 512)
    if is_new and shape is not None and domain_tokens:
        budget, how_long = _training_budget(shape, sequence_length)
        if budget and domain_tokens > 1.2 * budget:
            taken_tokens = budget
            for source in domain:
                # Each source gives its share of the budget: their proportions stay.
                limit = _rounded(budget * tokens[source.name] / domain_tokens)
                why = (
                    f"of about {words_of(tokens[source.name])} tokens: {how_long} of training on "
                    "this machine; remove it to train on all"
                )
                draft.set(f"data.sources.{source.name}.split.train.max_tokens", limit, why)
    general_tokens = sum(tokens[source.name] for source in general)
    if is_new:
        _set_training(draft, shape, domain_tokens, taken_tokens, sequence_length)
    _set_replay(draft, taken_tokens, general_tokens)


def _train_tokens(draft: RecipeDraft, source: DraftSource) -> float:
    """Estimated tokens of the training split."""
    if source.sample.why:
        return 0.0
    split = draft.values["data"]["sources"][source.name]["split"]
    return float(split["train"]["fraction"]) * source.all_bytes * source.tokens_per_byte


def _rounded(number: float) -> int:
    """To two digits.

    >>> _rounded(83_682.0)
    84000
    """
    return int(float(f"{number:.2g}"))


def _training_budget(shape: ShapeSection, sequence_length: int) -> tuple[float, str]:
    """Tokens that this machine trains on in the time of a first try, and that time in words."""
    from toolkit.machine import current_device, product_speeds

    kind = "cpu" if current_device().type == "cpu" else "gpu"
    speeds = product_speeds()
    seconds = _CPU_SECONDS if kind == "cpu" else _GPU_SECONDS
    flops = speeds.flops[speeds.fastest] * _REACHED[kind]
    budget = seconds * flops / training_flops(shape, sequence_length)
    return budget, f"about {seconds / 60.0:.0f} minutes"


def _set_training(
    draft: RecipeDraft,
    shape: ShapeSection | None,
    domain_tokens: float,
    taken_tokens: float,
    sequence_length: int,
) -> None:
    train = TrainSection()
    batch = 16 if _has_accelerator() else train.global_batch_size
    now = {
        "train.epochs": train.epochs,
        "train.schedule.peak_lr": train.schedule.peak_lr,
        "train.global_batch_size": batch,
        "train.micro_batch_size": train.micro_batch_size,
    }
    settings = choose_settings(
        SettingInputs(
            shift="not measured",
            domain_tokens=domain_tokens or None,
            parameters=count_parameters(shape).total if shape is not None else None,
            steps=math.ceil(taken_tokens / (sequence_length * batch)) if taken_tokens else None,
            tokens=taken_tokens or None,
            origin_tokens=None,
            lora_fits_only=False,
            pieces_ratio=None,
            is_instruct=False,
            now=now,
        )
    )
    for setting in settings:
        default = {**now, "train.global_batch_size": train.global_batch_size}[setting.key]
        always = setting.key in {"train.epochs", "train.schedule.peak_lr"}
        if always or setting.value != default:
            draft.set(setting.key, setting.value, setting.why)


def _set_replay(draft: RecipeDraft, domain_tokens: float, general_tokens: float) -> None:
    data = draft.values["data"]
    roles = {section.get("role") for section in data["sources"].values()}
    key = "data.replay_fraction"
    if "general" not in roles:
        draft.set(
            key,
            0.0,
            "no general text was given (--general): nothing is replayed, and what fades shows in "
            "the model's own answers alone (evaluate.retention)",
        )
        return
    wanted = data["replay_fraction"]
    if not general_tokens:
        return
    # A tenth is left to the error of the estimate: the data stage refuses what runs out.
    supply = 0.9 * general_tokens * data.get("max_repeats", 4.0)
    most = supply / (supply + max(domain_tokens, 1.0))
    if most < wanted:
        least = math.floor(100.0 * most) / 100.0
        why = (
            f"as much as about {words_of(general_tokens)} tokens of general text allow, repeated "
            "four times; 0.15 with more of it"
        )
        draft.set(key, least, why)
    else:
        why = (
            "0.05 to 0.25 has been shown to work, by how far the domain lies (Ibrahim et al. 2024)"
        )
        draft.set(key, wanted, why)
