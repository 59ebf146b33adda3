"""Settings that follow from what was measured, each with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.plan.verdict import Shift, needed_tokens, words_of, worth_of_repeats
from toolkit.recipe.schema import Recipe

SHORT_SHARE = 1e-3
"""A run of less than this share of the first training is short (a judgment)."""

FEW_STEPS = 50
"""A run of fewer optimizer steps has hardly a schedule."""

RESIDUAL_LEAST_PARAMETERS = 1.5e9
"""Adding a base model's change to its instruct model is said to fail up to this size."""


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        key: place in the recipe, with dots.
        value: plain YAML value that the rule wants.
        now: the recipe's own value.
        why: reason with its source, one sentence.
    """

    key: str
    value: Any
    now: Any
    why: str

    @property
    def changes(self) -> bool:
        return bool(self.value != self.now)


_REPLAY: dict[Shift, tuple[float, str]] = {
    "strong": (0.25, "25 % for a strong shift (Ibrahim et al. 2024: Pile to German)"),
    "weak": (0.05, "5 % for a weak shift (Ibrahim et al. 2024: Pile to SlimPajama)"),
    "unclear": (0.15, "between 5 % (weak shift) and 25 % (strong; Ibrahim et al. 2024)"),
    "not measured": (0.15, "the shift was not measured: between 5 and 25 % (Ibrahim et al. 2024)"),
}

_PEAKS: tuple[tuple[float, float, str], ...] = (
    # Up to so many parameters, the rate, and who used it.
    (1e9, 2e-4, "measured on SmolLM2-135M (dev/LOG.md, replay by learning rate: 5e-5 learns less, "
                "8e-4 destroys)"),
    (2e10, 3e-4, "Code Llama 7B and 13B, Meditron 7B, all over tens of billions of tokens"),
    (math.inf, 1.5e-4, "Code Llama 34B and Meditron 70B"),
)  # fmt: skip

_LEAST_SHARE = 20.0
"""A peak so many times lower than the published one is left alone: those were for base models over
billions of tokens, and an instruct model or a short run may want less."""


@dataclass(frozen=True)
class SettingInputs:
    """What the rules for settings look at; None where it is not known.

    Attributes:
        shift: measured distance of the domain from general text.
        domain_tokens: domain text without duplicates.
        parameters: number of parameters of the model.
        steps: optimizer steps of one epoch under the recipe as it is.
        tokens: targets of one epoch, replay included.
        origin_tokens: tokens of the model's first training.
        lora_fits_only: full training does not fit the named devices and adapters do.
        pieces_ratio: tokens per word of the domain, over those of general text.
        is_instruct: whether the general model has a chat template.
        now: the recipe's own values by key; a key that is missing is left alone.
        epochs: those of the recipe as it is.
    """

    shift: Shift
    domain_tokens: float | None
    parameters: float | None
    steps: int | None
    tokens: float | None
    origin_tokens: float | None
    lora_fits_only: bool
    pieces_ratio: float | None
    is_instruct: bool
    now: Mapping[str, Any]
    epochs: int = 1


class _Rule(NamedTuple):
    """What one rule wants of a setting, and why."""

    key: str
    value: Any
    why: str


def choose_settings(inputs: SettingInputs) -> list[Setting]:
    """Settings by rule, of those that the recipe has."""
    rules: list[_Rule] = [_Rule("data.replay_fraction", *_REPLAY[inputs.shift])]
    epochs = inputs.epochs
    # Of a curriculum, whose amounts are its own, no epochs are proposed that could be counted with.
    if inputs.domain_tokens is not None and "train.epochs" in inputs.now:
        epochs, why = _choose_epochs(inputs.domain_tokens, inputs.parameters)
        rules.append(_Rule("train.epochs", epochs, why))
    schedule_rule = _choose_schedule(inputs, epochs)
    rules.append(schedule_rule)
    num_steps = (inputs.steps or 0) * epochs
    # The rate of `minimum` is the first training's last one, and it has no warm-up.
    if schedule_rule.value != "minimum":
        rules += _choose_rates(inputs, num_steps)
    rules += _choose_step_size(inputs, num_steps)
    if inputs.lora_fits_only:
        why = "full training does not fit the named devices, adapters do; rank 256"
        rules.append(_Rule("train.lora", {"rank": 256}, f"{why} (Biderman et al. 2024)"))
    rules += _choose_new_tokens(inputs)
    rules += _choose_start(inputs)
    current_values = inputs.now
    return [
        Setting(key, value, current_values[key], why)
        for key, value, why in rules
        if key in current_values
    ]


def _choose_epochs(tokens: float, parameters: float | None) -> tuple[int, str]:
    least_tokens = needed_tokens(parameters).least
    if tokens >= least_tokens:
        return 1, f"{words_of(tokens)} tokens are enough to see each once"
    epochs = next((n for n in (2, 3, 4) if worth_of_repeats(tokens, n) >= least_tokens), 4)
    worth_words = words_of(worth_of_repeats(tokens, epochs))
    # So far below the least, repeats would cost more in forgetting than they teach.
    if worth_of_repeats(tokens, 4.0) < least_tokens / 10.0:
        return 1, (
            f"{words_of(tokens)} tokens are too few for repeats to make up for it (four epochs "
            f"are worth {worth_words}; Muennighoff et al. 2023): see them once and forget less"
        )
    return epochs, (
        f"{epochs} epochs are worth {worth_words} tokens of new text; beyond four the worth falls "
        "off (Muennighoff et al. 2023)"
    )


def _choose_schedule(inputs: SettingInputs, epochs: int) -> _Rule:
    key, current_kind = "train.schedule.kind", str(inputs.now.get("train.schedule.kind", "cosine"))
    usual_reason = "re-warm and cosine re-decay (Ibrahim et al. 2024; Gupta et al. 2023)"
    if current_kind in {"infinite", "wsd", "constant"}:
        return _Rule(
            key,
            current_kind,
            f"holds a rate from which training can go on; where it will not, {usual_reason}",
        )
    is_short = bool(
        inputs.tokens
        and inputs.origin_tokens
        and epochs * inputs.tokens < SHORT_SHARE * inputs.origin_tokens
    )
    if not is_short:
        return _Rule(key, "cosine", usual_reason)
    if current_kind == "minimum":
        return _Rule(
            key,
            current_kind,
            "no warm-up, from the first training's last rate, for so short a run (Parmar et al. "
            f"2024); the alternative is {usual_reason}",
        )
    return _Rule(
        key,
        "cosine",
        f"{usual_reason}; for so short a run `minimum`, without warm-up from the first training's "
        "last rate, is the alternative (Parmar et al. 2024)",
    )


def _choose_rates(inputs: SettingInputs, num_steps: int) -> Iterator[_Rule]:
    """The peak learning rate, and how long it is warmed up to."""
    if inputs.parameters is not None:
        peak_rate, source = next((r, why) for most, r, why in _PEAKS if inputs.parameters <= most)
        if inputs.lora_fits_only or inputs.now.get("train.lora") is not None:
            peak_rate *= 10.0 if inputs.parameters > 1e9 else 5.0
            source += (
                "; adapters take about ten times the rate (Biderman et al. 2024), here less "
                "where the model is small"
            )
        current_rate = inputs.now.get("train.schedule.peak_lr", peak_rate)
        # A rate that works is left alone: nothing measured here speaks for changing it.
        if peak_rate / _LEAST_SHARE <= current_rate <= peak_rate:
            source = f"within what is known to work, up to {peak_rate:.2g}: {source}"
            peak_rate = current_rate
        # Three digits, as products of such numbers are written to a recipe.
        yield _Rule("train.schedule.peak_lr", float(f"{peak_rate:.3g}"), source)
    warmup_fraction = inputs.now.get("train.schedule.warmup_fraction", 0.0)
    if not 0.005 <= warmup_fraction <= 0.03:
        warmup_fraction = 0.01 if num_steps >= 1000 else 0.02
    why = "1 to 3 % of the steps; its length hardly matters (Gupta et al. 2023)"
    yield _Rule("train.schedule.warmup_fraction", warmup_fraction, why)


def _choose_step_size(inputs: SettingInputs, num_steps: int) -> Iterator[_Rule]:
    """Fewer blocks in a step where there would hardly be a schedule."""
    global_batch_size = inputs.now.get("train.global_batch_size", 1)
    if inputs.steps is None or not 0 < num_steps < FEW_STEPS or global_batch_size <= 1:
        return
    fewer_blocks = max(1, global_batch_size * num_steps // FEW_STEPS)
    why = f"{num_steps} steps are few; smaller steps give at least about {FEW_STEPS}"
    yield _Rule("train.global_batch_size", fewer_blocks, why)
    micro_batch_size = min(fewer_blocks, inputs.now.get("train.micro_batch_size", fewer_blocks))
    yield _Rule("train.micro_batch_size", micro_batch_size, "no more than a step has")


def _choose_new_tokens(inputs: SettingInputs) -> Iterator[_Rule]:
    pieces_ratio, domain_tokens = inputs.pieces_ratio, inputs.domain_tokens or 0.0
    if pieces_ratio is not None and pieces_ratio >= 1.3 and domain_tokens >= 1e7:
        why = (
            f"domain words fall into {pieces_ratio:.2f} times as many pieces, and there is text "
            "to learn new ones from"
        )
        yield _Rule("tokenizer", {"new_tokens": 1000}, why)


def _choose_start(inputs: SettingInputs) -> Iterator[_Rule]:
    """Whether training starts from the base model under an instruct one; never changed by rule,
    since which model is the base is the user's to say."""
    current_start = inputs.now.get("train.start")
    if not inputs.is_instruct and current_start is None:
        return
    source = "Jindal et al. 2024, arXiv 2410.10739; not measured here"
    small_note = "at up to 1.5B parameters it is said to fail"
    is_small = inputs.parameters is not None and inputs.parameters <= RESIDUAL_LEAST_PARAMETERS
    if current_start is not None:
        why = f"what is trained into {current_start} is added to the instruct model ({source})"
        yield _Rule("train.start", current_start, f"{why}; {small_note}" if is_small else why)
    elif is_small:
        why = f"training its base and adding the change is the other way; {small_note} ({source})"
        yield _Rule("train.start", None, why)
    else:
        yield _Rule(
            "train.start",
            None,
            "the model is an instruct one: where its base can be had, name it under models: as "
            "base, set start: base, and let both ways be measured; adding the base's change to the "
            f"instruct model forgot less than training the instruct model ({source})",
        )


def current_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own values of the settings that there are rules for."""
    train = recipe.train
    values: dict[str, Any] = {
        "train.schedule.kind": train.schedule.kind,
        "train.schedule.peak_lr": train.schedule.peak_lr,
        "train.schedule.warmup_fraction": train.schedule.warmup_fraction,
        "train.global_batch_size": train.global_batch_size,
        "train.micro_batch_size": train.micro_batch_size,
        "train.lora": train.lora.model_dump() if train.lora is not None else None,
        "train.start": train.start,
        "tokenizer": recipe.tokenizer.model_dump() if recipe.tokenizer is not None else None,
    }
    if not recipe.data.stages:  # a curriculum has shares and amounts of its own
        values["train.epochs"] = train.epochs
        if "general" in recipe.data.roles:
            values["data.replay_fraction"] = recipe.data.replay_fraction
    return values


def sft_advice(cpt_tokens: float | None) -> str:
    """How much fine-tuning, in a sentence."""
    published_amount = (
        "the published optimum gave it about 2M tokens beside 30B of CPT at 7B parameters"
    )
    if cpt_tokens is None or cpt_tokens < 1e9:
        return f"thousands of good conversations, up to 2M tokens: {published_amount}; not a rule"
    tokens = words_of(max(2e6, cpt_tokens * 1e-4))
    return f"about {tokens} tokens: {published_amount} (0.01 %); not a rule"
