"""What `make merge` and the workers that join it have in common: the study of a recipe."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.write import dtype_name
from toolkit.data.config import SplitName
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evaluate.cache import ScoreCache
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.load import load_sets, refuse_overlap, refuse_too_few
from toolkit.evaluate.sets import EvaluationSet
from toolkit.machine import Precision, choose_scoring_precision, dtype_of
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.rounding import warn_of_no_effect
from toolkit.pipeline.merge_inputs import SCORES, MergeInputs
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.search.candidate_scorer import Bench, device_of
from toolkit.search.config import RaceSection
from toolkit.search.learned import LEARNED, learn_profile, load_learned, save_learned
from toolkit.search.objective import Objective
from toolkit.search.queue import SearchPlan
from toolkit.search.space import GENERAL, MergeSpace, load_spaces, with_rounding
from toolkit.search.storage import Place
from toolkit.search.study import Study, read_identity
from toolkit.search.worker import Worker
from toolkit.section import replace_values
from toolkit.select.holdout import Parts, divide
from toolkit.shipped import folders_of
from toolkit.stage import Stage, hash_json, load_json
from toolkit.tokenizer_files import load_tokenizer

PARTIAL_SCORES = ("confirm.json", "test.json")
"""Losses of the documents that confirm and that test, while the merge stage is at work."""

CACHE = "scores-cache.jsonl"
"""Every score, in the folder of all runs: nothing is scored twice, whatever the recipe."""


@dataclass(frozen=True)
class Search:
    """The study of a recipe.

    Attributes:
        inputs: what the merge stage is made from; its recipe says in which arithmetic models are
            scored.
        validation: all validation sets.
        test: all test sets.
        parts: the validation sets in two.
        plan: what is to be tried on the first of the two.
        identity: what the study depends on.
    """

    inputs: MergeInputs
    validation: list[EvaluationSet]
    test: list[EvaluationSet]
    parts: Parts
    plan: SearchPlan
    identity: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    def objective(self, sets: Sequence[EvaluationSet]) -> Objective:
        """Sets that are scored in full."""
        return build_objective(self.recipe, sets, RaceSection(enabled=False))

    def bench(
        self, number: int = 0, cache: Path | None = None, evaluate: EvaluateSection | None = None
    ) -> Bench:
        """Where the worker of this number merges and scores; scores are kept in `cache`. Of sets
        that another section than the recipe's was settled for, this is `evaluate`."""
        inputs, hashes = self.inputs, self.identity["inputs"]
        return Bench(
            inputs.folders,
            # A merge is tried as it would be stored, so the model it is written into has that
            # type.
            load_causal_model(inputs.general, stored_dtype(inputs.general)),
            seed=self.recipe.seed,
            device=device_of(number),
            dtype=dtype_of((evaluate or self.recipe.evaluate).precision),
            cache=None if cache is None else ScoreCache(cache),
            parents={
                GENERAL: hashes[GENERAL],
                **{name: hashes[inputs.hash_key(name)] for name in inputs.specialists},
                **{name: hashes[f"models/{name}"] for name in inputs.others},
            },
        )


def prepare_search(
    inputs: MergeInputs, stage: Stage, *, precision: Precision | None = None
) -> Search:
    """Read the sets and the merges of a recipe.

    Args:
        inputs: what the merge stage is made from.
        stage: the merge stage.
        precision: arithmetic that scores; by default as the recipe wishes and this machine is fast.

    Raises:
        EvaluationError: a document stands in validation and in test, or a set has one document.
        ConfigError: a merge or a setting cannot be used, or the models' rotary bases differ.
    """
    general = inputs.general
    # First, as it reads no more than two configuration files.
    for specialist in inputs.specialists.values():
        _refuse_other_positions(general, specialist)
    recipe = with_scoring_precision(inputs.recipe, general, precision)
    specialists = tuple(inputs.specialists)
    spaces = load_spaces(
        recipe.search.merges,
        folders_of("merges"),
        recipe.models,
        recipe.search.rounding,
        specialists,
    )
    _note_other_bases(spaces, recipe.train.start)
    if recipe.search.rounding == "stochastic":
        warn_of_no_effect({dtype_name(stored_dtype(general))})
    tokenizer = load_tokenizer(general)
    splits: tuple[SplitName, ...] = ("validation", "test")
    validation, test = (
        load_sets(recipe.evaluate, inputs.data, general, split, tokenizer=tokenizer)
        for split in splits
    )
    refuse_overlap(validation, test)
    refuse_too_few(validation, test)
    parts = divide(validation, recipe.search.confirm_fraction, recipe.seed)
    objective = build_objective(recipe, parts.search, recipe.search.race)
    start = recipe.train.start
    # None where it is not learned yet: the merge stage learns it next, a worker refuses to join.
    learned = load_learned(stage.work / LEARNED) if recipe.search.learned is not None else None
    plan = SearchPlan(spaces, recipe.search, objective, recipe.seed, specialists, start, learned)
    identity = {
        **stage.identity(),
        "precision": recipe.evaluate.precision,
        "sets": {
            item.name: [item.role, item.content_hash, item.settings_hash] for item in parts.search
        },
    }
    # As a storage gives it back (tuples are lists there): the identity of a study that is
    # continued is compared with this one, and must not differ by its form.
    plain_identity = dict(json.loads(json.dumps(identity)))
    return Search(replace(inputs, recipe=recipe), validation, test, parts, plan, plain_identity)


def with_learned(search: Search, stage: Stage) -> Search:
    """The study with the merge whose weights are learned, where the recipe wants one: learned now,
    or before the stage was interrupted.

    Raises:
        ConfigError: there is nothing that can be learned from.
    """
    section, inputs = search.recipe.search.learned, search.inputs
    if section is None or search.plan.learned is not None:
        return search
    candidate, figures = learn_profile(
        search.plan.objective,
        LiveMerge(inputs.folders, seed=search.recipe.seed),
        # Gradients of a few weights over all tensors need more digits than a stored type has.
        load_causal_model(inputs.general, torch.float32),
        section,
        stored_dtype(inputs.general),
    )
    rounded = replace(
        candidate, config=with_rounding(candidate.config, search.recipe.search.rounding)
    )
    save_learned(stage.work / LEARNED, rounded, figures)
    return replace(search, plan=replace(search.plan, learned=rounded))


def _note_other_bases(spaces: Sequence[MergeSpace], start: str | None) -> None:
    """Say which merges undo what made the general model of its base."""
    if start is None:
        return
    for space in spaces:
        if space.template.get("base_model") != start:
            say(
                f"  {space.name}: is not taken against {start}, which training started from; as "
                "far as the specialist goes in, what made the general model of its base goes out "
                "(residual and residual-layers add to the general model)"
            )


def with_scoring_precision(
    recipe: Recipe, general: Path, precision: Precision | None = None
) -> Recipe:
    """The recipe with the type that models are scored in, in place of a wish such as `auto`.

    Args:
        recipe: as it was read, or settled already.
        general: folder of the general model, in whose stored type every merge is written.
        precision: where it is settled elsewhere.
    """
    wish = recipe.evaluate.precision
    settled = precision or choose_scoring_precision(wish, stored_dtype(general), device_of(0))
    evaluate = replace_values(recipe.evaluate, precision=settled)
    return replace_values(recipe, evaluate=evaluate)


def begun_precision(place: Place, name: str) -> Precision | None:
    """The arithmetic of a study that was begun before, here or on another machine."""
    return cast("Precision | None", (read_identity(place, name) or {}).get("precision"))


def wait_for_study(place: Place, name: str, seconds: float) -> None:
    """Wait until a study is begun, at most so long: whoever then opens it says what is wrong."""
    last = time.monotonic() + seconds
    while read_identity(place, name) is None and time.monotonic() < last:
        # Each look opens the storage, which may be a database far away.
        time.sleep(min(1.0, seconds))


def continue_precision(inputs: MergeInputs, work: Path) -> Precision:
    """The arithmetic that a search continues in: losses of two arithmetics are never compared.

    Where the study lies in the stage's own folder, scores of other arithmetic are moved aside and
    made again in the type that is fast here. One in a shared storage may have workers elsewhere:
    its arithmetic stays.

    Args:
        inputs: what the merge stage is made from.
        work: folder that the merge stage works in.
    """
    wish, stored = inputs.recipe.evaluate.precision, stored_dtype(inputs.general)
    begun = begun_precision(inputs.place(work), inputs.study)
    if begun is not None and inputs.recipe.search.storage is not None:
        return choose_scoring_precision(begun, stored, device_of(0), "the study's precision")
    settled = choose_scoring_precision(wish, stored, device_of(0))
    if begun is not None and begun != settled:
        say(
            f"  the search was begun on a machine of another kind, scoring in {begun}; it goes on "
            f"in {settled}, and what was scored before is scored again ({SCORES}.{begun} keeps it)"
        )
        for file in (SCORES, *PARTIAL_SCORES):
            if (work / file).is_file():
                (work / file).replace(work / f"{file}.{begun}")
    return settled


def _refuse_other_positions(general: Path, specialist: Path) -> None:
    bases = [_rotary_base(folder) for folder in (general, specialist)]
    if None not in bases and bases[0] != bases[1]:
        raise ConfigError(
            f"merge: the rotary base is {bases[0]:g} in {general} and {bases[1]:g} in "
            f"{specialist}; their attention was learned at different positions, so a mean of the "
            "two is neither. Use the specialist as it is (`toolkit sft run`, `toolkit eval`), or "
            "drop rope_theta from train.stages."
        )


def _rotary_base(folder: Path) -> float | None:
    values = load_json(folder / "config.json")
    # Models that see as well keep the language model's measures one level down.
    values = values.get("text_config") or values
    # transformers 5 writes `rope_parameters`, earlier versions a plain `rope_theta`.
    base = (values.get("rope_parameters") or {}).get("rope_theta", values.get("rope_theta"))
    return base if isinstance(base, (int, float)) else None


def build_objective(recipe: Recipe, sets: Sequence[EvaluationSet], race: RaceSection) -> Objective:
    """Weights, tolerances and confidence of a recipe, over these sets."""
    return Objective(
        sets,
        weights=set_weights(recipe, sets),
        tolerances=recipe.select.tolerances,
        tolerance=recipe.select.general_tolerance,
        confidence=recipe.select.confidence,
        race=race,
        seed=recipe.seed,
        domain_tolerance=recipe.select.domain_tolerance,
        num_candidates=recipe.search.num_trials,
    )


def set_weights(recipe: Recipe, sets: Sequence[EvaluationSet]) -> dict[str, float]:
    """Weights of domain sets that are not 1: those of the recipe, and with several specialists 1
    for each of them, shared by its sets.

    Raises:
        ConfigError: a domain set is of no specialist.
    """
    own_sets = sets_of_specialists(recipe, sets)
    # Else a specialist with many sets would count for more than one with a single set.
    shares = {name: 1.0 / len(names) for names in own_sets.values() for name in names}
    return {**shares, **recipe.search.weights}


def sets_of_specialists(recipe: Recipe, sets: Sequence[EvaluationSet]) -> dict[str, list[str]]:
    """Names of the domain sets by the specialist that they are of; none where there is one.

    Raises:
        ConfigError: a domain set is of no specialist.
    """
    own_sets: dict[str, list[str]] = {name: [] for name in recipe.specialists}
    if not own_sets:
        return {}
    owners = recipe.find_owners()
    for item in sets:
        if item.role != "domain":
            continue
        # A task may make several sets, called after it.
        begun = max((n for n in owners if item.name.startswith(n)), key=len, default="")
        owner = owners.get(item.name) or owners.get(begun)
        if owner is None:
            raise ConfigError(
                f"{item.name}: has role domain, and is of none of the specialists "
                f"({', '.join(own_sets)}); say whose it is, or give it another role."
            )
        own_sets[owner].append(item.name)
    if lacking := [name for name, names in own_sets.items() if not names]:
        raise ConfigError(f"specialists.{lacking[0]}: none of the sets is of it.")
    return own_sets


def hash_of_test(sets: Sequence[EvaluationSet]) -> str:
    """Hash of the test documents, for the ledger."""
    return hash_json([[item.name, item.content_hash] for item in sets])


def cache_file(stage: Stage) -> Path:
    return stage.all_runs / CACHE


def num_workers(recipe: Recipe) -> int:
    # One per GPU; on a CPU one, as its threads use all cores already.
    return recipe.search.workers or max(1, torch.cuda.device_count())


def threads_each(workers: int) -> int | None:
    """Threads for each of several workers that share the processor."""
    if workers == 1 or torch.cuda.is_available():
        return None
    # Each worker would else start a thread per core, and all of them would wait for each other.
    return max(1, (os.cpu_count() or 1) // workers)


def join_search(search: Search, stage: Stage, *, number: int) -> None:
    """Work on a study that is under way (see `wait_for_study`), until it is done.

    Args:
        search: the study.
        stage: the merge stage.
        number: number of this worker, which decides on the GPU.

    Raises:
        ToolkitError: there is none, or its storage cannot be reached.
        ConfigError: it is one of another recipe.
    """
    # A worker never learns it: two learned merges would be two candidates of one name.
    if search.recipe.search.learned is not None and search.plan.learned is None:
        raise ToolkitError(
            f"{stage.work / LEARNED}: is not there, and the search has a merge whose weights were "
            "learned; let the worker see the folder of the run."
        )
    study = Study(
        search.inputs.place(stage.work),
        search.inputs.study,
        search.identity,
        search.plan.sampler(),
        begin=False,
        stale_seconds=search.recipe.search.stale_seconds,
    )
    if threads := threads_each(num_workers(search.recipe)):
        torch.set_num_threads(threads)
    with contextlib.closing(study):
        worker = Worker(search.plan, study, search.bench(number, cache_file(stage)))
        say(f"search: worker {number} joined {search.inputs.study!r}")
        worker.work()
    say(f"search: {search.inputs.study!r} is done")
