"""The choice among the candidates of a merge stage, on its validation sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.pipeline.finished import training_remarks
from toolkit.pipeline.merge_search import Search, hash_of_test
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.search.run import Scorer
from toolkit.search.space import Candidate
from toolkit.search.worker import Outcome
from toolkit.select.decide import Decision, decide
from toolkit.select.ledger import CONFIRMATIONS, note_confirmation
from toolkit.select.reason import sweep_verdict
from toolkit.select.remarks import remarks_on
from toolkit.select.results import SweepVerdict
from toolkit.select.sweep_tests import DecisionSettings
from toolkit.select.validation_losses import ValidationLosses
from toolkit.stage import Stage, hash_json


@dataclass(frozen=True)
class CandidateChoice:
    """The candidate that was chosen, and what is to be said of it.

    Attributes:
        decision: what was chosen, and on what grounds.
        beat_sweep: whether another method beat the plain sweep.
        remarks: what the figures cannot show.
    """

    decision: Decision
    beat_sweep: SweepVerdict
    remarks: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        return self.decision.chosen

    @property
    def candidate(self) -> Candidate:
        return self.decision.chosen.candidate


def choose_candidate(search: Search, trials: Sequence[Outcome], scorer: Scorer) -> CandidateChoice:
    """Test the plain sweep on all validation documents, what promises more on those set aside."""
    section, recipe = search.recipe.search, search.recipe
    objective, separate = search.plan.objective, search.parts.are_separate
    # Whatever beats the plain sweep was picked as the best of many on the search's documents,
    # which flatters it; so it has to hold on documents that the search did not see.
    losses = ValidationLosses(
        objective,
        search.objective(search.parts.confirm) if separate else None,
        search.objective(search.validation) if separate else objective,
        scorer,
    )
    settings = DecisionSettings(
        section.sweep,
        section.refine,
        section.confirm_trials,
        recipe.select.confidence,
        search.plan.plain_mean,
    )
    decision = decide(trials, losses, settings, lambda line: say(f"  {line}"))
    remarks = remarks_on(
        decision,
        losses,
        search.parts,
        search.test,
        confidence=recipe.select.confidence,
        is_best_state=recipe.train.use == "best",
    )
    if recipe.train.start is not None:
        remarks = [*remarks, _describe_start(recipe.train.start)]
    for line in remarks:
        say(f"  {line}")
    # Said apart from the choice: the sweep may be chosen although another method beat it.
    beat_sweep = sweep_verdict(decision.choice.chosen, decision.confirmations, losses)
    return CandidateChoice(decision, beat_sweep, tuple(remarks))


def _describe_start(start: str) -> str:
    return (
        f"Training started at {start}, not at the general model: α is the fraction of its change "
        f"that is added to the general model, general + α·(specialist − {start}). Everything is "
        "compared with the general model; the specialist itself never was one, so that part of "
        "its loss on general sets is what the general model had learned beyond its base, and a "
        "sum may keep more than all of its gain."
    )


def count_confirmations(search: Search, choice: CandidateChoice, stage: Stage) -> CandidateChoice:
    """Remark where the documents set aside had confirmed merges of another search before."""
    # Without documents set aside nothing was confirmed on fresh ones, so nothing is used up.
    if not (choice.decision.confirmations and search.parts.are_separate):
        return choice
    num_before = note_confirmation(
        # Beside the stage and not in it: the count must outlive a search that is run anew.
        stage.folder.with_name(CONFIRMATIONS),
        hash_of_test(search.parts.confirm),
        hash_json(search.identity),
        choice.candidate.name,
    )
    if not num_before:
        return choice
    remark = (
        f"Other methods were confirmed on documents that had confirmed those of {num_before} other "
        f"{'search' if num_before == 1 else 'searches'} before ({CONFIRMATIONS}): of several such "
        "searches one errs more often than is said of each."
    )
    say(f"  {remark}")
    return replace(choice, remarks=(*choice.remarks, remark))


def remark_training(recipe: Recipe, choice: CandidateChoice) -> CandidateChoice:
    """Remark that what a finished specialist was trained on is not known."""
    remarks = training_remarks(recipe)
    for line in remarks:
        say(f"  {line}")
    return replace(choice, remarks=(*choice.remarks, *remarks))
