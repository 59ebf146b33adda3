"""Methods on the singular values of task matrices: TSV-Merge and Iso-C.

Both treat as matrices only tensors of two or more dimensions inside the layers, over their last two
dimensions (stacked experts are merged one by one). Vectors, and the tables outside the layers
(embeddings and head, whose rows are tokens), are averaged instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from toolkit.merge.methods.task_vectors import task_vectors
from toolkit.merge.registry import PerModel, Place, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("tsv", reference="https://arxiv.org/abs/2412.00081")
def tsv(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    place: Place,
    weight: PerModel = (1.0,),
    lambda_: float = 1.0,
) -> Tensor:
    """TSV-Merge: the strongest singular vectors of each task matrix, made orthogonal to the others.

    Of each of the `M` task matrices `w_m * (x_m - base) = U_m S_m V_m^T` the first `1/M` of the
    singular vectors are kept and set side by side, `U = [U_1 ... U_M]`, and likewise `S` and `V`.
    With `U'` and `V'` the nearest orthogonal matrices (`U' = P Q^T` where `U = P D Q^T`):
    `base + lambda * U' S V'^T`. Directions of singular value zero are left out throughout, as they
    are arbitrary. Other tensors: `base + lambda * mean(w_m * (x_m - base))`.

    Args:
        tensors: tuned tensors, `[..., rows, columns]` each, float32, in file order.
        base: base-model tensor, of the same shape, float32.
        place: inside the layers or not.
        weight: multiplier of each task vector.
        lambda_: scale of the merged task vector, the paper's alpha.

    Returns:
        Merged tensor, of the same shape, float32.

    Reference:
        Gargiulo et al. 2024, Task singular vectors.
    """
    deltas = [
        delta * factor for delta, factor in zip(task_vectors(tensors, base), weight, strict=True)
    ]
    return _merge(deltas, place, _tsv_matrix).mul_(lambda_).add_(base)


@merge_method("iso_c", reference="https://arxiv.org/abs/2502.04959")
def iso_c(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    place: Place,
    weight: PerModel = (1.0,),
    lambda_: float = 1.0,
) -> Tensor:
    """Iso-C: the summed task matrix with all its singular values set to their mean.

    `base + lambda * s * U V^T`, where `sum(w_m * (x_m - base)) = U S V^T` and `s = mean(S)`. Of a
    matrix of lower rank (adapters) only the directions that are there count, in the mean and in
    the sum, as the others are arbitrary. Other tensors: `base + lambda * mean(w_m * (x_m - base))`.

    Args:
        tensors: tuned tensors, `[..., rows, columns]` each, float32, in file order.
        base: base-model tensor, of the same shape, float32.
        place: inside the layers or not.
        weight: multiplier of each task vector.
        lambda_: scale of the merged task vector, the paper's alpha.

    Returns:
        Merged tensor, of the same shape, float32.

    Reference:
        Marczak et al. 2025, No task left behind.
    """
    deltas = [
        delta * factor for delta, factor in zip(task_vectors(tensors, base), weight, strict=True)
    ]
    return _merge(deltas, place, _iso_matrix).mul_(lambda_).add_(base)


def _merge(
    deltas: Sequence[Tensor], place: Place, merge_matrices: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """`merge_matrices` for every matrix of the tensor, or the mean where it is none."""
    import torch

    first = deltas[0]
    if place.layer is None or first.dim() < 2 or first.numel() == 0:
        return torch.stack(list(deltas)).mean(dim=0)
    stacks = [delta.reshape(-1, *first.shape[-2:]) for delta in deltas]
    merged = [merge_matrices(matrices) for matrices in zip(*stacks, strict=True)]
    return torch.stack(merged).reshape(first.shape)


def _tsv_matrix(matrices: Sequence[Tensor]) -> Tensor:
    import torch

    directions_kept = max(1, min(matrices[0].shape) // len(matrices))
    decompositions = [_singular(matrix) for matrix in matrices]
    u = torch.cat([u[:, :directions_kept] for u, _, _ in decompositions], dim=1)
    s = torch.cat([s[:directions_kept] for _, s, _ in decompositions])
    vt = torch.cat([vt[:directions_kept] for _, _, vt in decompositions])
    return (_nearest_orthogonal(u) * s) @ _nearest_orthogonal(vt)


def _iso_matrix(matrices: Sequence[Tensor]) -> Tensor:
    import torch

    u, s, vt = _singular(torch.stack(list(matrices)).sum(dim=0))
    return (u * s.mean()) @ vt if len(s) > 0 else torch.zeros_like(matrices[0])


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    """`P Q^T` of `P D Q^T`, over the directions that `matrix` has."""
    if matrix.numel() == 0:
        return matrix
    p, _, qt = _singular(matrix)
    return p @ qt


def _singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition without the singular values that rounding makes of zeros.

    Args:
        matrix: `[rows, columns]`.

    Returns:
        U `[rows, k]`, S `[k]`, V transposed `[k, columns]`, with `k` the numerical rank.
    """
    import torch

    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    # The usual bound of a numerical rank, as in numpy's matrix_rank.
    rank = int((s > s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps).sum())
    return u[:, :rank], s[:rank], vt[:rank]
