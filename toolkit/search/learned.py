"""Coefficients that are learned: one for every layer and kind of module, by gradient.

A merge `base + w·change` is differentiable in its coefficients: the gradient of a coefficient is
the inner product of the parameters' gradients with the change that it scales, so one backward pass
gives them all. They begin at a plain mean, where gaining on the domain is weighed against losing on
general sets just as going along the plain means weighs it: what is learned is what differs from
that line. Merges are stored rounded, and so they are here; the gradient passes over the rounding.

Legend: K coefficients.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.evaluate.head import can_pad, final_hidden, picked_log_probabilities
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.in_memory import LiveMerge, parameters_by_name
from toolkit.progress import progress, say
from toolkit.search.config import LearnedSection
from toolkit.search.objective import Objective
from toolkit.search.space import GENERAL, SPECIALIST, Candidate
from toolkit.stage import load_json, write_json

LEARNED = "learned.json"

_BATCH_TOKENS = 512
"""Tokens whose activations are kept at one time."""

_MOST = 1.5
"""Largest coefficient: further out no loss was ever looked at."""

_LAYER = re.compile(r"^(?P<stack>.+?)\.(?P<layer>\d+)\.(?P<kind>[^.]+)\.")


@dataclass(frozen=True)
class ModuleGroup:
    """Tensors with one coefficient.

    Attributes:
        layer: number of their layer; None outside of all.
        kind: module within the layer, such as `self_attn`; empty for what is no matrix there.
    """

    layer: int | None
    kind: str = ""


def find_groups(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, ModuleGroup]]:
    """The group of each tensor, and the name of the stack of layers.

    Raises:
        ConfigError: there is no stack of layers, or there are several.

    >>> stack, groups = find_groups({"model.layers.0.mlp.up.weight": (4, 2), "norm.weight": (2,)})
    >>> stack, groups["model.layers.0.mlp.up.weight"], groups["norm.weight"].layer
    ('model.layers', ModuleGroup(layer=0, kind='mlp'), None)
    """
    places = {name: match for name in shapes if (match := _LAYER.match(name)) is not None}
    stacks = {match["stack"] for match in places.values()}
    if len(stacks) != 1:
        raise ConfigError(
            f"search.learned: is for models with one stack of layers (found "
            f"{', '.join(sorted(stacks)) or 'none'}); leave it out."
        )
    kinds = {match["kind"] for name, match in places.items() if len(shapes[name]) > 1}
    groups = {name: ModuleGroup(None) for name in shapes}
    for name, match in places.items():
        kind = match["kind"] if match["kind"] in kinds else ""
        groups[name] = ModuleGroup(int(match["layer"]), kind)
    return stacks.pop(), groups


def profile_config(
    section: LearnedSection, stack: str, values: Mapping[ModuleGroup, float]
) -> MergeConfig:
    """A plain merge configuration with a coefficient for each group, as lists over depth.

    Args:
        section: method and density.
        stack: name of the stack of layers.
        values: coefficient of each group.
    """
    layers = sorted({group.layer for group in values if group.layer is not None})
    settings: list[dict[str, object]] = []
    for kind in sorted({group.kind for group in values if group.layer is not None}, reverse=True):
        # Kinds first, then what else is in the layers: the first filter that matches counts.
        over_depth = [values.get(ModuleGroup(layer, kind), section.alpha) for layer in layers]
        # A filter matches anywhere in a name: the dots keep `mlp` from matching `mlp_gate`.
        place = f".{kind}." if kind else f"{stack}."
        settings.append({"filter": place, "value": [round(value, 4) for value in over_depth]})
    outside = values.get(ModuleGroup(None), section.alpha)
    weight: object = [*settings, {"value": round(outside, 4)}]
    return _config(section, weight)


def _config(section: LearnedSection, weight: object) -> MergeConfig:
    parameters: dict[str, object] = {"weight": weight}
    values: dict[str, object] = {"merge_method": section.method, "base_model": GENERAL}
    if section.method == "ties":
        parameters["density"] = section.density
        values["parameters"] = {"normalize": False}
    values["models"] = [{"model": SPECIALIST, "parameters": parameters}]
    return parse_merge_config(values, where="search.learned")


class LiveProfile:
    """The parameters of a live merge as a function of its coefficients.

    Args:
        live: holds `general` and `specialist`.
        model: a loaded model of their architecture in float32; it is overwritten.
        section: method and density. What is trimmed does not depend on the coefficients.
        stored: type that merges are stored in.

    Raises:
        ConfigError: the model keeps its tensors in another form than its files.
    """

    def __init__(
        self, live: LiveMerge, model: Any, section: LearnedSection, stored: torch.dtype
    ) -> None:
        whole_change = _config(section, 1.0)
        tasks = [task for task in live.plan(whole_change).tasks if not task.is_copied]
        self.stack, groups = find_groups({task.name: task.shape for task in tasks})
        self.groups = list(dict.fromkeys(groups.values()))
        self._model, self._stored = model, stored
        named = parameters_by_name(model)
        parameters: dict[int, tuple[Tensor, int]] = {}  # tied ones once
        for task in tasks:
            parameter = named.get(task.name)
            if parameter is None or tuple(parameter.shape) != tuple(task.shape):
                raise ConfigError(
                    f"search.learned: {task.name} is kept in another form when the model is "
                    "loaded, so its gradient is not known; leave search.learned out."
                )
            place = self.groups.index(groups[task.name])
            parameters.setdefault(id(parameter), (parameter, place))
        self._parameters = list(parameters.values())
        # None at first, then those that are merged: what is copied needs no gradient.
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        # Both ends as the merge itself makes them; between them it is linear in its coefficients.
        live.apply(_config(section, 0.0), model)
        self._base = [parameter.detach().clone() for parameter, _ in self._parameters]
        live.apply(whole_change, model)
        self._change = [
            parameter.detach() - base
            for (parameter, _), base in zip(self._parameters, self._base, strict=True)
        ]
        for parameter, _ in self._parameters:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def put(self, coefficients: Tensor) -> None:
        """Make the merge of these coefficients, `[K]`, as it would be stored."""
        for (parameter, place), base, change in zip(
            self._parameters, self._base, self._change, strict=True
        ):
            parameter.copy_(torch.add(base, change, alpha=float(coefficients[place])))
            parameter.copy_(parameter.to(self._stored))

    def gradient(self, losses: Iterator[Tensor]) -> tuple[float, Tensor]:
        """The sum of some losses of the merge that was put, and its gradient, `[K]`.

        Args:
            losses: parts of it, each computed when it is asked for.
        """
        total = 0.0
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        gradient = torch.zeros(len(self.groups), dtype=torch.float64)
        for (parameter, place), change in zip(self._parameters, self._change, strict=True):
            if parameter.grad is not None:
                # In float64, as an inner product over as many entries as a layer has.
                gradient[place] += float(torch.sum(parameter.grad * change, dtype=torch.float64))
                parameter.grad = None
        return total, gradient


def item_losses(model: Any, items: EvaluationSet, rows: Sequence[int]) -> Iterator[Tensor]:
    """Losses of some items as one differentiable number for each batch, so that their sum is the
    set's figure on these items.

    Args:
        model: a causal language model.
        items: a set with sequences.
        rows: indices of the items.
    """
    size = sum(items.sizes[row] for row in rows)
    ordered = sorted(rows, key=lambda row: -len(items.sequences[row][0]))
    # Where padding would change what a model computes, every item is a batch by itself.
    batch_tokens = _BATCH_TOKENS if can_pad(model) else 1
    while ordered:
        longest = len(items.sequences[ordered[0]][0])
        room = max(1, batch_tokens // longest)
        batch, ordered = ordered[:room], ordered[room:]
        inputs = torch.zeros(len(batch), longest - 1, dtype=torch.long)
        targets: list[int] = []
        for place, row in enumerate(batch):
            tokens, num_scored = items.sequences[row]
            inputs[place, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            targets += tokens[len(tokens) - num_scored :]
        hidden = final_hidden(model, inputs)
        states = [
            hidden[place, len(tokens) - 1 - num_scored : len(tokens) - 1]
            for place, (tokens, num_scored) in enumerate(items.sequences[row] for row in batch)
        ]
        yield -picked_log_probabilities(model, torch.cat(states), targets).sum() * (
            items.scale / size
        )


@dataclass(frozen=True)
class FigureTrade:
    """What is lowered: the domain figure, plus general figures times what each is worth.

    Attributes:
        weights: of each set; what is 0 is left out.
        sets: the sets, by name.
    """

    weights: Mapping[str, float]
    sets: Mapping[str, EvaluationSet]

    def gradient(
        self, profile: LiveProfile, model: Any, rows: Mapping[str, Sequence[int]]
    ) -> tuple[float, Tensor]:
        """Value and gradient on some items of each set."""
        value, gradient = 0.0, torch.zeros(len(profile.groups), dtype=torch.float64)
        for name, weight in self.weights.items():
            if weight and rows[name]:
                part, slope = profile.gradient(item_losses(model, self.sets[name], rows[name]))
                value, gradient = value + weight * part, gradient + weight * slope
        return value, gradient


def learn_profile(
    objective: Objective,
    live: LiveMerge,
    model: Any,
    section: LearnedSection,
    stored: torch.dtype,
) -> tuple[Candidate, dict[str, object]]:
    """Learn the coefficients on the documents of a search.

    Args:
        objective: sets of the search, with what may be lost on general ones.
        live: holds `general` and `specialist`.
        model: a loaded model of their architecture in float32; it is overwritten.
        section: settings.
        stored: type that merges are stored in.

    Returns:
        The merge as a candidate, and figures of how it was learned.

    Raises:
        ConfigError: no domain set, or the model, can be learned from.
    """
    profile = LiveProfile(live, model, section, stored)
    model.eval()
    sets = {name: raced.items for name, raced in objective.sets.items() if raced.items.sequences}
    if not any(name in objective.weights for name in sets):
        raise ConfigError(
            "search.learned: no domain set consists of texts whose likelihood is the loss; leave "
            "it out."
        )
    coefficients = torch.full((len(profile.groups),), section.alpha, dtype=torch.float64)
    order = {name: objective.sets[name].order.tolist() for name in sets}
    trade, start_value = _balance(objective, profile, model, sets, order, coefficients)
    coefficients, tokens = _descend(trade, profile, model, order, coefficients, section)
    profile.put(coefficients)
    end_value = _value(trade, model, order)
    values = {
        group: float(value) for group, value in zip(profile.groups, coefficients, strict=True)
    }
    say(
        f"  learned {len(values)} coefficients from {tokens:,} tokens: {min(values.values()):.2f} "
        f"to {max(values.values()):.2f}; traded loss {start_value:.4f} at alpha "
        f"{section.alpha:g}, {end_value:.4f} now, on the documents that it learned from"
    )
    candidate = Candidate(
        f"learned {section.method}", profile_config(section, profile.stack, values)
    )
    figures: dict[str, object] = {
        "weights": dict(trade.weights),
        "value_at_start": start_value,
        "value_at_end": end_value,
        "tokens": tokens,
    }
    return candidate, figures


def _balance(
    objective: Objective,
    profile: LiveProfile,
    model: Any,
    sets: Mapping[str, EvaluationSet],
    order: Mapping[str, Sequence[int]],
    coefficients: Tensor,
) -> tuple[FigureTrade, float]:
    """What general figures are worth so that all coefficients together have no slope, and the value
    there: sets that lose nothing at the plain mean are worth nothing."""
    # First the general model, which all general sets are compared with.
    profile.put(torch.zeros_like(coefficients))
    general_names = [name for name in objective.tolerances if name in sets]
    with torch.no_grad():
        at_general = {
            name: float(sum(item_losses(model, sets[name], order[name]))) for name in general_names
        }
    profile.put(coefficients)
    figures, slopes = {}, {}
    for name in sets:
        if name in objective.weights or name in at_general:
            losses = item_losses(model, sets[name], order[name])
            figures[name], slopes[name] = profile.gradient(losses)
    weight_sum = sum(objective.weights.values())
    weights = {
        name: objective.weights[name] / weight_sum for name in objective.weights if name in sets
    }
    domain_slope = sum(weight * float(slopes[name].sum()) for name, weight in weights.items())
    lossy = [
        name
        for name, figure in at_general.items()
        if name not in weights and figures[name] > figure and float(slopes[name].sum()) > 0.0
    ]
    for name in lossy:  # each in units of what it may lose
        weights[name] = 1.0 / (objective.tolerances[name] or 1.0)
    loss_slope = sum(weights[name] * float(slopes[name].sum()) for name in lossy)
    # One price for all losses, at which moving all coefficients together neither gains nor loses:
    # then only what differs from the line of plain means is learned.
    worth = max(0.0, -domain_slope / loss_slope) if lossy else 0.0
    weights |= {name: weights[name] * worth for name in lossy}
    value = sum(weight * figures[name] for name, weight in weights.items())
    return FigureTrade(weights, sets), value


def _value(trade: FigureTrade, model: Any, order: Mapping[str, Sequence[int]]) -> float:
    with torch.no_grad():
        return sum(
            weight * float(sum(item_losses(model, trade.sets[name], order[name])))
            for name, weight in trade.weights.items()
        )


def _descend(
    trade: FigureTrade,
    profile: LiveProfile,
    model: Any,
    order: Mapping[str, Sequence[int]],
    coefficients: Tensor,
    section: LearnedSection,
) -> tuple[Tensor, int]:
    """Adam over batches of items in the order of the race; the mean of the second half of its
    steps, which scatter around what they lead to, and the tokens that were learned from."""
    learned = coefficients.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([learned], lr=section.learning_rate, betas=(0.8, 0.95))
    batches = {
        name: _batches(trade.sets[name], order[name], section.tokens_per_step)
        for name, weight in trade.weights.items()
        if weight  # what is worth nothing is not learned from
    }
    kept: list[Tensor] = []
    tokens = 0
    with progress("learning coefficients, steps", section.steps) as advance:
        for step in range(section.steps):
            rows = {name: next(stream) for name, stream in batches.items()}
            tokens += sum(
                len(trade.sets[name].sequences[row][0]) for name in rows for row in rows[name]
            )
            profile.put(learned.detach())
            # Set by hand: a loss's own graph ends at the model's parameters.
            value, learned.grad = trade.gradient(profile, model, rows)
            optimizer.step()
            with torch.no_grad():
                learned.clamp_(0.0, _MOST)
            if 2 * step >= section.steps:
                kept.append(learned.detach().clone())
            advance(1, f"traded loss {value:.4f}")
    return torch.stack(kept).mean(dim=0), tokens


def _batches(items: EvaluationSet, order: Sequence[int], num_tokens: int) -> Iterator[list[int]]:
    """Items of about so many tokens, again and again in the same order, none twice in a batch."""
    while True:
        batch: list[int] = []
        for row in order:
            batch.append(row)
            if sum(len(items.sequences[one][0]) for one in batch) >= num_tokens:
                yield batch
                batch = []
        if batch:
            yield batch


def save_learned(path: Path, candidate: Candidate, figures: Mapping[str, object]) -> None:
    """Keep what was learned beside the study, for other workers and for a run that continues."""
    config = candidate.config.model_dump(mode="json", exclude_none=True)
    write_json(path, {"name": candidate.name, "config": config, **figures})


def load_learned(path: Path) -> Candidate | None:
    """What was learned before; None where nothing was."""
    if not path.is_file():
        return None
    values = load_json(path)
    return Candidate(values["name"], parse_merge_config(values["config"], where=str(path)))
