"""Parameters that are wrong, have no effect, or are known to make bad merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from toolkit.checkpoint.tensor_names import contains
from toolkit.errors import Fault, MergeError
from toolkit.merge.check.findings import from_message
from toolkit.merge.check.survey import Survey
from toolkit.merge.methods.checks import ZERO_WEIGHT, ParameterError, at_fault
from toolkit.merge.moments import read_moments
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


def check_filters(places: Places, survey: Survey) -> Iterator[Fault]:
    """Filters that are contained in no tensor's name, so that they never apply."""
    names = [name for model in survey.models for name in model.checkpoint.names]
    for where, settings in places:
        for parameter, setting in settings.items():
            if not isinstance(setting, (Mapping, list, tuple)):
                continue
            for wanted in dict.fromkeys(setting_filters(setting)):
                if names and wanted != "*" and not any(contains(name, wanted) for name in names):
                    yield Fault(
                        f"{where}.{parameter}",
                        f"no tensor's name contains the filter {wanted!r}",
                        f"names look like {names[len(names) // 2]}",
                        "warning",
                    )


def check_settings(plan: MergePlan) -> Iterator[Fault]:
    """Try every setting of a plan out on a tiny tensor, and judge those that work.

    Args:
        plan: of the merge.
    """
    # Tasks of equal parameters are judged once; a merge of thousands of tensors has few settings.
    tasks_by_setting: dict[str, list[TensorTask]] = {}
    for task in plan.tasks:
        if not task.is_copied:
            setting_key = repr((task.parameters, [source.model for source in task.sources]))
            tasks_by_setting.setdefault(setting_key, []).append(task)
    refused_findings: dict[str, Fault] = {}
    for same_tasks in list(tasks_by_setting.values())[:_REHEARSALS]:
        if (message := _rehearse(plan, same_tasks[0])) is not None:
            finding = from_message(message)
            refused_findings.setdefault(finding.where, finding)
    yield from refused_findings.values()
    counted_findings: dict[tuple[str, str], tuple[Fault, int]] = {}
    for same_tasks in tasks_by_setting.values():
        for finding in _judge(plan, same_tasks[0]):
            first, count = counted_findings.get((finding.where, finding.advice), (finding, 0))
            counted_findings[finding.where, finding.advice] = (first, count + len(same_tasks))
    num_tasks = sum(map(len, tasks_by_setting.values()))
    for finding, count in counted_findings.values():
        share_text = f" in {count} of {num_tasks} tensors" if count < num_tasks else ""
        yield replace(finding, what=finding.what + share_text)
    yield from _idle(plan)


def _rehearse(plan: MergePlan, task: TensorTask) -> str | None:
    """What the method would refuse about a task's parameters, found on 16 entries."""
    import torch

    # Methods look at their parameters whatever the tensors are, so a few entries tell for all.
    tiny_task = replace(task, shape=(4, 4))
    if plan.method.needs_thresholds:
        tiny_task = replace(tiny_task, thresholds=tuple(0.0 for _ in task.sources))
    base = torch.eye(4)
    # Squares of 4 inputs for regmean, of 4 times 4 entries for fisher: of one shape.
    moments = [base for _ in task.sources]
    tensors = [base + torch.arange(16.0).reshape(4, 4) * (n + 1) for n in range(len(task.sources))]
    try:
        if plan.method.needs_moments:
            read_moments(plan.method.name, task)
        compute_tensor(
            plan.method,
            tiny_task,
            tensors,
            base if task.base is not None else None,
            seed=0,
            dtype=torch.float32,
            moments=moments,
        )
    except ParameterError as error:
        return at_fault(error, task)
    except MergeError as error:
        return str(error)
    return None


def _judge(plan: MergePlan, task: TensorTask) -> Iterator[Fault]:
    method_name, task_values = plan.method.name, task.parameters
    yield from _judge_weights(method_name, task)
    density = task_values.get("density")
    if method_name in _TRIMMING | _DROPPING and density is not None:
        yield from _judge_density(method_name, density, task_values)
    if method_name == "task_arithmetic" and density is not None and any(d != 1.0 for d in density):
        yield Fault(
            "density",
            f"{_shown(density)} has no effect in task_arithmetic",
            "leave it out, or use a method that trims, such as ties",
            "note",
        )
    if method_name == "slerp" and not 0.0 <= task_values["t"] <= 1.0:
        yield Fault(
            "t",
            f"is {task_values['t']:g}, outside 0 (base_model) to 1 (the other)",
            "slerp then goes beyond the models; keep it within",
            "warning",
        )


def _judge_weights(name: str, task: TensorTask) -> Iterator[Fault]:
    task_values = task.parameters
    weight = task_values.get("weight")
    if weight is None or "nuslerp" in name or "multislerp" in name:
        return
    weight_sum = sum(weight)
    lambda_scale = float(task_values.get("lambda_", 1.0))
    is_mean = bool(task_values.get("normalize", False))
    # What has no such switch is a mean by itself, such as fisher.
    is_mean |= "normalize" not in task_values and task.base is None
    if task.base is None and not is_mean and abs(weight_sum - 1.0) > _MEAN:
        yield Fault(
            "weight",
            f"{_shown(weight)} sum to {weight_sum:g} without normalize",
            "every tensor is scaled by that; set normalize: true, or weights that sum to 1",
            "warning",
        )
    elif task.base is not None and not is_mean and weight_sum * lambda_scale > _SUM:
        lambda_text = f", times lambda {lambda_scale:g}" if lambda_scale != 1.0 else ""
        yield Fault(
            "weight",
            f"{_shown(weight)} sum to {weight_sum:g}{lambda_text} without normalize",
            f"what the models share is added {weight_sum * lambda_scale:g} times; set normalize: "
            "true, lower the weights, or lower lambda",
            "warning",
        )
    elif task.base is not None and is_mean and lambda_scale > _SUM:
        yield Fault(
            "lambda",
            f"is {lambda_scale:g}",
            f"the mean task vector is added {lambda_scale:g} times; lower it",
            "warning",
        )
    if task.base is not None and abs(lambda_scale) < ZERO_WEIGHT:
        yield Fault("lambda", "is 0", "the merge is the base model; raise it", "warning")
    if any(factor < 0.0 for factor in weight):
        yield Fault(
            "weight",
            f"{_shown(weight)} has a negative one",
            "that model's task vector is taken away; make sure that it is meant",
            "note",
        )


def _judge_density(name: str, density: Sequence[float], values: ParameterValues) -> Iterator[Fault]:
    if all(least_density == 1.0 for least_density in density):
        yield Fault(
            "density",
            f"is 1 for all models: {name} trims nothing",
            "set 0.2 to 0.8 to trim, as the method is meant",
            "note",
        )
    if any(0.0 < least_density < _FEW for least_density in density):
        yield Fault(
            "density",
            f"{_shown(density)}: less than {_FEW:g} of a task vector's entries are kept",
            "merges are known to suffer there; raise it to 0.2 or more",
            "warning",
        )
    if name in _DROPPING and not values.get("rescale", True):
        least_density = min(density)
        if least_density < 1.0 - _FEW:
            yield Fault(
                "rescale",
                f"is false at density {least_density:g}",
                f"task vectors shrink to {least_density:.0%} on average; set rescale: true, as in "
                "the paper",
                "warning",
            )


def _idle(plan: MergePlan) -> Iterator[Fault]:
    """Models that take no part in any tensor: weight or density of zero throughout."""
    shares: dict[tuple[str, str], bool] = {}
    is_thinned = plan.method.name in _TRIMMING | _DROPPING
    for task in plan.tasks:
        for key in ("weight", "density") if is_thinned else ("weight",):
            task_values = task.parameters.get(key)
            if task_values is None or task.is_copied:
                continue
            for source, value in zip(task.sources, task_values, strict=True):
                is_zero = abs(value) < ZERO_WEIGHT
                shares[source.model, key] = shares.get((source.model, key), True) and is_zero
    for (model, key), is_idle in shares.items():
        if is_idle:
            yield Fault(
                model,
                f"has {key} 0 in every tensor, so it takes no part",
                f"raise its {key}, or leave it out",
                "warning",
            )


def _shown(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
