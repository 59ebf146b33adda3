"""The heal stage: a merge or a specialist drawn back to the general model by distillation.

merge (or cpt) ─► heal        beside the other stages of a run

The validation sets end it; the test sets are scored once, after it. What it leaves is a model like
any other: it can be asked, named as the specialist of a recipe, merged and published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.training_state import state_names
from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.cache import ScoreCache, candidate_hash
from toolkit.evaluate.config import identity_of_evaluation
from toolkit.evaluate.input_hashes import evaluation_inputs
from toolkit.evaluate.load import load_sets, refuse_overlap, refuse_too_few
from toolkit.evaluate.sets import EvaluationSet
from toolkit.generate.chat_model import Speaker, load_speaker
from toolkit.machine import dtype_of
from toolkit.pipeline.merge_search import (
    build_objective,
    cache_file,
    hash_of_test,
    set_weights,
    with_scoring_precision,
)
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_data, ensure_general, ensure_specialist
from toolkit.pipeline.own_conversations import ensure_conversations, retention_texts, write_blocks
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.search.candidate_scorer import device_of
from toolkit.search.config import RaceSection
from toolkit.search.objective import Losses
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.section import parse_section
from toolkit.select.config import identity_of_selection
from toolkit.select.ledger import LEDGER, TestLedger
from toolkit.select.results import FiguresByModel, ResultPart
from toolkit.select.test_figures import MERGE, FinalFigures, ScoredTestSets, final_figures
from toolkit.stage import Stage, content_hash, hash_json, load_json, write_json
from toolkit.statistics.interval import Interval
from toolkit.train.config import HealSection
from toolkit.train.heal import HealLook, HealState, heal_model
from toolkit.train.processes import num_processes
from toolkit.train.self_distillation import CONVERSATIONS, Conversation, load_conversations
from toolkit.train.trainable import finished_model, prepare_model

HEALED = "heal.json"
_SOURCE = "source"
_ROUNDS = 6
"""Rounds that the tokens of stored conversations are learned in."""


class HealedShares(ResultPart):
    """What a model keeps of the specialist's gain on the test sets, and has recovered of its loss;
    None where the specialist's own is not shown."""

    gain_kept: Interval | None
    loss_recovered: dict[str, Interval | None]
    """By general set."""


class HealResults(ResultPart):
    """What a heal stage found: `heal.json`."""

    recipe: str
    source: str
    policy: str

    num_rounds: int
    """Rounds that were kept."""

    num_tokens: int
    """Tokens that were learned from in these."""

    seconds: float
    """Since it was last started."""

    ending: str

    given_back: float
    """Fraction of the domain gain on the validation sets that the kept rounds gave back."""

    models: FiguresByModel
    """Figures on the test sets; `merge` is the healed model."""

    before: HealedShares
    after: HealedShares
    test_scorings: int


@dataclass(frozen=True)
class HealInputs:
    """What a heal stage is made from.

    Attributes:
        run: run of the recipe, which has a section `heal`.
        section: that section.
        source: folder of the model that is healed.
        general: folder of the general model.
        specialist: folder of the specialist.
        data: folder of the data stage.
        conversations: folder of stored conversations; None where the model answers itself.
    """

    run: Run
    section: HealSection
    source: Path
    general: Path
    specialist: Path
    data: Path
    conversations: Path | None


def ensure_heal(run: Run, *, score_test_again: bool = False) -> Path:
    """The heal stage of a recipe.

    Args:
        run: run of the recipe.
        score_test_again: whether the test documents may be scored for another healing.

    Raises:
        ConfigError: the recipe has no section `heal`.
        EvaluationError: the model has no gain to keep, or test documents were scored before.
    """
    section = run.recipe.heal
    if section is None:
        raise ConfigError(
            f"{run.name}: the recipe has no section heal; give it one, such as `heal: {{source: "
            "merge}` (all of its keys have defaults)."
        )
    if num_processes() > 1:
        raise ConfigError("toolkit heal: works in one process; start it without a launcher.")
    general, specialist = ensure_general(run), ensure_specialist(run)
    source = ensure_merge(run) if section.source == "merge" else specialist
    conversations = None
    if section.policy == "off":
        writing = section.as_distillation()
        conversations = ensure_conversations(run, general, writing, "heal-conversations")
    inputs = HealInputs(run, section, source, general, specialist, ensure_data(run), conversations)
    stage = heal_stage(inputs)

    def heal() -> None:
        run_heal(inputs, stage, score_test_again=score_test_again)

    return run.ensure(stage, "heal", heal)


def heal_stage(inputs: HealInputs) -> Stage:
    """The heal stage of these inputs, as it would be identified."""
    recipe = inputs.run.recipe
    folders = {
        GENERAL: inputs.general,
        SPECIALIST: inputs.specialist,
        _SOURCE: inputs.source,
        **({} if inputs.conversations is None else {"conversations": inputs.conversations}),
    }
    return inputs.run.stage(
        "heal",
        {
            "heal": inputs.section.model_dump(mode="json"),
            "evaluate": identity_of_evaluation(recipe.evaluate),
            "select": identity_of_selection(recipe.select),
            "weights": recipe.search.weights,
            "leave_out": sorted(retention_texts(recipe.evaluate)),
        },
        {
            **{name: fingerprint(folder) for name, folder in folders.items()},
            "data": content_hash(inputs.data),
            **evaluation_inputs(recipe.evaluate),
        },
    )


def run_heal(inputs: HealInputs, stage: Stage, *, score_test_again: bool = False) -> HealResults:
    """Heal a model, score it on the test sets, and write both.

    Args:
        inputs: what it is made from.
        stage: the heal stage.
        score_test_again: whether the test documents may be scored for another healing.
    """
    section, seed, began = inputs.section, stage.seed, time.monotonic()
    recipe = with_scoring_precision(inputs.run.recipe, inputs.general)
    validation, test = (
        load_sets(recipe.evaluate, inputs.data, inputs.general, split)
        for split in ("validation", "test")
    )
    refuse_overlap(validation, test)
    refuse_too_few(validation, test)
    ledger = TestLedger(
        stage.folder.with_name(LEDGER),
        hash_of_test(test),
        # A study of its own: scoring a merge of the same models is no earlier look of this one.
        {f"heal/{key}": stage.inputs[key] for key in (GENERAL, SPECIALIST, _SOURCE)},
    )
    name = f"heal {section.policy}-policy"
    if ledger.earlier(_choice(stage)) is not None:  # refused before anything is computed
        ledger.begin(_choice(stage), name, again=score_test_again)
    scores = ScoreCache(cache_file(stage))
    with stage.running() as work:
        # Two copies: one learns in float32, the other is what would be stored of it, and is scored
        # and asked. Updates are too small for the stored type to add up.
        student = _load_student(inputs.source, dtype_of(recipe.evaluate.precision))
        model = prepare_model(
            load_causal_model(inputs.source, torch.float32), section.as_training()
        )
        # Scores the models that nothing changes, and refuses one without a gain, before anything
        # is learned.
        examiner = Examiner(recipe, inputs, stage, validation, student, scores)
        state = heal_model(
            model,
            section,
            _rounds(inputs, stage, work, student, lambda: examiner.take(model)),
            examiner.look_at_source(),
            examiner.look,
            seed=seed,
            work=work,
        )
        # A last round that is not kept was undone in the model alone; the student still holds it.
        examiner.take(model)
        ledger.begin(_choice(stage), name, again=score_test_again)
        # The merge stage has scored the general model and the specialist here: the cache has them.
        final = _score_test(inputs, stage, recipe, test, student, scores)
        save_model(
            finished_model(model), work, dtype=stored_dtype(inputs.general), like=inputs.source
        )
        results = _collect(inputs, state, final, ledger.count, time.monotonic() - began)
        write_json(work / HEALED, results.model_dump(mode="json"))
        parts = tuple(path.name for path in work.glob("part-*"))
        stage.finish(state.to_json(), drop=(*state_names(work), *parts))
    return results


def _choice(stage: Stage) -> str:
    return hash_json(stage.identity())


def _load_student(source: Path, dtype: torch.dtype) -> Speaker:
    """A copy of the model that learns, as it would be stored: it answers and is scored."""
    student = load_speaker(source)
    return replace(student, model=student.model.to(device=device_of(0), dtype=dtype))


def _rounds(
    inputs: HealInputs, stage: Stage, work: Path, student: Speaker, take: Callable[[], None]
) -> Iterator[list[Conversation]]:
    """Conversations of every round.

    Args:
        inputs: what the stage is made from.
        stage: the heal stage.
        work: folder that it works in.
        student: the model that answers.
        take: makes the student what the model is now; of a killed healing that continues it was not
            scored since.
    """
    if inputs.conversations is not None:
        stored = load_conversations(inputs.conversations / CONVERSATIONS)
        yield from _cut_rounds(stored, inputs.section.num_tokens)
        return
    prompts = retention_texts(inputs.run.recipe.evaluate)
    writing = inputs.section.as_distillation()
    blocks = write_blocks(writing, stage.seed, work, inputs.general, prompts, student)
    while True:
        # Before a block is asked for: on-policy, it is answered by the model as it is by now.
        take()
        if (block := next(blocks)).conversations:
            yield block.conversations


def _cut_rounds(
    conversations: Sequence[Conversation], num_tokens: int
) -> Iterator[list[Conversation]]:
    """Conversations in rounds of about as many tokens each, so many that a few look at it all."""
    one_round: list[Conversation] = []
    for conversation in conversations:
        one_round.append(conversation)
        # One entry per token that is learned from; what stands before the answer does not count.
        if sum(len(one.teacher.rest_logs) for one in one_round) >= num_tokens / _ROUNDS:
            yield one_round
            one_round = []
    if one_round:
        yield one_round


class Examiner:
    """Scores a model that heals on the validation sets, beside the general model and its source.

    Args:
        recipe: the recipe, with the scoring precision settled.
        inputs: what the stage is made from.
        stage: the heal stage.
        validation: validation sets.
        student: where the model is scored.
        scores: cache of scores.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: HealInputs,
        stage: Stage,
        validation: Sequence[EvaluationSet],
        student: Speaker,
        scores: ScoreCache,
    ) -> None:
        self._objective = build_objective(recipe, validation, RaceSection(enabled=False))
        self._fraction = inputs.section.tolerance_fraction
        self._stored = stored_dtype(inputs.general)
        self._student, self._scores, self._stage = student, scores, stage
        general = _load_lazily(inputs.general, student)
        # Under the name that a search gives it, so that its scores are found in the cache.
        self._general = self._score(general, _name_of(GENERAL, stage))
        self._source = self._score(lambda: student.model, _name_of(_SOURCE, stage))
        self._gain = -self._change(self._source, self._general)
        # Everything below is a fraction of this gain.
        if self._gain <= 0.0:
            raise EvaluationError(
                f"{inputs.source}: is no better than the general model on the domain's validation "
                f"documents ({-self._gain:+.4f}), so there is no gain that healing could keep."
            )

    def _change(self, losses: Losses, reference: Losses) -> float:
        return self._objective.domain_change(losses, reference).estimate

    def _score(self, load: Callable[[], Any], name: str) -> Losses:
        sets = [raced.items for raced in self._objective.sets.values()]
        losses = _score_sets(load, name, sets, self._scores)
        return {
            set_name: np.asarray(losses[set_name])[raced.order]
            for set_name, raced in self._objective.sets.items()
        }

    @torch.no_grad()
    def take(self, model: Any) -> None:
        """Put a model's parameters into the student, rounded as they would be stored."""
        pairs = zip(self._student.model.parameters(), model.parameters(), strict=True)
        for scored_parameter, parameter in pairs:
            # Rounded to the stored type first, then cast to the one that scores: what is judged is
            # what would be on disk.
            scored_parameter.copy_(parameter.to(self._stored))

    def look_at_source(self) -> HealLook:
        """What they say of the model that is healed, before anything is learned."""
        return self._look(self._source)

    def look(self, model: Any) -> HealLook:
        """What the validation sets say of a model as it would be stored."""
        self.take(model)
        # Not kept in the cache: a killed healing makes its rounds again.
        return self._look(self._score(lambda: self._student.model, ""))

    def _look(self, losses: Losses) -> HealLook:
        objective = self._objective
        # Upper bounds and no estimates: a loss counts as healed when it is surely within
        # tolerance.
        bounds = objective.loss_bounds(losses, self._general)
        excess = sum(
            max(0.0, bound - self._fraction * objective.tolerances[name])
            for name, bound in bounds.items()
        )
        figures = {
            name: figure for name, figure in objective.figures(losses).items() if figure is not None
        }
        return HealLook(self._change(losses, self._source) / self._gain, excess, figures)


def _load_lazily(folder: Path, student: Speaker) -> Callable[[], Any]:
    return lambda: load_causal_model(folder, student.model.dtype).to(student.model.device)


def _name_of(role: str, stage: Stage) -> str:
    """What the cache calls a model, as a search does: a specialist that is healed has one name."""
    role = SPECIALIST if stage.inputs[role] == stage.inputs[SPECIALIST] else role
    return candidate_hash({role: stage.inputs[role]}, "itself", 0)


def _score_sets(
    load: Callable[[], Any], name: str, sets: Sequence[EvaluationSet], scores: ScoreCache
) -> dict[str, list[float]]:
    """Losses of all items by set, in their order; the model is loaded where one is not known.

    Args:
        load: loads the model.
        name: what the cache calls it; empty where its scores are not kept.
        sets: sets to score.
        scores: the cache.
    """
    model: Any = None
    losses: dict[str, list[float]] = {}
    for items in sets:
        if items.name in losses:
            continue
        rows = range(len(items))
        # Asked first, as loading a model takes longer than reading all of its scores.
        if name and len(scores.known(name, items)) == len(items):
            losses[items.name] = scores.score(None, name, items)
            continue
        model = load() if model is None else model
        if name:
            losses[items.name] = scores.score(model, name, items, together=sets)
        elif items.score_together is not None:
            wanted = {one.name for one in sets}
            found = items.score_together(model, rows)
            # One pass over the general model's answers gives several sets at once, which are then
            # done.
            losses |= {key: values for key, values in found.items() if key in wanted}
        else:
            losses[items.name] = items.score(model, rows)
    return losses


def _score_test(
    inputs: HealInputs,
    stage: Stage,
    recipe: Recipe,
    test: Sequence[EvaluationSet],
    student: Speaker,
    scores: ScoreCache,
) -> dict[str, FinalFigures]:
    """Figures of the healed model and of its source on the test sets, each beside the general model
    and the specialist."""
    folders = {
        GENERAL: inputs.general,
        SPECIALIST: inputs.specialist,
        _SOURCE: inputs.source,
    }
    losses: dict[str, Mapping[str, Sequence[float]]] = {
        role: _score_sets(_load_lazily(folder, student), _name_of(role, stage), test, scores)
        for role, folder in folders.items()
    }
    healed = _score_sets(lambda: student.model, "", test, scores)
    weights = set_weights(recipe, test)
    # Each in the merge's place: before and after are then measured by one and the same rule.
    pair = {GENERAL: losses[GENERAL], SPECIALIST: losses[SPECIALIST]}
    return {
        name: final_figures(ScoredTestSets(test, weights, {**pair, MERGE: model_losses}))
        for name, model_losses in ((_SOURCE, losses[_SOURCE]), (MERGE, healed))
    }


def _collect(
    inputs: HealInputs,
    state: HealState,
    final: Mapping[str, FinalFigures],
    test_scorings: int,
    seconds: float,
) -> HealResults:
    shares = {
        name: HealedShares(gain_kept=one.gain_kept, loss_recovered=one.sets_recovered)
        for name, one in final.items()
    }
    return HealResults(
        recipe=inputs.run.name,
        source=inputs.section.source,
        policy=inputs.section.policy,
        num_rounds=state.num_rounds,
        num_tokens=state.num_tokens,
        seconds=seconds,
        ending=state.ending,
        given_back=state.looks[state.num_rounds].given_back,
        models=final[MERGE].models,
        before=shares[_SOURCE],
        after=shares[MERGE],
        test_scorings=test_scorings,
    )


def show_healing(folder: Path) -> None:
    """Print what a complete heal stage found."""
    results = parse_section(
        HealResults, load_json(folder / HEALED), where=str(folder / HEALED), what="healing"
    )
    say(
        f"  {results.num_rounds} rounds of {results.num_tokens:,} tokens kept; ended since "
        f"{results.ending}"
    )
    for name, shares in ((results.source, results.before), ("healed", results.after)):
        recovered = ", ".join(
            f"{set_name} {_percent(share)}" for set_name, share in shares.loss_recovered.items()
        )
        say(
            f"  {name}: {_percent(shares.gain_kept)} of the specialist's gain kept; of its loss "
            f"recovered: {recovered} (test sets)"
        )


def _percent(share: Interval | None) -> str:
    if share is None:
        return "not shown"
    return f"{share.estimate:.0%} ({share.low:.0%} to {share.high:.0%})"
