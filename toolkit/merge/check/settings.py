"""Parameters that are wrong, have no effect, or are known to make bad merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from toolkit.checkpoint.tensor_names import contains
from toolkit.errors import MergeError
from toolkit.merge.check.findings import Finding, from_message
from toolkit.merge.check.survey import Survey
from toolkit.merge.methods.checks import ZERO_WEIGHT, ParameterError, at_fault
from toolkit.merge.parameters import Places, setting_filters
from toolkit.merge.plan import MergePlan
from toolkit.merge.registry import ParameterValues
from toolkit.merge.task import TensorTask
from toolkit.merge.torch_engine import compute_tensor

_TRIMMING = {"ties", "ties_global", "breadcrumbs", "breadcrumbs_ties"}
_DROPPING = {"dare_linear", "dare_ties", "della", "della_linear"}
"""Methods that thin out task vectors by `density`: by magnitude, and at random."""

_FEW = 0.1
"""Density below which a merge is known to suffer: the TIES and DARE papers find little loss down to
0.2 and 0.1, and a steep one below."""

_SUM = 1.5
"""Sum of weights, times lambda, above which a merge overshoots: every task vector that two models
share is then added half as often again as training moved it."""

_MEAN = 0.1
"""How far the sum of weights may be from 1 where it scales the models themselves: past 10 % every
norm and logit of the network is off."""

_REHEARSALS = 512
"""Settings tried out; gradients over depth make as many as there are layers."""


def check_filters(places: Places, survey: Survey) -> Iterator[Finding]:
    """Filters that are contained in no tensor's name, so that they never apply."""
    names = [name for model in survey.models for name in model.checkpoint.names]
    for where, settings in places:
        for parameter, setting in settings.items():
            if not isinstance(setting, (Mapping, list, tuple)):
                continue
            for wanted in dict.fromkeys(setting_filters(setting)):
                if names and wanted != "*" and not any(contains(name, wanted) for name in names):
                    yield Finding(
                        "warning",
                        f"{where}.{parameter}",
                        f"no tensor's name contains the filter {wanted!r}",
                        f"names look like {names[len(names) // 2]}",
                    )


def check_settings(plan: MergePlan) -> Iterator[Finding]:
    """Try every setting of a plan out on a tiny tensor, and judge those that work.

    Args:
        plan: of the merge.
    """
    distinct: dict[str, list[TensorTask]] = {}
    for task in plan.tasks:
        if not task.is_copied:
            key = repr((task.parameters, [source.model for source in task.sources]))
            distinct.setdefault(key, []).append(task)
    refused: dict[str, Finding] = {}
    for tasks in list(distinct.values())[:_REHEARSALS]:
        if (message := _rehearse(plan, tasks[0])) is not None:
            finding = from_message(message)
            refused.setdefault(finding.where, finding)
    yield from refused.values()
    counts: dict[tuple[str, str], tuple[Finding, int]] = {}
    for tasks in distinct.values():
        for finding in _judge(plan, tasks[0]):
            first, count = counts.get((finding.where, finding.advice), (finding, 0))
            counts[finding.where, finding.advice] = (first, count + len(tasks))
    total = sum(map(len, distinct.values()))
    for finding, count in counts.values():
        many = f" in {count} of {total} tensors" if count < total else ""
        yield replace(finding, what=finding.what + many)
    yield from _idle(plan)


def _rehearse(plan: MergePlan, task: TensorTask) -> str | None:
    """What the method would refuse about a task's parameters, found on 16 entries."""
    import torch

    tiny = replace(task, shape=(4, 4))
    if plan.method.needs_thresholds:
        tiny = replace(tiny, thresholds=tuple(0.0 for _ in task.sources))
    base = torch.eye(4)
    tensors = [base + torch.arange(16.0).reshape(4, 4) * (n + 1) for n in range(len(task.sources))]
    try:
        compute_tensor(
            plan.method,
            tiny,
            tensors,
            base if task.base is not None else None,
            seed=0,
            dtype=torch.float32,
        )
    except ParameterError as error:
        return at_fault(error, task)
    except MergeError as error:
        return str(error)
    return None


def _judge(plan: MergePlan, task: TensorTask) -> Iterator[Finding]:
    name, values = plan.method.name, task.parameters
    yield from _judge_weights(name, task)
    density = values.get("density")
    if name in _TRIMMING | _DROPPING and density is not None:
        yield from _judge_density(name, density, values)
    if name == "task_arithmetic" and density is not None and any(d != 1.0 for d in density):
        yield Finding(
            "note",
            "density",
            f"{_shown(density)} has no effect in task_arithmetic",
            "leave it out, or use a method that trims, such as ties",
        )
    if name == "slerp" and not 0.0 <= values["t"] <= 1.0:
        yield Finding(
            "warning",
            "t",
            f"is {values['t']:g}, outside 0 (base_model) to 1 (the other)",
            "slerp then goes beyond the models; keep it within",
        )


def _judge_weights(name: str, task: TensorTask) -> Iterator[Finding]:
    values = task.parameters
    weight = values.get("weight")
    if weight is None or "nuslerp" in name or "multislerp" in name:
        return
    total = sum(weight)
    scale = float(values.get("lambda_", 1.0))
    is_mean = bool(values.get("normalize", False))
    if task.base is None and not is_mean and abs(total - 1.0) > _MEAN:
        yield Finding(
            "warning",
            "weight",
            f"{_shown(weight)} sum to {total:g} without normalize",
            "every tensor is scaled by that; set normalize: true, or weights that sum to 1",
        )
    elif task.base is not None and not is_mean and total * scale > _SUM:
        times = f", times lambda {scale:g}" if scale != 1.0 else ""
        yield Finding(
            "warning",
            "weight",
            f"{_shown(weight)} sum to {total:g}{times} without normalize",
            f"what the models share is added {total * scale:g} times; set normalize: true, lower "
            "the weights, or lower lambda",
        )
    elif task.base is not None and is_mean and scale > _SUM:
        yield Finding(
            "warning",
            "lambda",
            f"is {scale:g}",
            f"the mean task vector is added {scale:g} times; lower it",
        )
    if task.base is not None and abs(scale) < ZERO_WEIGHT:
        yield Finding("warning", "lambda", "is 0", "the merge is the base model; raise it")
    if any(factor < 0.0 for factor in weight):
        yield Finding(
            "note",
            "weight",
            f"{_shown(weight)} has a negative one",
            "that model's task vector is taken away; make sure that it is meant",
        )


def _judge_density(
    name: str, density: Sequence[float], values: ParameterValues
) -> Iterator[Finding]:
    if all(share == 1.0 for share in density):
        yield Finding(
            "note",
            "density",
            f"is 1 for all models: {name} trims nothing",
            "set 0.2 to 0.8 to trim, as the method is meant",
        )
    if any(0.0 < share < _FEW for share in density):
        yield Finding(
            "warning",
            "density",
            f"{_shown(density)}: less than {_FEW:g} of a task vector's entries are kept",
            "merges are known to suffer there; raise it to 0.2 or more",
        )
    if name in _DROPPING and not values.get("rescale", True):
        share = min(density)
        if share < 1.0 - _FEW:
            yield Finding(
                "warning",
                "rescale",
                f"is false at density {share:g}",
                f"task vectors shrink to {share:.0%} on average; set rescale: true, as in the "
                "paper",
            )


def _idle(plan: MergePlan) -> Iterator[Finding]:
    """Models that take no part in any tensor: weight or density of zero throughout."""
    shares: dict[tuple[str, str], bool] = {}
    for task in plan.tasks:
        for key in ("weight", "density"):
            found = task.parameters.get(key)
            if found is None or task.is_copied:
                continue
            for source, value in zip(task.sources, found, strict=True):
                is_zero = abs(value) < ZERO_WEIGHT
                shares[source.model, key] = shares.get((source.model, key), True) and is_zero
    for (model, key), is_idle in shares.items():
        if is_idle:
            yield Finding(
                "warning",
                model,
                f"has {key} 0 in every tensor, so it takes no part",
                f"raise its {key}, or leave it out",
            )


def _shown(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
