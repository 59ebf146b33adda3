"""Settings that follow from what was measured, each with where it comes from.

A ready recipe: the old one with other settings, each with a comment that says why.
"""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from toolkit.plan.verdict import Shift, needed_tokens, words_of, worth_of_repeats

SHORT_SHARE = 1e-3
"""A run of less than this share of the first training is short (a judgment)."""

FEW_STEPS = 50
"""A run of fewer optimizer steps has hardly a schedule."""


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        key: where it stands, with dots.
        value: plain YAML value.
        now: the recipe's own.
        why: the reason with its source, one sentence.
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


def choose_settings(
    *,
    shift: Shift,
    domain_tokens: float | None,
    parameters: float | None,
    steps: int | None,
    tokens: float | None,
    origin_tokens: float | None,
    lora_fits_only: bool,
    pieces_ratio: float | None,
    now: dict[str, Any],
) -> list[Setting]:
    """Settings by rule.

    Args:
        shift: measured.
        domain_tokens: of domain text without duplicates; None where unknown.
        parameters: of the model.
        steps: optimizer steps of one epoch under the recipe as it is.
        tokens: targets of one epoch, replay included.
        origin_tokens: of the first training.
        lora_fits_only: full training does not fit the named devices and adapters do.
        pieces_ratio: tokens a word, domain over general.
        now: the recipe's own values by key; a key that is missing is left alone.
    """
    found: list[Setting] = []

    def want(key: str, value: Any, why: str) -> None:
        if key in now:
            found.append(Setting(key, value, now[key], why))

    share, why = _REPLAY[shift]
    want("data.replay_fraction", share, why)
    epochs = 1
    if domain_tokens is not None:
        epochs, why = _epochs(domain_tokens, parameters)
        want("train.epochs", epochs, why)
    is_short = bool(tokens and origin_tokens and epochs * tokens < SHORT_SHARE * origin_tokens)
    kind, why = _schedule(str(now.get("train.schedule.kind", "cosine")), is_short)
    want("train.schedule.kind", kind, why)
    if kind == "minimum":  # its rate is the first training's last one, and it has no warm-up
        now = {k: v for k, v in now.items() if k not in _RATES}
    if parameters is not None:
        rate, source = next((r, s) for most, r, s in _PEAKS if parameters <= most)
        if lora_fits_only or now.get("train.lora") is not None:
            rate *= 10.0 if parameters > 1e9 else 5.0
            source += "; adapters take about ten times the rate (Biderman et al. 2024), here less "
            source += "where the model is small"
        own = now.get("train.schedule.peak_lr", rate)
        if rate / _LEAST_SHARE <= own <= rate:
            source = f"within what is known to work, up to {rate:.2g}: {source}"
            rate = own
        want("train.schedule.peak_lr", float(f"{rate:.3g}"), source)
    total = (steps or 0) * epochs
    rewarm = now.get("train.schedule.warmup_fraction", 0.0)
    if not 0.005 <= rewarm <= 0.03:
        rewarm = 0.01 if total >= 1000 else 0.02
    want("train.schedule.warmup_fraction", rewarm, "1 to 3 % of the steps; its length hardly "
         "matters (Gupta et al. 2023)")  # fmt: skip
    if steps is not None and 0 < total < FEW_STEPS and now.get("train.global_batch_size", 1) > 1:
        fewer = max(1, now["train.global_batch_size"] * total // FEW_STEPS)
        want("train.global_batch_size", fewer, f"{total} steps are few; smaller steps give at "
             f"least about {FEW_STEPS}")  # fmt: skip
        want("train.micro_batch_size", min(fewer, now.get("train.micro_batch_size", fewer)),
             "no more than a step has")  # fmt: skip
    if lora_fits_only:
        want("train.lora", {"rank": 256}, "full training does not fit the named devices, adapters "
             "do; rank 256 (Biderman et al. 2024)")  # fmt: skip
    if pieces_ratio is not None and pieces_ratio >= 1.3 and (domain_tokens or 0.0) >= 1e7:
        want("tokenizer", {"new_tokens": 1000}, f"domain words fall into {pieces_ratio:.2f} times "
             "as many pieces, and there is text to learn new ones from")  # fmt: skip
    return found


_RATES = ("train.schedule.peak_lr", "train.schedule.warmup_fraction")


def _schedule(own: str, is_short: bool) -> tuple[str, str]:
    known = "re-warm and cosine re-decay (Ibrahim et al. 2024; Gupta et al. 2023)"
    if own in {"infinite", "wsd", "constant"}:
        return own, f"holds a rate from which training can go on; where it will not, {known}"
    if not is_short:
        return "cosine", known
    if own == "minimum":
        return own, (
            "no warm-up, from the first training's last rate, for so short a run (Parmar et al. "
            f"2024); the alternative is {known}"
        )
    return "cosine", (
        f"{known}; for so short a run `minimum`, without warm-up from the first training's last "
        "rate, is the alternative (Parmar et al. 2024)"
    )


def _epochs(tokens: float, parameters: float | None) -> tuple[int, str]:
    least, _ = needed_tokens(parameters)
    if tokens >= least:
        return 1, f"{words_of(tokens)} tokens are enough to see each once"
    epochs = next((n for n in (2, 3, 4) if worth_of_repeats(tokens, n) >= least), 4)
    worth = words_of(worth_of_repeats(tokens, epochs))
    if worth_of_repeats(tokens, 4.0) < least / 10.0:
        return 1, (
            f"{words_of(tokens)} tokens are too few for repeats to make up for it (four epochs "
            f"are worth {worth}; Muennighoff et al. 2023): see them once and forget less"
        )
    return epochs, (
        f"{epochs} epochs are worth {worth} tokens of new text; beyond four the worth falls off "
        "(Muennighoff et al. 2023)"
    )


def sft_advice(cpt_tokens: float | None) -> str:
    """How much fine-tuning, in a sentence."""
    known = "the published optimum gave it about 2M tokens beside 30B of CPT at 7B parameters"
    if cpt_tokens is None or cpt_tokens < 1e9:
        return f"thousands of good conversations, up to 2M tokens: {known}; not a rule"
    return f"about {words_of(max(2e6, cpt_tokens * 1e-4))} tokens: {known} (0.01 %); not a rule"


_WIDTH = 100


def recipe_text(values: dict[str, Any], settings: Sequence[Setting], opening: Sequence[str]) -> str:
    """YAML of a recipe under other settings.

    Args:
        values: the recipe as it was read from its file.
        settings: what to set; those that agree with it get their comment too.
        opening: comment lines for its top.

    >>> print(recipe_text({"train": {"epochs": 1}}, [Setting("train.epochs", 2, 1, "more")], []))
    train:
      # more
      epochs: 2
    <BLANKLINE>
    """
    changed = copy.deepcopy(values)
    reasons: dict[str, str] = {}
    for setting in settings:
        _set(changed, setting.key.split("."), setting.value)
        reasons[setting.key] = setting.why
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=_WIDTH)
    lines = [line for words in opening for line in _comment(words, "")]
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        body = line.lstrip()
        indent = len(line) - len(body)
        key, colon, _ = body.partition(":")
        if colon and not body.startswith(("- ", "#")):
            path = [*(item for item in path if item[0] < indent), (indent, key.strip("'\""))]
            why = reasons.pop(".".join(name for _, name in path), None)
            if why is not None:
                lines += _comment(why, " " * indent)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _comment(words: str, indent: str) -> list[str]:
    return textwrap.wrap(
        words, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
