"""Any task of lm-eval, item by item, on a model in memory.

Tasks are read and scored by lm-eval's own code. Prompts of all items are built once, so that the
examples in them do not depend on which items are scored together.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError, sentence_end
from toolkit.evaluate.config import EvaluateSection, TaskSection
from toolkit.evaluate.head import can_pad
from toolkit.evaluate.questions import split_place
from toolkit.evaluate.sets import BITS, EvaluationSet
from toolkit.evaluate.task_scoring import scoring_hash
from toolkit.library_errors import reading
from toolkit.load_yaml import refuse_hostile_yaml
from toolkit.stage import hash_json

_FEWSHOT_SEED = 1234
"""What lm-eval's own command uses."""

_OVER_SIZES = {"bits_per_byte", "weighted_perplexity"}
"""Aggregations of (log likelihood, size) pairs."""


@dataclass(frozen=True)
class _Metric:
    """How values of a metric become losses.

    Attributes:
        unit: of the figure.
        aggregation: lm-eval's name of it.
        rising: whether more is better.
    """

    unit: str
    aggregation: str
    rising: bool

    def loss(self, value: Any) -> float:
        if self.aggregation in _OVER_SIZES:
            return -float(value[0])
        if self.aggregation == "perplexity":
            return -float(value)
        return 1.0 - float(value) if self.rising else float(value)

    def scale(self) -> float:
        return BITS if self.aggregation == "bits_per_byte" else 1.0


class Task:
    """A task with the prompts of all its items.

    Attributes:
        name: of the task.
        hashes: of each item's content.
        metrics: those that are means over items, in the task's order.
        requests: lm-eval's requests of each item.
    """

    def __init__(self, name: str, task: Any, num_fewshot: int | None) -> None:
        self.name = name
        self._task = task
        with _quiet(), _own_randomness():
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            task.build_all_requests(rank=0, world_size=1)
        self.requests: list[list[Any]] = []
        for request in task.instances:
            if request.doc_id == len(self.requests):
                self.requests.append([])
            self.requests[request.doc_id].append(request)
        self.docs = [requests[0].doc for requests in self.requests]
        self.hashes = [
            hash_json(json.loads(json.dumps([r[0].doc, [_plain(i.args) for i in r]], default=str)))
            for r in self.requests
        ]
        higher = task.higher_is_better()
        self.metrics: dict[str, _Metric] = {}
        for metric, function in task.aggregation().items():
            kind = function if isinstance(function, str) else getattr(function, "__name__", "")
            if kind not in {"mean", "perplexity", *_OVER_SIZES}:
                continue
            rising = bool(higher.get(metric, True))
            unit = f"1 - {metric}" if rising else metric
            if kind == "perplexity":
                unit = "nats per item"
            elif kind == "weighted_perplexity":
                unit = f"nats per {metric.partition('_')[0]}"
            elif kind == "bits_per_byte":
                unit = "bits per byte"
            self.metrics[metric] = _Metric(unit, kind, rising)

    def sizes(self, metric: str) -> list[float]:
        """What each item's loss is divided by."""
        if self.metrics[metric].aggregation not in _OVER_SIZES:
            return [1.0] * len(self.docs)
        count = self._task.count_words if metric.startswith("word") else self._task.count_bytes
        return [float(count(self._task.doc_to_target(doc))) for doc in self.docs]

    def run(self, lm: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
        """lm-eval's metrics of the items at these indices, in this order."""
        chosen = [request for row in rows for request in self.requests[row]]
        kinds: dict[str, list[Any]] = {}
        for request in chosen:
            request.resps, request.filtered_resps = [], {}
            kinds.setdefault(request.request_type, []).append(request)
        with _quiet(), _own_randomness():
            for kind, requests in kinds.items():
                asked = [request for request in requests for _ in range(request.repeats)]
                for response, request in zip(getattr(lm, kind)(asked), asked, strict=True):
                    request.resps.append(response)
            before, self._task._instances = self._task._instances, chosen
            try:
                self._task.apply_filters()
                found = []
                for row in rows:
                    requests = sorted(self.requests[row], key=lambda request: request.idx)
                    first = next(iter(requests[0].filtered_resps))
                    answers = [request.filtered_resps[first] for request in requests]
                    found.append(dict(self._task.process_results(self.docs[row], answers)))
            finally:
                self._task._instances = before
        return found


def load_tasks(section: TaskSection) -> list[Task]:
    """A task, or all tasks of a group.

    Raises:
        EvaluationError: it is unknown, its data cannot be had, or a task file is wrong.
    """
    from lm_eval.tasks import TaskManager

    if section.include_path is not None and not Path(section.include_path).is_dir():
        raise EvaluationError(
            f"{section.include_path}: is no folder with task files; give the folder of their YAML."
        )
    for path in sorted(Path(section.include_path).rglob("*.yaml")) if section.include_path else ():
        refuse_hostile_yaml(path)
    place = section.include_path or section.task
    with reading(place, EvaluationError, "its task files cannot be read", "mend them"), _quiet():
        manager = None
        if section.include_path is not None:  # lm-eval's own thousands take seconds to list
            manager = TaskManager(include_path=section.include_path, include_defaults=False)
        if manager is None or section.task not in manager.all_tasks:
            manager = TaskManager(include_path=section.include_path)
    if section.task not in manager.all_tasks:
        raise EvaluationError(
            f"{section.task}: lm-eval knows no such task or group"
            f"{sentence_end(section.task, manager.all_tasks)} For tasks of your own give "
            "the folder of their YAML files."
        )
    try:
        with _quiet():
            loaded = manager.load([section.task])["tasks"]
        return [Task(name, task, section.num_fewshot) for name, task in loaded.items()]
    except Exception as error:  # whatever a task's own code and its data may raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise EvaluationError(
            f"{section.task}: cannot be loaded ({lines[0] if lines else type(error).__name__}). "
            "Most tasks read their data from a hub; without one, give a folder with YAML files "
            "over local data."
        ) from error


def wrap_model(model: Any, tokenizer: Any, batch_tokens: int) -> Any:
    """A model in memory as lm-eval's HFLM; its log probabilities are float32."""
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=max(1, batch_tokens // 128) if can_pad(model) else 1,
            softmax_dtype="float32",
        )


def task_sets(
    section: TaskSection,
    tokenizer: Any,
    evaluate: EvaluateSection,
    split: SplitName | None,
    *,
    all_metrics: bool = False,
) -> list[EvaluationSet]:
    """Items of a task or of each task of a group as sets.

    Args:
        section: which task.
        tokenizer: of the models.
        evaluate: batches and precision.
        split: which half of the items; all of them by default.
        all_metrics: a set for each metric, scored together, in place of one.

    Raises:
        EvaluationError: the task cannot be loaded, or has no such metric.
    """
    return [
        found
        for task in load_tasks(section)
        for found in _sets(task, section, tokenizer, evaluate, split, all_metrics)
    ]


def _sets(
    task: Task,
    section: TaskSection,
    tokenizer: Any,
    evaluate: EvaluateSection,
    split: SplitName | None,
    all_metrics: bool,
) -> Iterator[EvaluationSet]:
    if section.metric is not None and section.metric not in task.metrics:
        raise EvaluationError(
            f"{task.name}: metric {section.metric!r} is none of its means over items"
            f"{sentence_end(section.metric, task.metrics)} There are: "
            f"{', '.join(task.metrics) or 'none'}."
        )
    if not task.metrics:
        raise EvaluationError(
            f"{task.name}: none of its metrics is a mean over items, so items cannot be compared; "
            "take another task."
        )
    chosen = [section.metric] if section.metric else list(task.metrics)
    metrics = chosen if all_metrics else chosen[:1]
    names = {m: task.name if len(metrics) == 1 else f"{task.name} {m}" for m in metrics}
    kept = _rows(task, section, split)
    known: dict[int, Any] = {}

    def score(model: Any, rows: Sequence[int]) -> Mapping[str, list[float]]:
        if id(model) not in known:  # a wrapper holds no weights of its own
            known.clear()
            known[id(model)] = wrap_model(model, tokenizer, evaluate.batch_tokens)
        found = task.run(known[id(model)], [kept[n] for n in rows])
        losses = {names[m]: [task.metrics[m].loss(one[m]) for one in found] for m in metrics}
        for metric, values in losses.items():
            if not all(math.isfinite(value) for value in values):
                raise EvaluationError(
                    f"{task.name}: {metric} is not finite; the model's weights are damaged."
                )
        return losses

    settings = {
        "kind": "lm-eval",
        "num_fewshot": task._task.get_config("num_fewshot"),
        "tokenizer": hash_json(sorted(tokenizer.get_vocab().items())),
        "precision": evaluate.precision,
    }
    for metric in metrics:
        sizes = task.sizes(metric)
        yield EvaluationSet(
            name=names[metric],
            role=section.role,
            unit=task.metrics[metric].unit,
            ids=[f"{task.name}#{row:06d}" for row in kept],
            groups=[f"{task.name}#{row:06d}" for row in kept],
            sizes=[sizes[row] for row in kept],
            costs=[_cost(task.requests[row], tokenizer) for row in kept],
            content_hash=hash_json([task.hashes[row] for row in kept]),
            score=lambda model, rows, name=names[metric]: score(model, rows)[name],  # type: ignore[misc]
            scale=task.metrics[metric].scale(),
            settings_hash=hash_json(
                {
                    **settings,
                    "metric": metric,
                    "rising": task.metrics[metric].rising,
                    "aggregation": task.metrics[metric].aggregation,
                    "scoring": scoring_hash(task._task, metric),
                }
            ),
            item_hashes=[task.hashes[row] for row in kept],
            score_together=score if len(metrics) > 1 else None,
        )


def _rows(task: Task, section: TaskSection, split: SplitName | None) -> list[int]:
    places = [split_place(value) for value in task.hashes]
    kept = [
        row
        for row, (share, _) in enumerate(places)
        if split is None or (share < section.validation_fraction) == (split == "validation")
    ]
    if not kept:
        raise EvaluationError(f"{task.name}: none of its {len(places)} items falls into {split}.")
    if section.limit is not None and split is None:
        return kept[: section.limit]
    if section.limit is not None:
        kept = sorted(sorted(kept, key=lambda row: places[row][1])[: section.limit])
    return kept


def _cost(requests: Sequence[Any], tokenizer: Any) -> int:
    text = "".join(str(part) for request in requests for part in _plain(request.args))
    return max(1, len(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _plain(args: Sequence[Any]) -> list[Any]:
    return [part for part in args if isinstance(part, (str, int, float))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's bars and notes would bury ours; its errors are raised all the same."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Tasks may draw from the global generators: seeded as lm-eval does, then put back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(_FEWSHOT_SEED)
    torch.manual_seed(_FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
