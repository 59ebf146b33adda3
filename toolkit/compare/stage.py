"""A comparison put together: every way trained, merged and scored over seeds, each part made once.

RECIPE/…, RECIPE/ways/WAY/…, each with seeds/SEED/… ─► RECIPE/compare/NAME
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from toolkit.compare.config import MergeKind
from toolkit.compare.figures import ScoredWays, standing_of
from toolkit.compare.page import write_page
from toolkit.compare.results import (
    ComparedSet,
    ComparisonResults,
    LinePoint,
    SeedOfWay,
    SetStanding,
    WayCosts,
    WayFigures,
    WayResult,
)
from toolkit.compare.table import show_comparison
from toolkit.compare.ways import (
    Comparison,
    PlannedWay,
    find_reused_root,
    open_comparison,
    runs_of_ways,
)
from toolkit.errors import ConfigError, EvaluationError, warn
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.input_hashes import evaluation_inputs
from toolkit.evaluate.load import load_sets
from toolkit.evaluate.sets import EvaluationSet
from toolkit.pipeline.finished import refuse_unfit
from toolkit.pipeline.heal import HEALED, ensure_heal
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_search import (
    Search,
    cache_file,
    hash_of_test,
    prepare_search,
    set_weights,
    with_scoring_precision,
)
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import (
    ensure_data,
    ensure_general,
    ensure_models,
    ensure_specialists,
)
from toolkit.pipeline.repeat import are_documents_the_same
from toolkit.pipeline.run import Run
from toolkit.pipeline.specialist import own_conversations
from toolkit.pipeline.stages import ensure_merge, merge_stage
from toolkit.progress import say
from toolkit.search.run import Scorer
from toolkit.search.space import GENERAL, SPECIALIST, Candidate, alone, endpoint
from toolkit.search.worker import Outcome
from toolkit.section import parse_section, replace_values
from toolkit.select.candidates import by_item
from toolkit.select.ledger import LEDGER, TestLedger
from toolkit.select.results import MergeResults, read_results
from toolkit.stage import Stage, hash_file, hash_json, load_json, read_manifest, write_json

FIGURES = "compare.json"
PAGE = "compare.html"
_PART = "compare"

_MERGED, _HEALED = "merged", "healed"
"""Models that stand in folders, as further models of a merge."""

MERGE_TITLES: dict[MergeKind, str] = {
    "none": "",
    "plain": " + plain mean",
    "search": " + search",
    "heal": " + heal",
}


@dataclass(frozen=True)
class MadeWay:
    """A way as one seed made it.

    Attributes:
        way: the way.
        run: its run under this seed.
        inputs: its models and documents.
        merge: what its merge stage found; None where no merge of it is compared.
        stored: folders of the merged and the healed model, where they are compared.
    """

    way: PlannedWay
    run: Run
    inputs: MergeInputs
    merge: MergeResults | None
    stored: Mapping[str, Path]

    @property
    def specialist(self) -> Path:
        return self.inputs.specialists[SPECIALIST]

    def candidate_name(self, kind: MergeKind) -> str:
        """The candidate that a kind of merge is, as the validation sets chose it."""
        if kind == "heal":  # where no merge gained, there is nothing to be healed
            return _HEALED if _HEALED in self.stored else GENERAL
        if kind == "none" or self.merge is None:
            return SPECIALIST
        return self.merge.chosen if kind == "search" else self.merge.best_plain_mean


def ensure_comparison(
    run: Run,
    ways: str = "",
    *,
    num_seeds: int = 3,
    reuse: Path | None = None,
    score_test_again: bool = False,
) -> Path:
    """The comparison of a recipe's ways; what is complete is not made again.

    Args:
        run: run of the recipe.
        ways: name or path of the file of ways; by default that of the recipe's name.
        num_seeds: number of seeds, the recipe's own first.
        reuse: folder of runs, or of this recipe's run, whose complete stages serve where they were
            made from the same things.
        score_test_again: whether merge stages may score the test documents for another choice.

    Raises:
        ConfigError: there is no such file, or it is not valid.
        EvaluationError: two ways would be tested on other documents.
    """
    comparison = open_comparison(run, ways)
    reused_roots = [] if reuse is None else [find_reused_root(run, reuse)]
    # Only for its refusal: seeds must be tested on the same documents.
    are_documents_the_same(run.recipe, asked=True)
    _tell(comparison, run, num_seeds)
    runs_by_seed = [
        runs_of_ways(run, comparison, number, reused_roots) for number in range(num_seeds)
    ]
    # One seed is enough: later ones take over the documents of the first.
    _refuse_other_documents(comparison, runs_by_seed[0])
    # Every way under the first seed first: what is wrong with one shows before later seeds begin.
    made = [
        [
            _make_way(way, runs[way.name], f"{number} of {num_seeds}", again=score_test_again)
            for way in comparison.ways
        ]
        for number, runs in enumerate(runs_by_seed, start=1)
    ]
    _refuse_other_general(made)
    # Everything is made. What follows is scored in one stage, whose inputs are the very models.
    evaluate = _settle_evaluation(run, comparison, made)
    stage = _stage_of(run, comparison, made, evaluate)

    def act() -> None:
        with stage.running() as work:
            results = run_comparison(run, comparison, made, evaluate, stage)
            write_json(work / FIGURES, results.model_dump(mode="json"))
            write_page(results, work / PAGE)
            # They let a killed comparison go on; results hold figures alone, and the cache every
            # loss.
            scores = tuple(path.name for path in work.glob("scores-*.json"))
            way_names = [way.name for way in comparison.ways]
            stage.finish({"seeds": num_seeds, "ways": way_names}, drop=scores)

    folder = run.ensure(stage, "comparison", act)
    show_comparison(read_comparison(folder), folder)
    return folder


def _stage_of(
    run: Run,
    comparison: Comparison,
    made: Sequence[Sequence[MadeWay]],
    evaluate: EvaluateSection,
) -> Stage:
    """The stage of a comparison: what is scored, of which models, on which documents."""
    data = made[0][0].inputs.data
    return run.stage(
        f"{_PART}/{comparison.name}",
        {
            "ways": comparison.section.model_dump(mode="json"),
            "evaluate": evaluate.model_dump(mode="json"),
            "seeds": [ways_of_seed[0].run.recipe.seed for ways_of_seed in made],
        },
        {
            # The file and not its stage: training documents of the ways differ, and may.
            "documents": hash_file(data / "test.jsonl"),
            **evaluation_inputs(evaluate),
            **{
                f"{one.run.recipe.seed}/{one.way.name}": hash_json(
                    [
                        fingerprint(one.specialist),
                        *(one.candidate_name(kind) for kind in one.way.merges),
                        *map(fingerprint, one.stored.values()),
                    ]
                )
                for ways_of_seed in made
                for one in ways_of_seed
            },
        },
    )


def read_comparison(folder: Path) -> ComparisonResults:
    """Every figure of a complete comparison, read back.

    Raises:
        ToolkitError: there is none, or another version wrote it.
    """
    read_manifest(folder)
    path = folder / FIGURES
    return parse_section(ComparisonResults, load_json(path), where=str(path), what="comparison")


def _tell(comparison: Comparison, run: Run, num_seeds: int) -> None:
    """Say what is going to be made, and what is not as one might think."""
    ways = comparison.ways
    num_trained = sum(way.trains_as is None for way in ways) if run.recipe.trains else 0
    say(
        f"comparison {comparison.name}: {len(ways)} ways, reference {comparison.reference.name}; "
        f"{num_seeds} seeds, {num_trained * num_seeds} specialists to train or to find"
    )
    for place, way in enumerate(ways):
        # Two names for one recipe are no mistake that stops, but a reader would take equal figures
        # for a finding.
        twin = next((one.name for one in ways[:place] if one.recipe == way.recipe), None)
        if twin is not None:
            say(f"  {way.name} is the same as {twin}: its figures will be equal")
        elif way.trains_as is not None and run.recipe.trains:
            say(f"  {way.name} trains as {way.trains_as} does: they share one specialist")
    if num_seeds < 2:
        warn("one seed: what another seed would change is not known, and in no interval")
    if len(kinds := _general_kinds(comparison.evaluate)) < 2:
        warn(
            f"{' and '.join(kinds) or 'documents alone'}: one kind of general measure, which a way "
            "may fit and lose others; add evaluate.multiple_choice or evaluate.behavior to the "
            "file of ways"
        )


def _general_kinds(evaluate: EvaluateSection) -> list[str]:
    """Kinds of general measures beside the documents' likelihood."""
    retention, behavior = evaluate.retention, evaluate.behavior
    has_kind = {
        "retention": retention.num_prompts
        and "general" in (retention.loss_role, retention.kl_role),
        "multiple choice": any(one.role == "general" for one in evaluate.multiple_choice),
        "tasks": any(one.role == "general" for one in evaluate.tasks),
        "behavior": behavior is not None and "general" in behavior.roles.values(),
    }
    return [kind for kind, is_there in has_kind.items() if is_there]


def _refuse_other_documents(comparison: Comparison, runs: Mapping[str, Run]) -> None:
    """Refuse ways that would be tested on other documents, before hours of training.

    Raises:
        EvaluationError: there are some.
    """
    from toolkit.evaluate.likelihood import read_rows

    hashes: dict[str, str] = {}
    for way in comparison.ways:
        rows = read_rows(ensure_data(runs[way.name]) / "test.jsonl")
        # Ids and texts: fields such as a row's group may differ and change no loss.
        hashes[way.name] = hash_json([[row["id"], row["text"]] for row in rows])
        reference = comparison.reference.name
        if hashes[way.name] != hashes[reference]:
            raise EvaluationError(
                f"ways.{way.name}: its test documents are not those of {reference}, so the two "
                "cannot be compared; leave the sources' splits and cleaning as they are."
            )


def _make_way(way: PlannedWay, run: Run, seed_words: str, *, again: bool) -> MadeWay:
    """Train a way and choose its merges under one seed, as far as that is not done."""
    say(f"way {way.name}, seed {run.recipe.seed} ({seed_words}): {run.root}")
    heal = run.recipe.heal if "heal" in way.merges else None
    heals_merge = heal is not None and heal.source == "merge"
    # A way that is compared as it is trained is spared its search, which takes longest.
    needs_merge = heals_merge or bool({"plain", "search"} & set(way.merges))
    stored: dict[str, Path] = {}
    if needs_merge:
        stored[_MERGED] = ensure_merge(run, score_test_again=again)
    merge = read_results(stored[_MERGED]) if needs_merge else None
    general, specialists = ensure_general(run), ensure_specialists(run)
    # A merge stage has compared the models itself.
    if not run.recipe.trains and merge is None:
        refuse_unfit(run, general, specialists)
    others = ensure_models(run)
    inputs = MergeInputs(run.name, run.recipe, general, specialists, ensure_data(run), others)
    # Healing refuses a source without a gain: where no merge qualified, the general model stands
    # for it.
    if heal is not None and not (heals_merge and merge is not None and not merge.any_merge):
        stored[_HEALED] = ensure_heal(run, score_test_again=again)
    return MadeWay(way, run, inputs, merge, stored)


def _refuse_other_general(made: Sequence[Sequence[MadeWay]]) -> None:
    """
    Raises:
        ConfigError: each seed makes a general model of its own.
    """
    # By content, as each seed's run may have a folder of its own for one and the same model.
    first, *others = (ways_of_seed[0].inputs.general for ways_of_seed in made)
    for general in others:
        if fingerprint(general) != fingerprint(first):
            raise ConfigError(
                "compare: each seed makes a general model of its own (model.scratch or model.moe), "
                "so that what is kept of it cannot be compared between seeds; take one that "
                "stands, or --seeds 1."
            )


def _settle_evaluation(
    run: Run, comparison: Comparison, made: Sequence[Sequence[MadeWay]]
) -> EvaluateSection:
    """What all are scored on, in the arithmetic that merges were chosen in."""
    wished = replace_values(run.recipe, evaluate=comparison.evaluate)
    return with_scoring_precision(wished, made[0][0].inputs.general).evaluate


def run_comparison(
    run: Run,
    comparison: Comparison,
    made: Sequence[Sequence[MadeWay]],
    evaluate: EvaluateSection,
    stage: Stage,
) -> ComparisonResults:
    """Score every way on the test sets, and hold it against the line of the reference.

    Args:
        run: run of the recipe.
        comparison: the ways.
        made: the ways as they were made, by seed.
        evaluate: what all of them are scored on.
        stage: the comparison.
    """
    first = made[0][0]
    test = _TestSets.load(evaluate, first.inputs)
    columns: dict[str, dict[str, list[list[float]]]] = {}
    num_scorings = 0
    all_made = [one for ways_of_seed in made for one in ways_of_seed]
    for number, one in enumerate(all_made, start=1):
        alphas = comparison.section.alphas if one.way is comparison.reference else ()
        num_before, losses = _score_way(one, test, alphas, comparison.name, stage)
        num_scorings = num_before if one is first else num_scorings
        for model, by_set in losses.items():
            for name, values in by_set.items():
                # Seed by seed in one order, so that rows of all models are of the same seeds.
                columns.setdefault(model, {}).setdefault(name, []).append(values)
        seed = one.run.recipe.seed
        say(f"  scored {number} of {len(all_made)}: {one.way.name}, seed {seed}")
    scored = ScoredWays(
        test.sets,
        set_weights(run.recipe, test.sets),
        {
            model: {name: np.array(rows, dtype=np.float64) for name, rows in by_set.items()}
            for model, by_set in columns.items()
        },
        reference=_title(comparison.reference.name, "none"),
        line={alpha: _line_title(alpha) for alpha in comparison.section.alphas},
    )
    return _collect(run, comparison, made, scored, num_scorings)


@dataclass(frozen=True)
class _TestSets:
    """The test sets and the section that they were read by, as one: its precision is in their keys
    in the cache of scores, so every model is scored in it, whatever its way says."""

    section: EvaluateSection
    sets: list[EvaluationSet]

    @classmethod
    def load(cls, section: EvaluateSection, inputs: MergeInputs) -> _TestSets:
        return cls(section, load_sets(section, inputs.data, inputs.general, "test"))


def _title(way: str, kind: MergeKind) -> str:
    return way + MERGE_TITLES[kind]


def _line_title(alpha: float) -> str:
    return f"line α={alpha:g}"


def _score_way(
    made: MadeWay,
    test: _TestSets,
    alphas: Sequence[float],
    comparison_name: str,
    stage: Stage,
) -> tuple[int, dict[str, dict[str, list[float]]]]:
    """Losses of a way's models under one seed, by model and set; what was scored before, in this
    comparison or by the merge stage, is not scored again.

    Args:
        made: the way.
        test: the test sets.
        alphas: plain means of the line, where it is the reference.
        comparison_name: name of the file of ways, for the ledger.
        stage: the comparison, in whose working folder scores are kept.

    Returns:
        How often the test documents were scored, and the losses.
    """
    way_stage = merge_stage(made.run, made.inputs)
    search = _prepare_silently(made.inputs, way_stage)
    candidates = {
        _title(made.way.name, kind): _candidate(made, search, kind) for kind in made.way.merges
    }
    if alphas:
        reference = _title(made.way.name, "none")
        candidates |= {GENERAL: endpoint(GENERAL), reference: endpoint(SPECIALIST)}
        candidates |= {_line_title(alpha): search.plan.plain_mean(alpha) for alpha in alphas}
    num_scorings = _note_scoring(made, search, candidates, comparison_name)
    # A file for each way and seed: a killed comparison goes on where it was.
    log = stage.work / f"scores-{made.run.recipe.seed}-{made.way.name}.json"
    stored = {title: one for title, one in candidates.items() if one.name in made.stored}
    merged = {title: one for title, one in candidates.items() if title not in stored}
    losses = _score(search, merged, test, log, cache_file(way_stage))
    if stored:
        # Models beside the two, in a search of its own: scores of merges are kept by all models
        # that they could be of, and those of the merge stage are to be found.
        inputs = replace(made.inputs, others={**made.inputs.others, **made.stored})
        beside = _prepare_silently(inputs, merge_stage(made.run, inputs))
        losses |= _score(beside, stored, test, log, cache_file(way_stage))
    return num_scorings, losses


def _prepare_silently(inputs: MergeInputs, stage: Stage) -> Search:
    """What the merge stage has said of its sets and merges is not said again for every way."""
    with contextlib.redirect_stdout(None):
        return prepare_search(inputs, stage)


def _score(
    search: Search,
    candidates: Mapping[str, Candidate],
    test: _TestSets,
    log: Path,
    cache: Path,
) -> dict[str, dict[str, list[float]]]:
    """Losses of candidates, by their titles and by set, in the order of the items."""
    bench = search.bench(cache=cache, evaluate=test.section)
    objective, scorer = search.objective(test.sets), Scorer(bench, log)
    losses_by_model: dict[str, dict[str, list[float]]] = {}
    for title, candidate in candidates.items():
        # Nothing was searched: a trial without scores, all of which the scorer then makes.
        outcome = Outcome(candidate, "complete", {}, 0.0, 0, 0.0, 0.0, 0)
        losses = by_item(objective, scorer.score(outcome, objective, part=_PART))
        losses_by_model[title] = {
            item.name: [losses[item.name][name] for name in item.ids] for item in test.sets
        }
    return losses_by_model


def _candidate(made: MadeWay, search: Search, kind: MergeKind) -> Candidate:
    """The model that a way takes: one of the plain sweep as the search knew it, another as it is
    stored."""
    name = made.candidate_name(kind)
    if name in (GENERAL, SPECIALIST):
        return endpoint(name)
    # A plain mean is merged anew in memory, as the search had it: its scores are in the cache
    # under what it is made of, and those of its file are not.
    for step in made.merge.ladder if made.merge is not None else ():
        if step.name == name:
            return search.plan.plain_mean(step.alpha)
    return alone(_HEALED if kind == "heal" else _MERGED)


def _note_scoring(
    made: MadeWay, search: Search, candidates: Mapping[str, Candidate], comparison_name: str
) -> int:
    """Put the look at the test documents into the ledger of the way's run.

    It is a study of its own there: nothing is chosen by it, so a choice that follows is refused by
    the looks of other choices alone; it is counted with them.
    """
    inputs = made.inputs
    hashes = {name: fingerprint(inputs.folders[name]) for name in (GENERAL, *inputs.specialists)}
    ledger = TestLedger(
        made.run.root / LEDGER, hash_of_test(search.test), {**hashes, _PART: comparison_name}
    )
    # A merge that is stored has no key that tells what it is made of: its content stands for it.
    keys = sorted(candidate.key for candidate in candidates.values())
    keys += map(fingerprint, made.stored.values())
    name = f"toolkit compare, {comparison_name}: {', '.join(candidates)}"
    # Never refused: whatever it shows, nothing is chosen by it.
    ledger.begin(hash_json(keys), name, again=True)
    return ledger.count


def _collect(
    run: Run,
    comparison: Comparison,
    made: Sequence[Sequence[MadeWay]],
    scored: ScoredWays,
    num_scorings: int,
) -> ComparisonResults:
    """Every figure of a comparison."""
    sets = tuple(
        ComparedSet(
            name=one.name,
            role=one.role,
            unit=one.unit,
            num_items=len(one),
            num_groups=one.num_groups,
            # Sets that are only watched have no line: nobody promised to keep them.
            has_line=one.role == "general" and scored.has_line(one.name),
            specialist_change=scored.set_change(scored.reference, one.name),
        )
        for one in scored.sets
    )
    figures = tuple(
        _figures_of(scored, sets, kind, [ways_of_seed[place] for ways_of_seed in made])
        for place, way in enumerate(comparison.ways)
        for kind in way.merges
    )
    # Losses of two units have no common unit that could be printed.
    domain_units = {one.unit for one in sets if one.role == "domain"}
    return ComparisonResults(
        recipe=run.name,
        description=comparison.section.description or run.recipe.description,
        command=f"{comparison.command} --seeds {len(made)}",
        reference=comparison.reference.name,
        seeds=tuple(ways_of_seed[0].run.recipe.seed for ways_of_seed in made),
        confidence=scored.confidence,
        domain_unit=domain_units.pop() if len(domain_units) == 1 else "mean loss",
        sets=sets,
        ways=tuple(
            _way_result([ways_of_seed[place] for ways_of_seed in made])
            for place in range(len(comparison.ways))
        ),
        figures=figures,
        line=tuple(
            LinePoint(
                alpha=alpha,
                domain_change=scored.domain_change(model),
                gain_kept=scored.gain_kept(model),
                set_changes={one.name: scored.set_change(model, one.name) for one in sets},
            )
            for alpha, model in (*sorted(scored.line.items()), (1.0, scored.reference))
        ),
        remarks=tuple(_remarks(comparison, scored, sets, figures)),
        test_scorings=num_scorings,
    )


def _way_result(made: Sequence[MadeWay]) -> WayResult:
    """A way beside its figures.

    Args:
        made: the way as each seed made it.
    """
    way, trains = made[0].way, made[0].run.recipe.trains
    return WayResult(
        name=way.name,
        note=way.note,
        settings=dict(way.settings),
        trains_as=way.trains_as if trains else None,
        costs=mean_costs([costs_of(one) for one in made]),
    )


def _figures_of(
    scored: ScoredWays,
    sets: Sequence[ComparedSet],
    kind: MergeKind,
    made: Sequence[MadeWay],
) -> WayFigures:
    """A way with one kind of merge.

    Args:
        scored: losses of all models.
        sets: the test sets.
        kind: what is taken of the specialists.
        made: the way as each seed made it.
    """
    way = made[0].way.name
    title = _title(way, kind)
    standings = {}
    for one in sets:
        distance = scored.distance(title, one.name) if one.has_line else None
        standings[one.name] = SetStanding(
            change=scored.set_change(title, one.name),
            distance=distance,
            standing=None if distance is None else standing_of(distance),
        )
    domain_changes, kept = scored.domain_changes(title), scored.seeds_kept(title)
    set_changes = {one.name: scored.set_changes(title, one.name) for one in sets}
    return WayFigures(
        way=way,
        merge=kind,
        title=title,
        domain_change=scored.domain_change(title),
        gain_kept=scored.gain_kept(title),
        sets=standings,
        seeds={
            str(one.run.recipe.seed): SeedOfWay(
                candidate=one.candidate_name(kind),
                domain_change=float(domain_changes[place]),
                gain_kept=kept[place],
                set_changes={name: float(values[place]) for name, values in set_changes.items()},
            )
            for place, one in enumerate(made)
        },
    )


def costs_of(made: MadeWay) -> WayCosts:
    """What a way took under one seed, as its stages noted it."""
    merge, trains = made.merge, made.run.recipe.trains
    # A specialist that was averaged notes no tokens of its own, and a named one nothing at all.
    notes = read_manifest(made.specialist)["results"] if trains else {}
    tokens, rate = notes.get("num_targets"), notes.get("tokens_per_second")
    conversations = own_conversations(made.run, made.inputs.general) if trains else None
    written = None
    if conversations is not None:
        written = read_manifest(conversations)["results"]["num_tokens"]
    healing = load_json(made.stored[_HEALED] / HEALED) if _HEALED in made.stored else {}
    return WayCosts(
        trained_tokens=tokens,
        train_seconds=tokens / rate if tokens and rate else None,
        written_tokens=written,
        searched_tokens=None if merge is None else merge.search_tokens,
        search_seconds=None if merge is None else sum(row.seconds for row in merge.candidates),
        healed_tokens=healing.get("num_tokens"),
        heal_seconds=healing.get("seconds"),
    )


def mean_costs(costs: Sequence[WayCosts]) -> WayCosts:
    """The mean over seeds of what is known of all of them."""
    means: dict[str, float | None] = {}
    for name in WayCosts.model_fields:
        values = [getattr(one, name) for one in costs]
        # A mean over the seeds that happen to be known would be compared with one over all.
        means[name] = None if None in values else fmean(values)
    return WayCosts(**means)


def _remarks(
    comparison: Comparison,
    scored: ScoredWays,
    sets: Sequence[ComparedSet],
    figures: Sequence[WayFigures],
) -> list[str]:
    """What the figures cannot show."""
    remarks = []
    if scored.num_seeds < 2:
        remarks.append("One seed: what another seed would change is in no interval.")
    if not scored.shows_gain:
        remarks.append(
            f"The specialist of {comparison.reference.name} shows no domain gain over these seeds, "
            "so there is no fraction of it and no line."
        )
    general = [one for one in sets if one.role == "general"]
    if scored.shows_gain and (flat := [one.name for one in general if not one.has_line]):
        remarks.append(
            f"{', '.join(flat)}: the reference specialist loses nothing there that is shown, so "
            "plain merges trade nothing for it and there is no line."
        )
    num_distances = sum(
        standing.distance is not None for one in figures for standing in one.sets.values()
    )
    if num_distances > 1:
        remarks.append(
            f"Each interval holds by itself with {scored.confidence:.0%}: of {num_distances} "
            f"distances from the line about {num_distances * (1.0 - scored.confidence):.1f} would "
            "be called above or below by chance alone."
        )
    if (kinds := _general_kinds(comparison.evaluate)) and len(kinds) < 2:
        remarks.append(
            f"One kind of general measure ({kinds[0]}): a way may fit it, and lose others."
        )
    return remarks
