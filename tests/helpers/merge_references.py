"""The merge methods once more, in float64 and as plainly as they can be written.

Loops over entries and whole-vector formulas; the references share nothing with the package. Data
for the tests, and the call that the engine makes, are here too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.merge.registry import Place, get_method

Array = NDArray[np.float64]
GRID = 2.0**-13


def random_models(
    number: int, shape: Sequence[int] = (12, 16), seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Tuned tensors and their base, with exact differences and no two of equal magnitude.

    All values are multiples of `GRID` and small, so that float32 holds `tuned - base` exactly and
    thresholds mean the same in float32 and float64; magnitudes within one task vector are a
    permutation, so that no threshold is tied.
    """
    generator = torch.Generator().manual_seed(seed)
    total = math.prod(shape)
    base = (torch.randn(tuple(shape), generator=generator) / GRID).round() * GRID
    tuned = []
    for _ in range(number):
        magnitude = torch.randperm(total, generator=generator).reshape(tuple(shape)) + 1.0
        sign = torch.randint(0, 2, tuple(shape), generator=generator) * 2.0 - 1.0
        tuned.append(base + magnitude * sign * GRID * 4)
    return tuned, base


def merge(name: str, tensors: Sequence[Tensor], base: Tensor, **parameters: Any) -> Tensor:
    """Call a method as the engine does.

    Per-model parameters that are not given are the default for each model, thresholds default to 0,
    the generator to one seeded with 0, the place to the second layer of four.
    """
    method = get_method(name)
    for key, parameter in method.parameters.items():
        keyword = "lambda_" if key == "lambda" else key
        if parameter.per_model and keyword not in parameters:
            value = [0.5] if parameter.required else parameter.default
            parameters[keyword] = list(value) * len(tensors)
    if method.is_random:
        parameters.setdefault("generator", torch.Generator().manual_seed(0))
    if method.needs_place:
        parameters.setdefault("place", Place("model.layers.1.mlp.up_proj.weight", 1, 4))
    if method.needs_thresholds:
        parameters.setdefault("thresholds", [0.0] * len(tensors))
    if method.needs_base:
        parameters["base"] = base
    return method.function(list(tensors), **parameters)


def array(tensor: Tensor) -> Array:
    return tensor.double().numpy()


def assert_rounded(actual: Tensor, expected: Array | Tensor, ulps: float = 4.0) -> None:
    """Equal but for rounding: `ulps` float32 units in the last place of the largest entry.

    A method rounds each entry a handful of times, each time by half a unit at most of an
    intermediate result that is hardly larger than the largest entry.
    """
    wanted = expected.double().numpy() if isinstance(expected, Tensor) else expected
    assert actual.dtype == torch.float32
    assert tuple(actual.shape) == wanted.shape
    largest = np.abs(wanted).max(initial=1.0)
    np.testing.assert_allclose(
        array(actual), wanted, rtol=0.0, atol=ulps * float(np.spacing(np.float32(largest)))
    )


# Weighted sums


def linear(xs: Sequence[Array], weight: Sequence[float], normalize: bool = True) -> Array:
    total = sum(w * x for w, x in zip(weight, xs, strict=True))
    return np.asarray(total / sum(weight) if normalize else total)


def task_arithmetic(
    xs: Sequence[Array],
    base: Array,
    weight: Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Array:
    return base + lambda_ * linear([x - base for x in xs], weight, normalize)


# Trimming and voting


def trim(delta: Array, density: float) -> Array:
    descending = np.sort(np.abs(delta).ravel())[::-1]
    if density == 0.0:
        return np.zeros_like(delta)
    smallest_kept = descending[max(1, int(density * delta.size)) - 1]
    return np.where(np.abs(delta) >= smallest_kept, delta, 0.0)


def breadcrumbs(delta: Array, density: float, gamma: float) -> Array:
    if density == 1.0:
        return delta
    ascending = np.sort(np.abs(delta).ravel())
    kept = int(density * delta.size)
    top = int(gamma * delta.size)
    first = max(0, delta.size - top - kept)
    chosen = ascending[first : first + kept]
    return np.where(np.isin(np.abs(delta), chosen), delta, 0.0)


def rescaled(kept: Array, delta: Array) -> Array:
    after = np.abs(kept).sum()
    return kept * (np.abs(delta).sum() / after) if after > 0.0 else kept


def vote(deltas: Sequence[Array], weight: Sequence[float], normalize: bool) -> Array:
    """Entry by entry: who agrees with the sign of the sum, and their (mean) contribution."""
    merged = np.zeros_like(deltas[0])
    for place in np.ndindex(merged.shape):
        entries = [w * float(d[place]) for w, d in zip(weight, deltas, strict=True)]
        sign = 1.0 if sum(entries) >= 0.0 else -1.0
        agree = [m for m, entry in enumerate(entries) if entry * sign > 0.0]
        total = sum(weight[m] for m in agree)
        merged[place] = sum(entries[m] for m in agree)
        if normalize and total != 0.0:
            merged[place] /= total
    return merged


def keep_probability(delta: Array, density: float, epsilon: float) -> Array:
    """Of DELLA, row by row along dimension 1, from ranks counted one entry at a time."""
    rows = np.moveaxis(np.abs(delta), 1, -1) if delta.ndim > 1 else np.abs(delta)[None]
    probability = np.empty_like(rows)
    for place in np.ndindex(rows.shape):
        row = rows[place[:-1]]
        below = sum(other < rows[place] for other in row)
        tied = sum(other == rows[place] for other in row)
        rank = below + (tied - 1) / 2
        relative = rank / (len(row) - 1) if len(row) > 1 else 0.5
        probability[place] = density - epsilon + 2 * epsilon * relative
    return np.moveaxis(probability, -1, 1) if delta.ndim > 1 else probability[0]


# Spheres


def slerp(a: Array, b: Array, t: float, collinear: float = 0.9995) -> Array:
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    cos = float((u * v).sum())
    if abs(cos) > collinear:
        return (1 - t) * a + t * b
    angle = math.acos(cos)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def slerp_along(a: Array, b: Array, t: float, axis: int) -> Array:
    rows = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    merged = np.empty_like(rows[0])
    for place in np.ndindex(merged.shape[:-1]):
        merged[place] = slerp(rows[0][place], rows[1][place], t, collinear=1.0)
    return np.moveaxis(merged, -1, axis)


def multislerp(xs: Sequence[Array], weight: Sequence[float], normalize: bool = True) -> Array:
    """The published recipe, tangent plane included."""
    w = np.array(weight) / (sum(weight) if normalize else 1.0)
    norms = [float(np.linalg.norm(x)) for x in xs]
    units = [x / n for x, n in zip(xs, norms, strict=True)]
    mean = sum(v * u for v, u in zip(w, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangents = [u - (u * mean).sum() * mean for u in units]
    step = sum(v * t for v, t in zip(w, tangents, strict=True))
    length = float(np.linalg.norm(step)) + 1e-300
    on_sphere = mean * math.cos(length) + step / length * math.sin(length)
    return np.asarray(on_sphere * sum(v * n for v, n in zip(w, norms, strict=True)))


def karcher(xs: Sequence[Array], steps: int = 100) -> Array:
    """Logarithms averaged and followed, on the vectors themselves, until nothing moves."""
    norms = [float(np.linalg.norm(x)) for x in xs]
    units = [x / n for x, n in zip(xs, norms, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(steps):
        pulls = []
        for u in units:
            along = u - (u * mean).sum() * mean
            length = np.linalg.norm(along)
            angle = math.atan2(length, (u * mean).sum())
            pulls.append(angle * along / length if length > 0 else 0 * along)
        step = sum(pulls) / len(pulls)
        length = float(np.linalg.norm(step))
        if length > 0:
            mean = math.cos(length) * mean + math.sin(length) * step / length
    return np.asarray(mean * (sum(norms) / len(norms)))


def model_stock(xs: Sequence[Array], base: Array, filter_wise: bool = False) -> Array:
    if filter_wise:
        rows = [model_stock([x[i] for x in xs], base[i]) for i in range(len(base))]
        return np.stack(rows)
    deltas = [x - base for x in xs]
    cosines = [
        (a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6)
        for a, b in itertools.combinations(deltas, 2)
    ]
    cos = sum(cosines) / len(cosines)
    t = len(xs) * cos / (1 + (len(xs) - 1) * cos)
    return np.asarray(t * sum(xs) / len(xs) + (1 - t) * base)


# Selection


def sce(xs: Sequence[Array], base: Array, select_topk: float, equal_below: float = 1e-6) -> Array:
    deltas = [x - base for x in xs]
    if select_topk < 1.0:
        variance = np.var(np.stack(deltas), axis=0)
        kept = int((variance != 0).sum() * select_topk)
        smallest = np.sort(variance.ravel())[::-1][kept - 1] if kept else np.inf
        deltas = [np.where(variance >= smallest, d, 0.0) for d in deltas]
    sizes = [float((d**2).mean()) for d in deltas]
    whole = sum(sizes)
    share = [s / whole if whole >= max(equal_below, 1e-300) else 1 / len(xs) for s in sizes]
    merged = np.zeros_like(base)
    for place in np.ndindex(base.shape):
        entries = [float(d[place]) for d in deltas]
        sign = 1.0 if sum(entries) >= 0.0 else -1.0
        agree = [m for m, entry in enumerate(entries) if entry * sign > 0.0]
        if agree:
            total = sum(share[m] for m in agree)
            merged[place] = sum(share[m] * entries[m] for m in agree) / max(total, 1e-6)
    return base + merged


def nearswap(other: Array, base: Array, t: float) -> Array:
    return base + np.clip(other - base, -t, t)


def importance(other: Array, base: Array) -> Array:
    def softmax(x: Array) -> Array:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True) + 1e-8)

    p, q = softmax(other), softmax(base)
    return np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)


def arcee_fusion(other: Array, base: Array) -> Array:
    scores = importance(other, base)
    ascending = np.sort(scores.ravel())
    q1, median, q3 = (ascending[int(q * (scores.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(scores >= median + 1.5 * (q3 - q1), other, base)


def ram(
    xs: Sequence[Array], base: Array, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.0
) -> Array:
    """With `r` of 0 plain RAM, else RAM+ of one tensor."""
    deltas = [x - base for x in xs]
    changed = [np.abs(d) > epsilon for d in deltas]
    number = sum(c.astype(int) for c in changed)
    merged = np.zeros_like(base)
    for d, c in zip(deltas, changed, strict=True):
        shared, unique = int((c & (number > 1)).sum()), int((c & (number == 1)).sum())
        scale = 1 + r * min(alpha, shared / max(unique, 1e-5))
        for place in np.ndindex(base.shape):
            if c[place]:
                alone = number[place] == 1
                merged[place] += d[place] * scale if alone else d[place] / number[place]
    return base + merged


# Spectra


def nearest_orthogonal(matrix: Array) -> Array:
    """`A (A^T A)^(-1/2)` by eigenvalues, over the directions that are there."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    good = values > 1e-10 * values.max()
    root = vectors[:, good] / np.sqrt(values[good]) @ vectors[:, good].T
    return np.asarray(matrix @ root)


def tsv(deltas: Sequence[Array]) -> Array:
    share = min(deltas[0].shape) // len(deltas)
    parts = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    u = np.concatenate([p[0][:, :share] for p in parts], axis=1)
    s = np.concatenate([p[1][:share] for p in parts])
    v = np.concatenate([p[2][:share].T for p in parts], axis=1)
    return np.asarray(nearest_orthogonal(u) @ np.diag(s) @ nearest_orthogonal(v).T)


def iso_c(deltas: Sequence[Array]) -> Array:
    total = sum(deltas)
    spectrum = np.sqrt(np.clip(np.linalg.eigvalsh(total.T @ total), 0.0, None))
    strongest = np.sort(spectrum)[::-1][: min(total.shape)]
    return nearest_orthogonal(total) * strongest.mean()
