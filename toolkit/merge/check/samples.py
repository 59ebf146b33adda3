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
from toolkit.errors import Fault
from toolkit.merge.check.findings import summarize_names
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


def check_samples(survey: Survey) -> Iterator[Fault]:
    """Sample every model, and compare the samples."""
    samples_by_model = {model.name: sample_model(model) for model in survey.models}
    for model in survey.models:
        yield from _damage(model, samples_by_model[model.name])
    twins = _twins(survey, samples_by_model)
    yield from twins.values()
    if survey.config is None or survey.config.merge_method != "passthrough":
        yield from _strangers(survey, samples_by_model, {name for pair in twins for name in pair})


def sample_model(model: Model) -> dict[str, NDArray[np.float32]]:
    """A few entries of each floating-point tensor, by name."""
    checkpoint = model.checkpoint
    array_names = [name for name in checkpoint.names if has_array(checkpoint.info(name).dtype)]
    if isinstance(checkpoint, AdaptedCheckpoint):
        # What the adapter leaves alone is the model's under it, and would only be computed in vain.
        changed_names = [name for name in array_names if name in set(checkpoint.changed)]
        array_names = changed_names[:: max(1, -(-len(changed_names) // _COMPUTED))]
    samples_by_name: dict[str, NDArray[np.float32]] = {}
    for name in array_names:
        array = checkpoint.array(name)
        if array is not None and array.size:
            samples_by_name[name] = _sample(array[:])
        checkpoint.give_back(name)
    return samples_by_name


def _sample(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.size <= _RUNS * _RUN:
        return as_float32(array)
    run_starts = np.linspace(0, array.size - _RUN, _RUNS).astype(np.int64)
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite there, too
        return as_float32(np.concatenate([array[s : s + _RUN] for s in run_starts]))


def _damage(model: Model, samples: Samples) -> Iterator[Fault]:
    damaged_names = [name for name, entries in samples.items() if not np.isfinite(entries).all()]
    if damaged_names:
        yield Fault(
            model.name,
            f"holds NaN or infinity in {summarize_names(damaged_names)} (by samples)",
            "the model is damaged; get it again, or allow them with --allow-non-finite",
        )
    zero_names = [
        name
        for name, entries in samples.items()
        if len(model.shape(name)) > 1 and not entries.any()
    ]
    if zero_names:
        yield Fault(
            model.name,
            f"is zero in all samples of {summarize_names(zero_names)}",
            "the model is damaged or was never trained there; look at it",
            "warning",
        )


def _twins(survey: Survey, samples: Mapping[str, Samples]) -> dict[tuple[str, str], Fault]:
    """Pairs of models that no sample tells apart."""
    twin_findings: dict[tuple[str, str], Fault] = {}
    for a, b in combinations(survey.models, 2):
        common_names = samples[a.name].keys() & samples[b.name].keys()
        sample_pairs = [(samples[a.name][name], samples[b.name][name]) for name in common_names]
        if sample_pairs and all(np.array_equal(x, y, equal_nan=True) for x, y in sample_pairs):
            has_base = survey.base in (a.name, b.name)
            tuned_name = a.name if b.name == survey.base else b.name
            twin_findings[a.name, b.name] = Fault(
                tuned_name,
                f"is identical to {survey.base if has_base else a.name} in all samples"
                + (" (its task vector is zero)" if has_base else ""),
                "it adds nothing; check that the right folder is given",
                "warning",
            )
    return twin_findings


def _strangers(survey: Survey, samples: Mapping[str, Samples], known: set[str]) -> Iterator[Fault]:
    leader = survey.leader
    for model in survey.others:
        if leader is None or model.name in known:
            continue
        sampled_cosine = median_cosine(samples[model.name], samples[leader.name], model)
        if sampled_cosine is not None and sampled_cosine < _UNRELATED:
            with_base = leader.name == survey.base
            yield Fault(
                model.name,
                f"seems unrelated to {leader.name} (median cosine of sampled tensors "
                f"{sampled_cosine:.2f}, of a fine-tuned model over 0.9)",
                "task vectors of unrelated models; merging by task vectors makes gibberish; give "
                "the model that it was tuned from as base_model"
                if with_base
                else "averages of unrelated models are gibberish; merge models of one origin",
                "warning",
            )


def median_cosine(a: Samples, b: Samples, model: Model) -> float | None:
    """The median over matrices inside the layers, of the cosine between two models' samples.

    Norms and embeddings are left out: norms are near one in every model, and rows of the vocabulary
    may stand for other tokens.
    """
    cosines: list[float] = []
    for tensor_name in a.keys() & b.keys():
        # float64: the squares of a few thousand bfloat16 entries overflow float32 in a damaged
        # model.
        x, y = a[tensor_name].astype(np.float64), b[tensor_name].astype(np.float64)
        if len(model.shape(tensor_name)) < 2 or is_vocabulary(tensor_name) or x.shape != y.shape:
            continue
        norm_product = float(np.sqrt((x @ x) * (y @ y)))
        if norm_product > 0.0 and np.isfinite(norm_product):
            cosines.append(float(x @ y) / norm_product)
    return float(np.median(cosines)) if cosines else None
