"""What a few thousand entries of every tensor show: damage, zeros, twins, strangers.

Whole tensors are never read: of each, runs of entries at the same places in all models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.adapted import AdaptedCheckpoint
from toolkit.checkpoint.read import has_array
from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.merge.check.findings import Finding, summarize_names
from toolkit.merge.check.survey import Model, Survey
from toolkit.merge.kernels.rows import as_float32

_RUNS, _RUN = 4, 1024
"""Places in a tensor, and entries at each: 4 pages or so a tensor, whatever its size."""

_COMPUTED = 32
"""Tensors sampled of a model with an adapter: each is computed whole."""

_UNRELATED = 0.5
"""Cosine between a tuned model's tensors and the base's, below which it is no descendant of the
base. Fine-tuning, and long continued pre-training too, leaves it above 0.9; models trained apart
are at 0 to within the sample's noise."""

Samples = Mapping[str, NDArray[np.float32]]


def check_samples(survey: Survey) -> Iterator[Finding]:
    """Sample every model, and compare the samples."""
    samples = {model.name: sample_model(model) for model in survey.models}
    for model in survey.models:
        yield from _damage(model, samples[model.name])
    twins = _twins(survey, samples)
    yield from twins.values()
    if survey.config is None or survey.config.merge_method != "passthrough":
        yield from _strangers(survey, samples, {name for pair in twins for name in pair})


def sample_model(model: Model) -> dict[str, NDArray[np.float32]]:
    """A few entries of each floating-point tensor, by name."""
    checkpoint = model.checkpoint
    names = [name for name in checkpoint.names if has_array(checkpoint.info(name).dtype)]
    if isinstance(checkpoint, AdaptedCheckpoint):
        changed = [name for name in names if name in set(checkpoint.changed)]
        names = changed[:: max(1, -(-len(changed) // _COMPUTED))]
    found: dict[str, NDArray[np.float32]] = {}
    for name in names:
        array = checkpoint.array(name)
        if array is not None and array.size:
            found[name] = _sample(array[:])
        checkpoint.give_back(name)
    return found


def _sample(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.size <= _RUNS * _RUN:
        return as_float32(array)
    starts = np.linspace(0, array.size - _RUN, _RUNS).astype(np.int64)
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite there, too
        return as_float32(np.concatenate([array[s : s + _RUN] for s in starts]))


def _damage(model: Model, samples: Samples) -> Iterator[Finding]:
    damaged = [name for name, entries in samples.items() if not np.isfinite(entries).all()]
    if damaged:
        yield Finding(
            "error",
            model.name,
            f"holds NaN or infinity in {summarize_names(damaged)} (by samples)",
            "the model is damaged; get it again, or allow them with --allow-non-finite",
        )
    empty = [
        name
        for name, entries in samples.items()
        if len(model.shape(name)) > 1 and not entries.any()
    ]
    if empty:
        yield Finding(
            "warning",
            model.name,
            f"is zero in all samples of {summarize_names(empty)}",
            "the model is damaged or was never trained there; look at it",
        )


def _twins(survey: Survey, samples: Mapping[str, Samples]) -> dict[tuple[str, str], Finding]:
    """Pairs of models that no sample tells apart."""
    found: dict[tuple[str, str], Finding] = {}
    for a, b in combinations(survey.models, 2):
        common = samples[a.name].keys() & samples[b.name].keys()
        pairs = [(samples[a.name][name], samples[b.name][name]) for name in common]
        if pairs and all(np.array_equal(x, y, equal_nan=True) for x, y in pairs):
            has_base = survey.base in (a.name, b.name)
            tuned = a.name if b.name == survey.base else b.name
            found[a.name, b.name] = Finding(
                "warning",
                tuned,
                f"is identical to {survey.base if has_base else a.name} in all samples"
                + (" (its task vector is zero)" if has_base else ""),
                "it adds nothing; check that the right folder is given",
            )
    return found


def _strangers(
    survey: Survey, samples: Mapping[str, Samples], known: set[str]
) -> Iterator[Finding]:
    leader = survey.leader
    for model in survey.others:
        if leader is None or model.name in known:
            continue
        cosine = median_cosine(samples[model.name], samples[leader.name], model)
        if cosine is not None and cosine < _UNRELATED:
            with_base = leader.name == survey.base
            yield Finding(
                "warning",
                model.name,
                f"seems unrelated to {leader.name} (median cosine of sampled tensors {cosine:.2f}, "
                "of a fine-tuned model over 0.9)",
                "task vectors of unrelated models; merging by task vectors makes gibberish; give "
                "the model that it was tuned from as base_model"
                if with_base
                else "averages of unrelated models are gibberish; merge models of one origin",
            )


def median_cosine(a: Samples, b: Samples, model: Model) -> float | None:
    """The median over matrices inside the layers, of the cosine between two models' samples.

    Norms and embeddings are left out: norms are near one in every model, and rows of the vocabulary
    may stand for other tokens.
    """
    cosines: list[float] = []
    for name in a.keys() & b.keys():
        x, y = a[name].astype(np.float64), b[name].astype(np.float64)
        if len(model.shape(name)) < 2 or is_vocabulary(name) or x.shape != y.shape:
            continue
        norms = float(np.sqrt((x @ x) * (y @ y)))
        if norms > 0.0 and np.isfinite(norms):
            cosines.append(float(x @ y) / norms)
    return float(np.median(cosines)) if cosines else None
