"""Small runs that a law of mixture is fitted to: one model, one data stage, one training per share.

general model ─► mixture/data ─► mixture/general, mixture/share-0.5, …    under runs/<recipe>/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.blocks import BLOCKS, Blocks
from toolkit.data.config import DataSection, StageSection
from toolkit.errors import ConfigError
from toolkit.mixture_law.answer import (
    Check,
    MixtureAnswer,
    MixtureResults,
    check_runs,
    largest_share,
    leave_out,
    table_rows,
)
from toolkit.mixture_law.law import Law, fit_law
from toolkit.mixture_law.picture import mixture_svg
from toolkit.mixture_law.runs import ROLES, MixtureRun, read_run, split_runs
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_general
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.pipeline.specialist import data_stage
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
from toolkit.section import replace_values
from toolkit.stage import Stage, hash_json, load_json, read_manifest, write_atomically, write_json
from toolkit.tokenizer_files import load_tokenizer
from toolkit.train.config import TrainSection, identity_of

FOLDER = "mixture"
SCORES = "scores.json"
_FEWEST_STEPS = 4
_FEWEST_RUNS, _FEWEST_SHARES = 4, 3


@dataclass(frozen=True)
class MixtureRequest:
    """Runs to make.

    Attributes:
        shares: domain share of the training tokens of each run, in (0, 1].
        tokens: number of tokens to train on in each run.
        repeats: number of runs of each share, with other blocks in another order.
    """

    shares: tuple[float, ...]
    tokens: int
    repeats: int = 1

    @property
    def names(self) -> list[tuple[float, str]]:
        """Each run's share and name, by share."""
        return [
            (share, _name(share, number))
            for share in sorted(self.shares)
            for number in range(1, self.repeats + 1)
        ]


def check_request(request: MixtureRequest, recipe: Recipe) -> None:
    """Refuse runs that could not be made, before anything is fetched.

    Raises:
        ConfigError: a share is out of range or there twice, the tokens are too few, or there is no
            general text.
    """
    if "general" not in recipe.data.roles:
        raise ConfigError(
            "data.sources: none has role general, and the law is about shares of it; give one."
        )
    for share in request.shares:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"--shares: {share:g} is no share; give numbers from 0 to 1.")
    run_names = [_name(share) for share in request.shares]
    if repeated_name := next((name for name in run_names if run_names.count(name) > 1), None):
        raise ConfigError(f"--shares: {repeated_name.removeprefix('share-')} stands there twice.")
    if request.repeats < 1:
        raise ConfigError(f"--repeats: must be at least 1 (got {request.repeats}).")
    step_tokens = recipe.train.global_batch_size * recipe.data.sequence_length
    if request.tokens < _FEWEST_STEPS * step_tokens:
        raise ConfigError(
            f"--tokens: {request.tokens} are fewer than {_FEWEST_STEPS} steps of {step_tokens} "
            "tokens, "
            "too few for a schedule; give more, or lower train.global_batch_size in the recipe."
        )


def check_fit(request: MixtureRequest, held_out: Sequence[float], tolerance: float) -> None:
    """Refuse what no law could come of, before any run is made.

    Raises:
        ConfigError: too few runs are left to fit, a held-out share lies outside those, or the
            tolerance is no number.
    """
    if not math.isfinite(tolerance):
        raise ConfigError(f"--tolerance: must be a finite number (got {tolerance}).")
    fitted_shares = [share for share in request.shares if share not in held_out]
    num_runs = len(fitted_shares) * request.repeats
    if len(fitted_shares) < _FEWEST_SHARES or num_runs < _FEWEST_RUNS:
        raise ConfigError(
            f"--shares: {num_runs} runs of {len(fitted_shares)} shares are left to fit, too few "
            "for a law "
            f"and its uncertainty; give at least {_FEWEST_RUNS} runs of {_FEWEST_SHARES} shares "
            "beside those held out (or --repeats 2)."
        )
    for share in held_out:
        if not min(fitted_shares) <= share <= max(fitted_shares):
            raise ConfigError(
                f"--hold-out: {share:g} lies outside the shares that are fitted, "
                f"{min(fitted_shares):g} to {max(fitted_shares):g}; a law says nothing there."
            )


def run_mixtures(run: Run, request: MixtureRequest) -> list[Path]:
    """Make the runs that are not up to date.

    Returns:
        Files of scores, the general model's first, then by share.

    Raises:
        ConfigError: see `check_request`.
        ToolkitError: whatever stops a stage; what is done stays done.
    """
    from toolkit.evaluate.load import settle_scoring
    from toolkit.train.precision import settle_precision

    check_request(request, run.recipe)
    general = ensure_general(run)
    mixture_run = replace(run, root=run.root / FOLDER)
    # One data stage for all: each run reads its own stage of it, and all are scored on the same
    # documents.
    data = data_stage(mixture_run, "data", mixture_data(run.recipe.data, request), general)
    # Shares are compared by small differences, so each is trained and scored in one arithmetic.
    train_section = settle_precision(mixture_training(run.recipe.train))
    model_hash = fingerprint(general)
    evaluate_values = settle_scoring(run.recipe.evaluate, general).model_dump(
        mode="json", include={"window_tokens", "precision"}
    )
    score_files: list[Path] = []
    named_shares: list[tuple[float | None, str]] = [(None, "general"), *request.names]
    # The general model comes first, as what is said of each run is a change against it.
    for share, name in named_shares:
        stage_config: dict[str, object] = {"evaluate": evaluate_values, "share": share}
        if share is not None:
            stage_config |= {"train": identity_of(train_section), "tokens": request.tokens}
        title = "general model's losses" if share is None else f"domain {name.replace('-', ' ', 1)}"
        data_hash = _hash_of_used_data(data, None if share is None else name)
        stage = mixture_run.stage(name, stage_config, {"general": model_hash, "data": data_hash})
        small_run = _SmallRun(run.recipe, train_section, stage, general, data, share, name)
        score_files.append(ensure_stage(stage, title, small_run) / SCORES)
        if share is not None:
            _say_losses(score_files[-1], score_files[0])
    return score_files


def _hash_of_used_data(data: Path, name: str | None) -> str:
    """Hash of what a run reads of the data: runs stay as they are when others are added."""
    outputs = read_manifest(data)["outputs"]
    used_files = (
        ("validation.jsonl",) if name is None else ("validation.jsonl", "tokens/", "packs/")
    )
    hashes = {n: entry["sha256"] for n, entry in outputs.items() if n.startswith(used_files)}
    stages = load_json(data / BLOCKS)["stages"]
    return hash_json([sorted(hashes.items()), [s for s in stages if s["name"] == name]])


def mixture_data(section: DataSection, request: MixtureRequest) -> DataSection:
    """The recipe's data, with a stage for each share in place of its own.

    Sources of one role keep the proportions of their weights.
    """
    stages = []
    for share, run_name in request.names:
        source_shares: dict[str, float] = {}
        for role, part in (("domain", share), ("general", 1.0 - share)):
            weights = {n: s.weight or 1.0 for n, s in section.sources.items() if s.role == role}
            all_weight = sum(weights.values())
            source_shares |= {n: part * w / all_weight for n, w in weights.items() if part > 0.0}
        stages.append(StageSection(name=run_name, tokens=request.tokens, mixture=source_shares))
    return replace_values(section, stages=tuple(stages))


def mixture_training(section: TrainSection) -> TrainSection:
    """The recipe's training without what a small run has no use for."""
    monitor_off = replace_values(section.forgetting_monitor, evaluations=0)
    plain_settings = {"epochs": 1, "use": "last", "keep_best": False, "keep_checkpoints": False}
    return replace_values(
        section, **plain_settings, forgetting_monitor=monitor_off, stages={}, trackers=()
    )


@dataclass(frozen=True)
class _SmallRun:
    """One run: trained, scored, and only the scores kept."""

    recipe: Recipe
    section: TrainSection
    stage: Stage
    general: Path
    data: Path
    share: float | None
    name: str

    def __call__(self) -> None:
        import torch

        from toolkit.checkpoint.folder import stored_dtype
        from toolkit.checkpoint.load import load_causal_model
        from toolkit.checkpoint.training_state import state_names
        from toolkit.evaluate.likelihood import load_items, score_documents
        from toolkit.evaluate.load import settle_scoring
        from toolkit.machine import dtype_of
        from toolkit.train.loop import train
        from toolkit.train.trainable import finished_model, prepare_model

        with self.stage.running() as work:
            model = load_causal_model(self.general, torch.float32)
            results: dict[str, object] = {}
            tokens = 0
            if self.share is not None:
                model = prepare_model(model, self.section)
                blocks = _blocks_of_stage(Blocks.open(self.data), self.name)
                summary = train(model, blocks, self.section, seed=self.stage.seed, work=work)
                tokens = summary.num_targets
                results = {
                    "num_steps": summary.num_steps,
                    "first_loss": summary.first_loss,
                    "last_loss": summary.last_loss,
                }
            # Rounded as if it had been stored: the general model was, and the two are compared.
            model = finished_model(model).to(stored_dtype(self.general)).eval()
            evaluate = settle_scoring(self.recipe.evaluate, self.general)
            model = model.to(dtype_of(evaluate.precision))  # as stored, exactly
            tokenizer = load_tokenizer(self.general)
            separator_token = read_manifest(self.data)["results"]["separator_token_id"]
            items = load_items(self.data / "validation.jsonl", tokenizer, separator_token)
            nats = score_documents(model, items, evaluate)
            score_row = {
                "share": self.share,
                "tokens": tokens,
                "ids": items.ids,
                "roles": items.roles,
            }
            write_json(work / SCORES, {**score_row, "bytes": items.num_bytes, "nats": nats})
            self.stage.finish(results, drop=state_names(work))


def _blocks_of_stage(blocks: Blocks, name: str) -> Blocks:
    return replace(blocks, stages=tuple(s for s in blocks.stages if s.name == name))


def _name(share: float, number: int = 1) -> str:
    """Of a run, which also seeds the order of its blocks."""
    return f"share-{share:.6g}" + (f"-{number}" if number > 1 else "")


def _say_losses(path: Path, baseline: Path) -> None:
    run, general_model = load_scores((path, baseline))
    role_words = []
    for role in ROLES:
        loss = run.losses(role).loss
        role_words.append(f"{role} {loss:.4f} ({loss - general_model.losses(role).loss:+.4f})")
    say(f"  bits per byte: {', '.join(role_words)}")


def load_scores(files: Sequence[Path]) -> list[MixtureRun]:
    """The runs that `run_mixtures` made."""
    return [read_run(load_json(f), str(f)) for f in files]


def report_mixture(
    all_runs: Sequence[MixtureRun],
    held_out: Sequence[float],
    tolerance: float,
    folder: Path | None,
    name: str,
) -> MixtureResults:
    """Fit the law, say what it says, and write `mixture.json` and `mixture.svg`.

    Args:
        all_runs: the general model's line and the runs.
        held_out: shares that are predicted rather than fitted.
        tolerance: rise of the general loss, bits per byte.
        folder: folder to write into; None writes nothing.
        name: name of the recipe, for the title.

    Raises:
        ConfigError: too few runs, shares that were not measured around, or a tolerance that none
            meets.
    """
    general_model, runs = split_runs(all_runs)
    missing_shares = [share for share in held_out if share not in {run.share for run in runs}]
    if missing_shares:
        raise ConfigError(f"--hold-out: there is no run of share {missing_shares[0]:g}.")
    law = fit_law(general_model, [run for run in runs if run.share not in held_out])
    checks = [
        check
        for share in sorted(set(held_out))
        for check in check_runs(law, [run for run in runs if run.share == share])
    ]
    left_out = leave_out(law)
    _say_table(table_rows(law, checks))
    try:
        answer = largest_share(law, tolerance)
    except ConfigError:
        _write_picture(folder, law, None, checks, name)  # what was measured is kept all the same
        raise
    _write_picture(folder, law, answer, checks, name)
    results = MixtureResults.of(law, answer, checks, left_out)
    if folder is not None:
        write_json(folder / "mixture.json", results.as_json())
    _say_results(results)
    return results


def _write_picture(
    folder: Path | None,
    law: Law,
    answer: MixtureAnswer | None,
    checks: Sequence[Check],
    name: str,
) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    fewest_tokens, most_tokens = law.tokens
    size_words = (
        f"{most_tokens:,}"
        if fewest_tokens == most_tokens
        else f"{fewest_tokens:,} to {most_tokens:,}"
    )
    title = f"{name}: law of mixture, {size_words} tokens per run"
    with write_atomically(folder / "mixture.svg") as file:
        file.write(mixture_svg(law, answer, checks, title))


def _say_results(results: MixtureResults) -> None:
    for sentence in results.sentences:
        say(sentence)
    for check in results.held_out:
        _say_check("held out", check)
    for check in results.left_out:
        if not check.is_inside:
            _say_check("left out in turn", check)
    if results.left_out:
        num_inside = sum(check.is_inside for check in results.left_out)
        say(
            f"inner shares left out in turn: {num_inside} of {len(results.left_out)} predictions "
            "hold"
        )


def _say_check(how: str, check: Check) -> None:
    run_words = f", mean of {check.num_runs} runs" if check.num_runs > 1 else ""
    say(
        f"{how}, share {check.share:g}, {check.role}{run_words}: predicted {check.predicted}, "
        f"measured {check.measured:.4f}, {'inside' if check.is_inside else 'OUTSIDE'}"
    )


def _say_table(rows: Sequence[tuple[str, ...]]) -> None:
    column_titles = (
        "share",
        "tokens",
        "domain",
        "by the law (95 %)",
        "general",
        "by the law (95 %)",
    )
    column_widths = [
        max(len(row[n]) for row in (column_titles, *rows)) for n in range(len(column_titles))
    ]
    say("change of bits per byte against the general model")
    for row in (column_titles, *rows):
        say("  ".join(cell.rjust(width) for cell, width in zip(row, column_widths, strict=True)))


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares as a flag gives them.

    Raises:
        ConfigError: one is no number.

    >>> parse_shares("0.5, 1")
    (0.5, 1.0)
    """
    shares: list[float] = []
    for word in filter(None, map(str.strip, text.split(","))):
        try:
            shares.append(float(word))
        except ValueError:
            raise ConfigError(f"--shares: {word!r} is no number; give 0.5,0.7,1.0.") from None
    return tuple(shares)
