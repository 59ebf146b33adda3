"""Runs that a law of mixture is fitted to: read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ConfigError
from toolkit.json_lines import parse_row
from toolkit.load_yaml import read_text

F64 = NDArray[np.float64]
Role = Literal["domain", "general"]
ROLES: tuple[Role, ...] = ("domain", "general")


@dataclass(frozen=True)
class Losses:
    """Losses of the documents of one role.

    Attributes:
        nats: loss of each document.
        num_bytes: UTF-8 length of each document.
    """

    nats: F64
    num_bytes: F64

    @property
    def loss(self) -> float:
        """Bits per byte of all of them together."""
        return float(self.nats.sum() / self.num_bytes.sum() / math.log(2.0))

    def resampled(self, counts: F64) -> F64:
        """Bits per byte under how often each document counts, `[R, N]` to `[R]`."""
        return np.asarray((counts @ self.nats) / (counts @ self.num_bytes) / math.log(2.0))


@dataclass(frozen=True)
class MixtureRun:
    """One small run.

    Attributes:
        share: share of domain text in its training tokens; None for the general model itself.
        tokens: number of tokens that it was trained on.
        domain, general: losses on validation documents.
        ids, roles: names of the documents and what they are for; all runs have them in common.
    """

    share: float | None
    tokens: int
    domain: Losses
    general: Losses
    ids: tuple[str, ...]
    roles: tuple[Role, ...] = ()

    def losses(self, role: Role) -> Losses:
        """Of the documents of one role."""
        return self.domain if role == "domain" else self.general


def read_run(row: Mapping[str, Any], where: str) -> MixtureRun:
    """A run from plain values: `share` (or `replay`), `tokens`, and by document `ids`, `roles`,
    `bytes` and `nats`.

    Raises:
        ConfigError: a value is missing, out of range or not finite.
    """
    try:
        ids, roles = [str(name) for name in row["ids"]], list(row["roles"])
        sizes, nats = (np.asarray(row[key], dtype=np.float64) for key in ("bytes", "nats"))
        value = row["share"] if "share" in row else row["replay"]
        share = None if value is None else float(value)
        if share is not None and "share" not in row:
            share = 1.0 - share
        domain_tokens, general_tokens = row.get("domain_tokens"), row.get("general_tokens")
        tokens = int(row["tokens"])
        if domain_tokens is not None and general_tokens is not None:  # as benchmarks/replay.py has
            tokens = int(domain_tokens) + int(general_tokens)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: is no run ({type(error).__name__}: {error}); it needs share, tokens, ids, "
            "roles, bytes and nats."
        ) from error
    if share is not None and not 0.0 <= share <= 1.0:
        raise ConfigError(f"{where}: share: must be from 0 to 1 (got {share:g}).")
    # The law takes logarithms of tokens; the general model was trained on none here.
    if share is not None and tokens <= 0:
        raise ConfigError(f"{where}: tokens: must be greater than 0 (got {tokens}).")
    if not len(ids) == len(roles) == sizes.size == nats.size:
        raise ConfigError(
            f"{where}: has {len(ids)} ids, {len(roles)} roles, {sizes.size} bytes and {nats.size} "
            "nats; there must be one of each for every document."
        )
    for number in np.flatnonzero(~np.isfinite(nats) | ~(sizes > 0)):
        raise ConfigError(
            f"{where}: {ids[number]}: its loss is {nats[number]} nats for {sizes[number]:g} bytes; "
            "the run failed, so leave it out or make it again."
        )
    # One document alone cannot be resampled: it would seem to be without uncertainty.
    losses_by_role = {}
    for role in ROLES:
        of_role = np.array([name == role for name in roles], dtype=bool)
        if of_role.sum() < 2:
            raise ConfigError(
                f"{where}: has {of_role.sum()} documents of role {role}; give at least 2."
            )
        losses_by_role[role] = Losses(nats[of_role], sizes[of_role])
    domain, general = (losses_by_role[role] for role in ROLES)
    return MixtureRun(share, tokens, domain, general, tuple(ids), tuple(roles))


def load_runs(path: Path, rate: float | None = None) -> list[MixtureRun]:
    """Runs from lines of JSON, such as `benchmarks/replay.py` writes.

    Args:
        path: file with one run per line.
        rate: peak learning rate to take, where lines have several.

    Raises:
        ConfigError: the file cannot be read, or holds several rates and none is chosen.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = parse_row(line, where, ConfigError, "remove the line, or make the run again")
        except ConfigError:
            if number < len(lines):
                raise
            continue  # the last line has no end: cut short by a kill
        rows.append((where, {**row, "rate": _read_rate(row, where)}))
    peak_rates = sorted({row["rate"] for _, row in rows if row["rate"] is not None})
    if len(peak_rates) > 1 and rate is None:
        raise ConfigError(
            f"{path}: has runs of several learning rates "
            f"({', '.join(f'{r:g}' for r in peak_rates)}); choose one with --rate."
        )
    if rate is not None and rate not in peak_rates:
        raise ConfigError(f"{path}: has no run of rate {rate:g}; rates: {peak_rates}.")
    return [
        read_run(row, where) for where, row in rows if rate is None or row["rate"] in {None, rate}
    ]


def _read_rate(row: Mapping[str, Any], where: str) -> float | None:
    """YAML takes `1e-4` for a text, and who copies from one may give it as such."""
    try:
        return None if row.get("rate") is None else float(row["rate"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: rate: must be a number (got {row['rate']!r}).") from error


def split_runs(runs: Sequence[MixtureRun]) -> tuple[MixtureRun, list[MixtureRun]]:
    """The general model's losses, and the runs by share.

    Raises:
        ConfigError: the general model is missing, or runs were scored on different documents.
    """
    general_model = next((run for run in runs if run.share is None), None)
    if general_model is None:
        raise ConfigError(
            "runs: the general model's own losses are missing (a line with share null); what is "
            "tolerated is a rise against them."
        )
    for run in runs:
        if (run.ids, run.roles) != (general_model.ids, general_model.roles):
            raise ConfigError(
                f"runs: share {run.share} was scored on other documents than the general model, or "
                "in other roles; make its line anew."
            )
    trained_runs = [run for run in runs if run.share is not None]
    return general_model, sorted(
        trained_runs, key=lambda run: (float(run.share or 0.0), run.tokens)
    )
