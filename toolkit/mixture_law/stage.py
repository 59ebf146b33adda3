"""Small runs that a law of mixture is fitted to: one model, one data stage, a training a share.

general model ─► mixture/data ─► mixture/general, mixture/share-0.5, …    under runs/<recipe>/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.data.blocks import BLOCKS, Blocks
from toolkit.data.config import DataSection, StageSection
from toolkit.errors import ConfigError
from toolkit.mixture_law.answer import (
    Check,
    check_runs,
    largest_share,
    leave_out,
    plain_answer,
    table_rows,
)
from toolkit.mixture_law.law import fit_law
from toolkit.mixture_law.picture import mixture_svg
from toolkit.mixture_law.runs import MixtureRun, read_run, split_runs
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_general
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.pipeline.specialist import data_stage
from toolkit.progress import say
from toolkit.recipe.schema import Recipe
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
        shares: of domain text in the training tokens, each run's, in (0, 1].
        tokens: to train on in each run.
        repeats: runs of each share, with other blocks in another order.
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


def check_wanted(wanted: MixtureRequest, recipe: Recipe) -> None:
    """Refuse runs that could not be made, before anything is fetched.

    Raises:
        ConfigError: a share is out of range or there twice, or the tokens are too few.
    """
    for share in wanted.shares:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"--shares: {share:g} is no share; give numbers from 0 to 1.")
    names = [_name(share) for share in wanted.shares]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--shares: {twice.removeprefix('share-')} stands there twice.")
    if wanted.repeats < 1:
        raise ConfigError(f"--repeats: must be at least 1 (got {wanted.repeats}).")
    step = recipe.train.global_batch_size * recipe.data.sequence_length
    if wanted.tokens < _FEWEST_STEPS * step:
        raise ConfigError(
            f"--tokens: {wanted.tokens} are fewer than {_FEWEST_STEPS} steps of {step} tokens, too "
            "few for a schedule; give more, or lower train.global_batch_size in the recipe."
        )


def check_fit(wanted: MixtureRequest, held_out: Sequence[float], tolerance: float) -> None:
    """Refuse what no law could come of, before any run is made.

    Raises:
        ConfigError: too few runs are left to fit, a held-out share lies outside those, or the
            tolerance is no number.
    """
    if not math.isfinite(tolerance):
        raise ConfigError(f"--tolerance: must be a finite number (got {tolerance}).")
    fitted = [share for share in wanted.shares if share not in held_out]
    count = len(fitted) * wanted.repeats
    if len(fitted) < _FEWEST_SHARES or count < _FEWEST_RUNS:
        raise ConfigError(
            f"--shares: {count} runs of {len(fitted)} shares are left to fit, too few for a law "
            f"and its uncertainty; give at least {_FEWEST_RUNS} runs of {_FEWEST_SHARES} shares "
            "beside those held out (or --repeats 2)."
        )
    for share in held_out:
        if not min(fitted) <= share <= max(fitted):
            raise ConfigError(
                f"--hold-out: {share:g} lies outside the shares that are fitted, {min(fitted):g} "
                f"to {max(fitted):g}; a law says nothing there."
            )


def run_mixtures(run: Run, wanted: MixtureRequest) -> list[Path]:
    """Make the runs that are not up to date.

    Returns:
        Files of scores, the general model's first, then by share.

    Raises:
        ConfigError: see `check_wanted`.
        ToolkitError: whatever stops a stage; what is done stays done.
    """
    check_wanted(wanted, run.recipe)
    general = ensure_general(run)
    inside = replace(run, root=run.root / FOLDER)
    section = mixture_data(run.recipe.data, wanted)
    data = data_stage(inside, "data", section, general)
    from toolkit.evaluate.load import settle_scoring
    from toolkit.train.precision import settle_precision

    # Shares are compared by small differences, so each is trained and scored in one arithmetic.
    training = settle_precision(mixture_training(run.recipe.train))
    model = fingerprint(general)
    evaluate = settle_scoring(run.recipe.evaluate, general).model_dump(
        mode="json", include={"window_tokens", "precision"}
    )
    files = []
    every: list[tuple[float | None, str]] = [(None, "general"), *wanted.names]
    for share, name in every:
        config: dict[str, Any] = {"evaluate": evaluate, "share": share}
        if share is not None:
            config |= {"train": identity_of(training), "tokens": wanted.tokens}
        title = "general model's losses" if share is None else f"domain {name.replace('-', ' ', 1)}"
        inputs = {"general": model, "data": _read_of(data, None if share is None else name)}
        stage = inside.stage(name, config, inputs)
        act = _Act(run.recipe, training, stage, general, data, share, name)
        files.append(ensure_stage(stage, title, act) / SCORES)
        if share is not None:
            _say_losses(files[-1], files[0])
    return files


def _read_of(data: Path, name: str | None) -> str:
    """Hash of what a run reads of the data: runs stay as they are when others are added."""
    outputs = read_manifest(data)["outputs"]
    kinds = ("validation.jsonl",) if name is None else ("validation.jsonl", "tokens/", "packs/")
    parts = {n: entry["sha256"] for n, entry in outputs.items() if n.startswith(kinds)}
    stages = load_json(data / BLOCKS)["stages"]
    own = [entry for entry in stages if entry["name"] == name]
    return hash_json([sorted(parts.items()), own])


def mixture_data(section: DataSection, wanted: MixtureRequest) -> DataSection:
    """The recipe's data, with a stage for each share in place of its own.

    Sources of one role keep the proportions of their weights.
    """
    stages = []
    for share, run_name in wanted.names:
        shares: dict[str, float] = {}
        for role, part in (("domain", share), ("general", 1.0 - share)):
            own = {n: s.weight or 1.0 for n, s in section.sources.items() if s.role == role}
            shares |= {n: part * w / sum(own.values()) for n, w in own.items() if part > 0.0}
        stages.append(StageSection(name=run_name, tokens=wanted.tokens, shares=shares))
    return section.model_copy(update={"stages": tuple(stages)})


def mixture_training(section: TrainSection) -> TrainSection:
    """The recipe's training without what a small run has no use for."""
    watch = section.watch.model_copy(update={"evaluations": 0})
    plain = {"epochs": 1, "use": "last", "keep_best": False, "keep_checkpoints": False}
    return section.model_copy(update={**plain, "watch": watch, "stages": {}, "trackers": ()})


@dataclass(frozen=True)
class _Act:
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
            results: dict[str, Any] = {}
            tokens = 0
            if self.share is not None:
                model = prepare_model(model, self.section)
                blocks = _only(Blocks.open(self.data), self.name)
                summary = train(model, blocks, self.section, seed=self.stage.seed, work=work)
                tokens = summary.num_targets
                results = {
                    "num_steps": summary.num_steps,
                    "first_loss": summary.first_loss,
                    "last_loss": summary.last_loss,
                }
            model = finished_model(model).to(stored_dtype(self.general)).eval()
            evaluate = settle_scoring(self.recipe.evaluate, self.general)
            model = model.to(dtype_of(evaluate.precision))  # as stored, exactly
            tokenizer = load_tokenizer(self.general)
            separator = read_manifest(self.data)["results"]["separator_token_id"]
            items = load_items(self.data / "validation.jsonl", tokenizer, separator)
            nats = score_documents(model, items, evaluate)
            row = {"share": self.share, "tokens": tokens, "ids": items.ids, "roles": items.roles}
            write_json(work / SCORES, {**row, "bytes": items.num_bytes, "nats": nats})
            self.stage.finish(results, drop=state_names(work))


def _only(blocks: Blocks, name: str) -> Blocks:
    """The blocks of one stage."""
    return replace(blocks, stages=tuple(s for s in blocks.stages if s.name == name))


def _name(share: float, number: int = 1) -> str:
    """Of a run, which also seeds the order of its blocks."""
    return f"share-{share:.6g}" + (f"-{number}" if number > 1 else "")


def _say_losses(path: Path, baseline: Path) -> None:
    new, old = (read_run(load_json(file), str(file)) for file in (path, baseline))
    pairs = (("domain", new.domain, old.domain), ("general", new.general, old.general))
    parts = [f"{role} {n.loss:.4f} ({n.loss - o.loss:+.4f})" for role, n, o in pairs]
    say(f"  bits per byte: {', '.join(parts)}")


def load_scores(files: Sequence[Path]) -> list[MixtureRun]:
    """The runs that `run_mixtures` made."""
    return [read_run(load_json(f), str(f)) for f in files]


def report_mixture(
    found: Sequence[MixtureRun],
    held_out: Sequence[float],
    tolerance: float,
    folder: Path | None,
    name: str,
) -> dict[str, Any]:
    """Fit the law, say what it says, and write `mixture.json` and `mixture.svg`.

    Args:
        found: the general model's line and the runs.
        held_out: shares that are predicted rather than fitted.
        tolerance: rise of the general loss, bits per byte.
        folder: where to write; None writes nothing.
        name: for the title.

    Raises:
        ConfigError: too few runs, shares that were not measured around, or a tolerance that none
            meets.
    """
    start, runs = split_runs(found)
    fitted = [run for run in runs if run.share not in held_out]
    missing = [share for share in held_out if share not in {run.share for run in runs}]
    if missing:
        raise ConfigError(f"--hold-out: there is no run of share {missing[0]:g}.")
    law = fit_law(start, fitted)
    checks = [
        check
        for share in sorted(set(held_out))
        for check in check_runs(law, [run for run in runs if run.share == share])
    ]
    left_out = leave_out(law)
    _say_table(table_rows(law, checks))
    answer, refusal = None, None
    try:
        answer = largest_share(law, tolerance)
    except ConfigError as error:
        refusal = error  # what was measured is kept all the same
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        fewest, most = law.tokens
        size = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
        title = f"{name}: law of mixture, {size} tokens a run"
        with write_atomically(folder / "mixture.svg") as file:
            file.write(mixture_svg(law, answer, checks, title))
    if refusal is not None or answer is None:
        raise refusal or ConfigError("--tolerance: no answer.")
    plain = plain_answer(law, answer, checks, left_out)
    if folder is not None:
        write_json(folder / "mixture.json", plain)
    for line in plain["sentences"]:
        say(line)
    for check in checks:
        _say_check("held out", check)
    for check in left_out:
        if not check.is_inside:
            _say_check("left out in turn", check)
    if left_out:
        inside = sum(check.is_inside for check in left_out)
        say(f"inner shares left out in turn: {inside} of {len(left_out)} predictions hold")
    return plain


def _say_check(how: str, check: Check) -> None:
    runs = f", mean of {check.num_runs} runs" if check.num_runs > 1 else ""
    say(
        f"{how}, share {check.share:g}, {check.role}{runs}: predicted {check.predicted}, measured "
        f"{check.measured:.4f}, {'inside' if check.is_inside else 'OUTSIDE'}"
    )


def _say_table(rows: Sequence[tuple[str, ...]]) -> None:
    heads = ("share", "tokens", "domain", "by the law (95 %)", "general", "by the law (95 %)")
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    say("change of bits per byte against the general model")
    for row in (heads, *rows):
        say("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares as a flag gives them.

    Raises:
        ConfigError: one is no number.

    >>> parse_shares("0.5, 1")
    (0.5, 1.0)
    """
    found: list[float] = []
    for word in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(float(word))
        except ValueError:
            raise ConfigError(f"--shares: {word!r} is no number; give 0.5,0.7,1.0.") from None
    return tuple(found)
