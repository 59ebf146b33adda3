"""Plain sentences about what is off in the figures of a merge; each threshold says why it is so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from toolkit.diagnose.figures import Diagnosis, DiagnosisFigures
from toolkit.diagnose.results import Loss, Remark
from toolkit.diagnose.trimming import AT_RANDOM

FAR_LAYER = 10.0
"""How many times further than the median layer one layer moves to be called out. In fine-tuned
models layers differ by a factor of two or three."""

OWN_MOVE = 2.0
"""How many times further than every parent moved there, before a kind of tensors in one layer is
called out: a merge moves about as far as its parents, and small tensors such as norms vary much."""

OPPOSITE = -0.5
"""Cosine between task vectors below which they mostly undo each other; those of different tasks
are near 0, of related tasks above it."""

IDENTICAL = 0.01
"""Distance from a parent, relative to that between the parents, below which the merge is it."""

OUTSIDE = 1.25
"""Distance from a parent or the base, relative to the largest distance among those, above which the
merge is outside of what they span. A weighted mean of models is never above 1."""

UNRELATED = 1.0
"""Distance between the parents, relative to the base's norm, from which on they are no relatives:
a cosine of 0.5 between models of one size. Fine-tuning stays below 0.3, and models trained apart
are at 1.4."""

ASIDE = 0.55
"""Distance from the plane through the parents and the base, relative to the parents' largest
distance, above which the merge has what no parent has. Trimming a task vector to the share `k` of
its squared norm leads `sqrt(k - k²)` aside, at most 0.5, and so does rounding."""

TRIMMED = 0.5
"""Share of a task vector's squared norm, removed by trimming, from which on little is left of it.
TIES at density 0.2 removes about a third."""

_NAMES = 3
"""Layers, tensors or tokens that one sentence names."""

LOSS_MARGIN = 0.01
"""Bits per byte by which a merge's loss must exceed every parent's to be called worse. All models
read the same text, so a smaller difference is rounding; a recipe tolerates as much by default."""

GIBBERISH = 0.75
"""Share of `log2(vocabulary)`, the bits per token of blind guessing, from which on a model says
nothing. Knowing no more than how frequent each token is takes English to about two thirds of it."""


def remarks_of(
    diagnosis: Diagnosis,
    losses: Sequence[Loss] = (),
    token: Callable[[int], str | None] = lambda _: None,
) -> list[Remark]:
    """Everything that is off; empty where nothing is.

    Args:
        diagnosis: figures of the merge.
        losses: losses of the merge and then of its parents, where they were scored.
        token: gives the token of an id, for rows of zeros.
    """
    remarks = [
        *_damage(diagnosis),
        *_zero_rows(diagnosis, token),
        *remarks_on_losses(losses),
        *_unrelated(diagnosis),
        *_far_layers(diagnosis),
        *_far_parts(diagnosis),
        *_identical(diagnosis),
        *_outside(diagnosis),
        *_aside(diagnosis),
        *_opposite(diagnosis),
        *_trimmed(diagnosis),
        *_left_out(diagnosis),
    ]
    return list(dict.fromkeys(remarks))


def _damage(diagnosis: Diagnosis) -> Iterator[Remark]:
    for label, counts in diagnosis.measured.non_finite.items():
        yield Remark(
            "non_finite",
            f"{label} holds {sum(counts.values())} entries that are NaN or infinite, in "
            f"{_some(list(counts))}; a model cannot compute with them.",
        )


def _zero_rows(diagnosis: Diagnosis, token: Callable[[int], str | None]) -> Iterator[Remark]:
    for name, rows in diagnosis.measured.zero_rows.items():
        named_rows = [
            f"{row} {word!r}" if (word := token(row)) is not None else f"{row}" for row in rows
        ]
        yield Remark(
            "zero_rows",
            f"{name}: {len(rows)} row{_s(rows)} of zeros that {_have(rows)} values in a parent "
            f"(token {_some(named_rows)}); the merge cannot read or say {_them(rows)}.",
        )


def remarks_on_losses(losses: Sequence[Loss]) -> Iterator[Remark]:
    """Sentences on the losses; the merge comes first, its parents after it."""
    for loss in losses:
        if loss.problem is not None:
            yield Remark("unscored", f"{loss.label} could not be scored: {loss.problem}")
    scored_losses = [loss for loss in losses if loss.bits_per_byte is not None]
    for loss in scored_losses:
        uniform_bits = math.log2(loss.vocabulary) if loss.vocabulary > 1 else math.inf
        if (loss.bits_per_token or 0.0) >= GIBBERISH * uniform_bits:
            yield Remark(
                "gibberish",
                f"{loss.label} speaks gibberish: {loss.bits_per_token:.1f} bits per token, and "
                f"guessing blindly among {loss.vocabulary} tokens takes {uniform_bits:.1f}.",
            )
    # By identity: a parent may have the merge's very figures.
    parent_losses = [loss for loss in scored_losses if loss is not losses[0]]
    merge_loss = losses[0].bits_per_byte if losses else None
    if merge_loss is None or not parent_losses:
        return
    worst_parent = max(parent_losses, key=lambda loss: loss.bits_per_byte or 0.0)
    if merge_loss > (worst_parent.bits_per_byte or 0.0) + LOSS_MARGIN:
        parent_words = ", ".join(f"{loss.label} {loss.bits_per_byte:.4f}" for loss in parent_losses)
        above_words = (
            "all parents"
            if len(parent_losses) > 2
            else "both parents"
            if len(parent_losses) == 2
            else ""
        )
        yield Remark(
            "loss",
            f"The merge's loss is above {above_words or parent_losses[0].label}: {merge_loss:.4f} "
            "bits per byte "
            f"({parent_words}). Lower the weights, or look at the layers that moved furthest.",
        )


def _unrelated(diagnosis: Diagnosis) -> Iterator[Remark]:
    """By the matrices inside the layers: norms are near one in every model."""
    scatters = [
        kind.scatter
        for kind in diagnosis.kinds
        if kind.name in {"attention", "mlp"} and kind.scatter is not None
    ]
    # All kinds must lie apart: one that was trained anew, such as experts, is no proof.
    if scatters and min(scatters) >= UNRELATED:
        yield Remark(
            "unrelated",
            f"The parents' layers lie {min(scatters):.2f} times the base's norm apart: they do not "
            "come from one model, and merging their weights makes gibberish.",
        )


def _far_layers(diagnosis: Diagnosis) -> Iterator[Remark]:
    moved_by_layer = {
        layer.name: layer.moved for layer in diagnosis.layers if layer.moved is not None
    }
    # The median and not the mean, which the one far layer would pull up.
    median_move = statistics.median(moved_by_layer.values()) if moved_by_layer else 0.0
    far_layers = [layer for layer in diagnosis.layers if _is_far(layer.moved, median_move)]
    for layer in sorted(far_layers, key=lambda item: -(item.moved or 0.0))[:_NAMES]:
        parent_move = _furthest_parent(layer)
        cause = (
            f"no parent moved more than {parent_move:.3g} there, so the merge did it"
            if (layer.moved or 0.0) > OWN_MOVE * parent_move
            else f"a parent moved {parent_move:.3g} there itself"
        )
        yield Remark(
            "layers",
            f"Layer {layer.name} moved {(layer.moved or 0.0) / median_move:.0f} times as far from "
            "the "
            f"base as the median layer ({layer.moved:.3g} of its norm against {median_move:.3g}); "
            f"{cause}.",
        )
    if len(far_layers) > _NAMES:
        yield Remark("layers", f"So did {len(far_layers) - _NAMES} more layers.")


def _far_parts(diagnosis: Diagnosis) -> Iterator[Remark]:
    """Kinds within layers; a whole layer that is far says enough."""
    by_kind: dict[str, dict[str, DiagnosisFigures]] = {}
    for (layer, kind), figures in diagnosis.parts.items():
        by_kind.setdefault(kind, {})[layer] = figures
    moved_by_layer = {layer.name: layer.moved for layer in diagnosis.layers}
    median_layer = statistics.median([m for m in moved_by_layer.values() if m is not None] or [0.0])
    for kind, by_layer in by_kind.items():
        known_moves = [f.moved for f in by_layer.values() if f.moved is not None]
        median_move = statistics.median(known_moves or [0])
        for layer, figures in by_layer.items():
            moved, parent_move = figures.moved or 0.0, _furthest_parent(figures)
            is_far = _is_far(figures.moved, median_move) and moved > OWN_MOVE * parent_move
            # A layer that is far as a whole has its remark already.
            if is_far and not _is_far(moved_by_layer[layer], median_layer):
                yield Remark(
                    "layers",
                    f"The {kind} of layer {layer} moved {moved / median_move:.0f} times as far as "
                    f"in the median layer ({moved:.3g} of its norm), and no parent moved more than "
                    f"{parent_move:.3g} there.",
                )


def _furthest_parent(figures: DiagnosisFigures) -> float:
    return max((norm or 0.0 for norm in figures.task_norms.values()), default=0.0)


def _is_far(moved: float | None, median: float) -> bool:
    return moved is not None and median > 0.0 and moved > FAR_LAYER * median


def _identical(diagnosis: Diagnosis) -> Iterator[Remark]:
    whole = diagnosis.whole
    for label, distance in whole.distances.items():
        if distance is not None and distance < IDENTICAL:
            how = "is identical to" if distance == 0.0 else "is as good as identical to"
            yield Remark(
                "identical",
                f"The merge {how} {label} (distance {distance:.2g} of that between the parents); "
                "the others' weights do nothing.",
            )
    # A base that is a parent is told by its distance above.
    is_base_alone = whole.moved == 0.0 and diagnosis.subjects.base not in diagnosis.subjects.parents
    if is_base_alone:
        label = diagnosis.subjects.labels[diagnosis.subjects.base]
        yield Remark("identical", f"The merge is identical to the base model {label}.")


def _outside(diagnosis: Diagnosis) -> Iterator[Remark]:
    whole = diagnosis.whole
    model_distances = dict(whole.distances)
    # Distances are in units of the parents' largest; from the base a parent may lie farther than
    # that, and then spans more.
    outer_span = max([1.0, *(_over(n, whole.scatter) for n in whole.task_norms.values())])
    label = diagnosis.subjects.labels[diagnosis.subjects.base]
    model_distances.setdefault(label, whole.base_distance)
    relative_distances = {
        name: d / outer_span for name, d in model_distances.items() if d is not None
    }
    furthest_model = max(
        relative_distances, key=lambda name: relative_distances[name], default=None
    )
    if furthest_model is not None and relative_distances[furthest_model] > OUTSIDE:
        yield Remark(
            "outside",
            "The merge lies outside of what its parents span: "
            f"{relative_distances[furthest_model]:.2f} times as far from "
            f"{furthest_model} as they lie apart. Weights may sum to more than 1, or dropping "
            "entries at random may have blown up the rest.",
        )


def _aside(diagnosis: Diagnosis) -> Iterator[Remark]:
    plan, aside = diagnosis.subjects.plan, diagnosis.whole.aside
    if plan is not None and plan.method.name in AT_RANDOM:
        return  # what is scaled up to make good for what was dropped leads aside, as it is meant to
    if any(_far_layers(diagnosis)):
        return  # that explains it, and says more
    if aside is not None and aside > ASIDE:
        yield Remark(
            "aside",
            f"The merge lies {aside:.2f} times the parents' distance aside of them: more than "
            "trimming explains. Entries were dropped at random, or it was made from other models "
            "than these.",
        )


def _over(norm: float | None, scatter: float | None) -> float:
    return norm / scatter if norm is not None and scatter else 0.0


def _opposite(diagnosis: Diagnosis) -> Iterator[Remark]:
    for pair, cosine in diagnosis.whole.cosines.items():
        opposite_layers = [
            layer.name
            for layer in diagnosis.layers
            if (layer_cosine := layer.cosines.get(pair)) is not None and layer_cosine < OPPOSITE
        ]
        a, b = pair
        if cosine is not None and cosine < OPPOSITE:
            yield Remark(
                "opposite",
                f"The task vectors of {a} and {b} are nearly opposite (cosine {cosine:.2f}): what "
                "one learned the other unlearned, and their merge keeps little of either.",
            )
        elif opposite_layers:
            yield Remark(
                "opposite",
                f"The task vectors of {a} and {b} are nearly opposite in "
                f"layer{_s(opposite_layers)} {_some(opposite_layers)} (cosine below {OPPOSITE}).",
            )


def _trimmed(diagnosis: Diagnosis) -> Iterator[Remark]:
    for label, (entries, squares) in diagnosis.whole.trimmed.items():
        if entries is not None and squares is not None and squares > TRIMMED:
            yield Remark(
                "trimmed",
                f"Trimming removed {entries:.0%} of the entries of {label}'s task vector and with "
                f"them {squares:.0%} of its squared norm; raise its density.",
            )


def _left_out(diagnosis: Diagnosis) -> Iterator[Remark]:
    left_out, num_tensors = (
        diagnosis.measured.left_out,
        len(diagnosis.subjects.checkpoints[0].names),
    )
    if left_out:
        yield Remark(
            "left_out",
            f"{len(left_out)} of the merge's {num_tensors} tensors are not compared, as a parent "
            f"lacks them or has them in another shape or type ({_some(left_out)}).",
        )


def note_on_dropping(diagnosis: Diagnosis) -> str | None:
    """What is said in place of figures where entries were dropped at random."""
    plan = diagnosis.subjects.plan
    if plan is None or plan.method.name not in AT_RANDOM:
        return None
    return (
        f"{plan.method.name} drops entries at random: of each task vector about 1 − density of "
        "the entries went; which ones is not worked out again here."
    )


def _some(names: Sequence[str]) -> str:
    num_more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {num_more} more" if num_more > 0 else "")


def _s(items: Sequence[object]) -> str:
    return "" if len(items) == 1 else "s"


def _have(items: Sequence[object]) -> str:
    return "has" if len(items) == 1 else "have"


def _them(items: Sequence[object]) -> str:
    return "it" if len(items) == 1 else "them"
