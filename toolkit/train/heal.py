"""Repair by distillation: a model is drawn back to the general one on conversations.

Round by round it learns some conversations and is looked at as it would be stored. A round that
gives back too much of what was to be kept, or brings nothing, is undone and ends the healing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.checkpoint.training_state import (
    StateWriter,
    latest_step,
    load_parameters,
    load_state,
)
from toolkit.progress import Advance, progress, say
from toolkit.train.config import HealSection
from toolkit.train.fuse import unfuse
from toolkit.train.heap import keep_freed_memory
from toolkit.train.loop import optimizer_step
from toolkit.train.metrics import METRICS, MetricsLog
from toolkit.train.packing_probe import settle_packing
from toolkit.train.precision import settle_precision
from toolkit.train.self_distillation import Conversation, SelfDistillation
from toolkit.train.setup import TrainingSetup, set_up_training
from toolkit.train.trainable import plain_model

_WARM_UP_STEPS = 5
"""Steps in which the learning rate rises: the first moments of Adam are of one step alone."""

Ending = str
"""Why healing ended, for people; empty while it goes on."""


@dataclass(frozen=True)
class HealLook:
    """What the validation sets say of the model as it would be stored.

    Attributes:
        given_back: fraction of the domain gain that is lost again; below 0 where more is gained.
        excess: how far the bounds of general sets are beyond what they may lose, summed over the
            sets that are beyond; 0 where none is.
        figures: figure of each set.
    """

    given_back: float
    excess: float
    figures: Mapping[str, float]


@dataclass
class HealState:
    """What continues a healing.

    Attributes:
        num_rounds: rounds that were kept.
        step: optimizer steps of these.
        num_tokens: tokens that were learned from in these.
        looks: before the first round, and after each; the last may be of a round that was undone.
        ending: why it ended.
    """

    num_rounds: int = 0
    step: int = 0
    num_tokens: int = 0
    looks: list[HealLook] = field(default_factory=list)
    ending: Ending = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the training state and the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HealState:
        """The state in a `state.json`."""
        looks = [HealLook(**look) for look in values["looks"]]
        plain = {key: values[key] for key in ("num_rounds", "step", "num_tokens", "ending")}
        return cls(looks=looks, **plain)


def heal_model(
    model: Any,
    section: HealSection,
    rounds: Iterator[list[Conversation]],
    first_look: HealLook,
    look: Callable[[Any], HealLook],
    *,
    seed: int,
    work: Path,
) -> HealState:
    """Heal a model in place.

    Args:
        model: a causal language model with float32 parameters, as from `prepare_model`.
        section: settings.
        rounds: conversations of every round, from the first on; one is asked for when the model is
            as the round before left it. Those of rounds that were done before are passed over.
        first_look: what is known of the model as it is given.
        look: scores the model.
        seed: the same seed gives the same run, resumed or not.
        work: folder of metrics and of the states to resume from.

    Returns:
        What was done; the model is as the last round that was kept left it.
    """
    setup = set_up_training(model, settle_precision(section.as_training()), work)
    longest = section.as_distillation().tokens_per_step // 2
    settle_packing(setup.loss_module, setup.plain_loss, longest, setup.accelerator)
    writer = StateWriter(work)
    saved_step = latest_step(work)
    if saved_step is None:
        state = HealState(looks=[first_look])
        _say_look(state)
        state.ending = _ending_of(state, section)
        # What the first round goes back to if it is undone.
        writer.save(0, model, setup.optimizer, state.to_json())
    else:
        state = HealState.from_json(load_state(work, saved_step, model, setup.optimizer))
    left_rounds = islice(rounds, state.num_rounds, None)
    with (
        keep_freed_memory(),
        MetricsLog(work / METRICS, keep_steps=state.step) as metrics,
        progress("healing, tokens", section.num_tokens, done=state.num_tokens) as advance,
    ):
        while not state.ending:
            conversations = next(left_rounds, None)
            if conversations is None:
                state.ending = "there are no more conversations"
                break
            before = state.to_json()
            _learn_round(setup, section, conversations, state, metrics, advance, seed)
            state.looks.append(look(model))
            _say_look(state)
            state.ending = _ending_of(state, section)
            if _is_undone(state, section):
                writer.wait()
                # The state before the round is the last one saved, once the thread has written it.
                # Moments are not put back: an undone round ends the healing.
                load_parameters(work, before["step"], model)
                state.num_rounds, state.step = before["num_rounds"], before["step"]
                state.num_tokens = before["num_tokens"]
            else:
                writer.save(state.step, model, setup.optimizer, state.to_json())
    writer.wait()
    if setup.plain_loss.fused:
        unfuse(plain_model(model))
    return state


def _learn_round(
    setup: TrainingSetup,
    section: HealSection,
    conversations: list[Conversation],
    state: HealState,
    metrics: MetricsLog,
    advance: Advance,
    seed: int,
) -> None:
    """One pass over some conversations."""
    distillation = SelfDistillation(
        section.as_distillation(), conversations, seed, reverse=section.policy == "on"
    )
    for step_of_round in range(len(distillation.bundles)):
        rate = section.learning_rate * min(1.0, (state.step + 1) / _WARM_UP_STEPS)
        # Each round has conversations of its own, whose places are counted from its beginning.
        outcome = optimizer_step(
            setup, None, rate, seed=seed, step=step_of_round, distillation=distillation
        )
        num_tokens = distillation.row(step_of_round).num_targets
        state.step, state.num_tokens = state.step + 1, state.num_tokens + num_tokens
        divergence = outcome.divergence if outcome.is_finite else None
        metrics.write(
            step=state.step,
            loss=divergence,
            learning_rate=rate,
            gradient_norm=outcome.gradient_norm if outcome.is_finite else None,
            tokens=num_tokens,
        )
        advance(num_tokens, f"divergence {outcome.divergence:.3f}")
    state.num_rounds += 1


def _gives_back_too_much(state: HealState, section: HealSection) -> bool:
    return len(state.looks) > 1 and state.looks[-1].given_back > section.give_back


def _brings_nothing(state: HealState) -> bool:
    return len(state.looks) > 1 and state.looks[-1].excess >= state.looks[-2].excess


def _is_undone(state: HealState, section: HealSection) -> bool:
    return _gives_back_too_much(state, section) or _brings_nothing(state)


def _ending_of(state: HealState, section: HealSection) -> Ending:
    """Why healing ends after the last look; empty where it goes on."""
    if _gives_back_too_much(state, section):
        return f"the next round gave back more than {section.give_back:.1%} of the domain gain"
    if _brings_nothing(state):
        return "the next round brought nothing on general sets"
    if state.looks[-1].excess <= 0.0:
        return "general sets are shown to be within what they may lose"
    if state.num_tokens >= section.num_tokens:
        return "all tokens were learned from"
    return ""


def _say_look(state: HealState) -> None:
    now = state.looks[-1]
    figures = ", ".join(f"{name} {figure:.4f}" for name, figure in now.figures.items())
    say(f"  round {len(state.looks) - 1}: {figures}; {now.given_back:.1%} of the gain given back")
