"""Any task of lm-eval, item by item, on a model in memory; question files are such tasks too.

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
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError, sentence_end, warn
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection, TaskSection
from toolkit.evaluate.lm_eval_model import RequestEncoder, SharedPromptLM, gather_prompts
from toolkit.evaluate.question_task import QUESTION_UNITS, QuestionTask
from toolkit.evaluate.questions import load_questions
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
class TaskMetric:
    """How values of a metric become losses.

    Attributes:
        unit: of the figure.
        aggregation: lm-eval's name of it.
        is_rising: whether more is better.
    """

    unit: str
    aggregation: str
    is_rising: bool

    def loss(self, value: Any) -> float:
        if self.aggregation in _OVER_SIZES:
            return -float(value[0])
        if self.aggregation == "perplexity":
            return -float(value)
        return 1.0 - float(value) if self.is_rising else float(value)

    def scale(self) -> float:
        return BITS if self.aggregation == "bits_per_byte" else 1.0


class ScoredTask:
    """A task with the prompts of all its items.

    Args:
        name: shown in tables and reports.
        task: lm-eval's own object, or one of its kind.
        num_fewshot: examples in the prompt, where they are not those of the task.

    Attributes:
        ids: names of the items.
        groups: what each item belongs to.
        hashes: contents of the items, which decide their split.
        splits: what each item is for where the task says; None where a hash decides.
        metrics: those that are means over items, in the task's order.
        requests: lm-eval's requests of each item.
    """

    def __init__(self, name: str, task: Task, num_fewshot: int | None = None) -> None:
        self.name = name
        self.task = task
        if num_fewshot and task.get_config("num_fewshot") == 0:
            warn(
                f"{name}: says itself that its prompts have no examples, and keeps to it; "
                f"the {num_fewshot} asked for have no effect."
            )
        with _quiet(), _seeded_generators():
            # As lm-eval's own evaluator: a task that says 0 keeps it, and one that says nothing
            # gets 0.
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            task.build_all_requests(rank=0, world_size=1)
        self.requests: list[list[Instance]] = []
        for request in task.instances:
            # Instances come document by document, each one's side by side.
            if request.doc_id == len(self.requests):
                self.requests.append([])
            self.requests[request.doc_id].append(request)
        self.docs = [requests[0].doc for requests in self.requests]
        self.ids = [f"{name}#{row:06d}" for row in range(len(self.docs))]
        self.groups = self.ids
        self.splits: list[SplitName | None] = [None] * len(self.docs)
        self.hashes = [_item_hash(requests) for requests in self.requests]
        self.metrics = dict(_mean_metrics(task))

    def sizes(self, metric: str) -> list[float]:
        """What each item's loss is divided by."""
        if self.metrics[metric].aggregation not in _OVER_SIZES:
            return [1.0] * len(self.docs)
        count_units = self.task.count_words if metric.startswith("word") else self.task.count_bytes
        return [float(count_units(self.task.doc_to_target(doc))) for doc in self.docs]

    def run(self, lm: LM, rows: Sequence[int]) -> list[dict[str, object]]:
        """lm-eval's metrics of the items at these indices, in this order."""
        chosen_requests = [request for row in rows for request in self.requests[row]]
        requests_by_kind: dict[str, list[Instance]] = {}
        for request in chosen_requests:
            # Responses of an earlier model lie in the requests still: lm-eval appends, and never
            # clears.
            request.resps, request.filtered_resps = [], {}
            requests_by_kind.setdefault(request.request_type, []).append(request)
        with _quiet(), _seeded_generators():
            for kind, requests in requests_by_kind.items():
                # A task that samples asks the same several times, and wants as many responses.
                repeated = [request for request in requests for _ in range(request.repeats)]
                for response, request in zip(getattr(lm, kind)(repeated), repeated, strict=True):
                    request.resps.append(response)
            return self._results(chosen_requests, rows)

    def losses(self, metric: str, results: Sequence[Mapping[str, object]]) -> list[float]:
        """What a metric's values are as losses.

        Raises:
            EvaluationError: one is not a finite number.
        """
        metric_losses = [self.metrics[metric].loss(result[metric]) for result in results]
        if not all(math.isfinite(value) for value in metric_losses):
            raise EvaluationError(
                f"{self.name}: {metric} is not finite; the model's weights are damaged."
            )
        return metric_losses

    def _results(self, chosen: list[Instance], rows: Sequence[int]) -> list[dict[str, object]]:
        # Filters go over a task's instances, which for now are those that have answers.
        every_instance, self.task._instances = self.task._instances, chosen
        try:
            self.task.apply_filters()
        finally:
            self.task._instances = every_instance
        item_results = []
        for row in rows:
            # A task reads its answers in the order of the options.
            row_requests = sorted(self.requests[row], key=lambda request: request.idx)
            # Of several filters the one that the task names first.
            filter_name = next(iter(row_requests[0].filtered_resps))
            answers = [request.filtered_resps[filter_name] for request in row_requests]
            item_results.append(dict(self.task.process_results(self.docs[row], answers)))
        return item_results


def _item_hash(requests: Sequence[Instance]) -> str:
    item_content = [requests[0].doc, [_plain(request.args) for request in requests]]
    # Documents may hold dates or arrays, for which JSON has no form.
    return hash_json(json.loads(json.dumps(item_content, default=str)))


def _mean_metrics(task: Task) -> Iterator[tuple[str, TaskMetric]]:
    """Metrics that are means over items; others cannot be compared item by item."""
    rising_by_metric = task.higher_is_better()
    for metric, function in task.aggregation().items():
        kind = function if isinstance(function, str) else getattr(function, "__name__", "")
        if kind not in {"mean", "perplexity", *_OVER_SIZES}:
            continue
        rises = bool(rising_by_metric.get(metric, True))
        unit = f"1 - {metric}" if rises else metric
        if kind == "perplexity":
            unit = "nats per item"
        elif kind == "weighted_perplexity":
            unit = f"nats per {metric.partition('_')[0]}"
        elif kind == "bits_per_byte":
            unit = "bits per byte"
        yield metric, TaskMetric(unit, kind, rises)


class QuestionFileTask(ScoredTask):
    """Questions out of files, packages or hubs: their ids, groups and content hashes are their own.

    Args:
        section: which questions.

    Raises:
        EvaluationError: there are none, or one has no options or no answer.
        DataError: a file is missing or cannot be read.
    """

    def __init__(self, section: MultipleChoiceSection) -> None:
        questions = load_questions(section)
        with _quiet():
            question_task = QuestionTask(section.name, questions)
        super().__init__(section.name, question_task)
        self.ids = [question.id for question in questions]
        self.groups = [question.group for question in questions]
        self.splits = [question.split for question in questions]
        self.hashes = [question.content_hash() for question in questions]
        self.metrics = {
            name: TaskMetric(QUESTION_UNITS[name], metric.aggregation, metric.is_rising)
            for name, metric in self.metrics.items()
        }


def load_tasks(section: TaskSection) -> list[ScoredTask]:
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
        task_manager = None
        if section.include_path is not None:  # lm-eval's own thousands take seconds to list
            task_manager = TaskManager(include_path=section.include_path, include_defaults=False)
        if task_manager is None or section.task not in task_manager.all_tasks:
            task_manager = TaskManager(include_path=section.include_path)
    if section.task not in task_manager.all_tasks:
        raise EvaluationError(
            f"{section.task}: lm-eval knows no such task or group"
            f"{sentence_end(section.task, task_manager.all_tasks)} For tasks of your own give "
            "the folder of their YAML files."
        )
    try:
        with _quiet():
            loaded_tasks = task_manager.load([section.task])["tasks"]
        tasks = [ScoredTask(name, task, section.num_fewshot) for name, task in loaded_tasks.items()]
    except Exception as error:  # whatever a task's own code and its data may raise
        error_lines = [line for line in str(error).splitlines() if line.strip()]
        raise EvaluationError(
            f"{section.task}: cannot be loaded "
            f"({error_lines[0] if error_lines else type(error).__name__}). Most tasks read their "
            "data from a hub; without one, give a folder with YAML files over local data."
        ) from error
    for task in tasks:
        if getattr(task.task, "MULTIMODAL", False):
            raise EvaluationError(
                f"{task.name}: its items hold images or sound, which are not scored here; take a "
                "task of text alone."
            )
    return tasks


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
    request_encoder = RequestEncoder(tokenizer)
    task_items = []
    for scored_task in load_tasks(section):
        task_metrics = _chosen_metrics(scored_task, section.metric)
        task_metrics = task_metrics if all_metrics else task_metrics[:1]
        task_items += _make_sets(
            scored_task, section, task_metrics, request_encoder, evaluate, split
        )
    return task_items


def question_sets(
    section: MultipleChoiceSection,
    tokenizer: Any,
    evaluate: EvaluateSection,
    split: SplitName | None,
    *,
    metrics: Sequence[str] = (),
) -> list[EvaluationSet]:
    """Questions as a set; its figure is the share answered wrongly, or the mean surprise.

    Args:
        section: which questions.
        tokenizer: of the models.
        evaluate: batches and precision.
        split: which half of the questions; all of them by default.
        metrics: a set for each of several, scored together, in place of the section's own.

    Raises:
        EvaluationError: there are no questions, or one has no options or no answer.
    """
    question_task = QuestionFileTask(section)
    chosen = list(metrics) or [section.metric]
    return _make_sets(question_task, section, chosen, RequestEncoder(tokenizer), evaluate, split)


def _chosen_metrics(task: ScoredTask, wanted: str | None) -> list[str]:
    if wanted is not None and wanted not in task.metrics:
        raise EvaluationError(
            f"{task.name}: metric {wanted!r} is none of its means over items"
            f"{sentence_end(wanted, task.metrics)} There are: "
            f"{', '.join(task.metrics) or 'none'}."
        )
    if not task.metrics:
        raise EvaluationError(
            f"{task.name}: none of its metrics is a mean over items, so items cannot be compared; "
            "take another task."
        )
    return [wanted] if wanted else list(task.metrics)


def _make_sets(
    task: ScoredTask,
    section: TaskSection | MultipleChoiceSection,
    metrics: Sequence[str],
    encoder: RequestEncoder,
    evaluate: EvaluateSection,
    split: SplitName | None,
) -> list[EvaluationSet]:
    """A set for each metric; one pass through the model scores them all."""
    set_names = {m: task.name if len(metrics) == 1 else f"{task.name} {m}" for m in metrics}
    chosen_rows = _chosen_rows(task, section, split)
    tokens = [_item_tokens(task, row, encoder) for row in chosen_rows]

    def score(model: Any, places: Sequence[int]) -> Mapping[str, list[float]]:
        lm = SharedPromptLM(model, encoder, evaluate.batch_tokens)
        item_results = task.run(lm, [chosen_rows[place] for place in places])
        return {name: task.losses(metric, item_results) for metric, name in set_names.items()}

    # The item and what the tokenizer makes of it: scores of one tokenizer are not another's.
    content_hash = hash_json(
        [[task.hashes[row], item.hash] for row, item in zip(chosen_rows, tokens, strict=True)]
    )
    metric_sets = []
    for metric in metrics:
        item_sizes = task.sizes(metric)
        metric_sets.append(
            EvaluationSet(
                name=set_names[metric],
                role=section.role,
                unit=task.metrics[metric].unit,
                ids=[task.ids[row] for row in chosen_rows],
                groups=[task.groups[row] for row in chosen_rows],
                sizes=[item_sizes[row] for row in chosen_rows],
                costs=[item.cost for item in tokens],
                content_hash=content_hash,
                score=lambda model, places, name=set_names[metric]: score(model, places)[name],  # type: ignore[misc]
                scale=task.metrics[metric].scale(),
                settings_hash=_settings_hash(task, metric, evaluate),
                item_hashes=[task.hashes[row] for row in chosen_rows],
                score_together=score if len(metrics) > 1 else None,
            )
        )
    return metric_sets


def _settings_hash(task: ScoredTask, metric: str, evaluate: EvaluateSection) -> str:
    """Hash of what losses depend on beside the items, as the models' tokenizer reads them."""
    return hash_json(
        {
            "kind": "lm-eval through shared prompts",
            "num_fewshot": task.task.get_config("num_fewshot"),
            "precision": evaluate.precision,
            "metric": metric,
            "rising": task.metrics[metric].is_rising,
            "aggregation": task.metrics[metric].aggregation,
            "scoring": scoring_hash(task.task, metric),
        }
    )


def _chosen_rows(
    task: ScoredTask, section: TaskSection | MultipleChoiceSection, split: SplitName | None
) -> list[int]:
    split_places = [split_place(value) for value in task.hashes]
    chosen_rows = [
        row
        for row, (fraction, _) in enumerate(split_places)
        if split is None
        or split == (task.splits[row] or _drawn_split(fraction, section.validation_fraction))
    ]
    if not chosen_rows:
        raise EvaluationError(
            f"{task.name}: none of its {len(split_places)} items falls into {split}; set "
            "validation_fraction otherwise, or give more items."
        )
    if section.limit is not None and split is None:
        # All items and a limit: the first of them, as lm-eval's own command takes.
        return chosen_rows[: section.limit]
    if section.limit is not None:
        # Chosen by what is left of the hash, then in the task's order again: a prefix of the file
        # would be one of its topics.
        chosen_rows = sorted(
            sorted(chosen_rows, key=lambda row: split_places[row][1])[: section.limit]
        )
    return chosen_rows


def _drawn_split(fraction: float, validation_fraction: float) -> SplitName:
    return "validation" if fraction < validation_fraction else "test"


def split_place(content_hash: str) -> tuple[float, str]:
    """A number in [0, 1) that decides the split, and what orders within it.

    >>> split_place("80000000ffff")
    (0.5, 'ffff')
    """
    return int(content_hash[:8], 16) / 2**32, content_hash[8:]


@dataclass(frozen=True)
class _ItemTokens:
    """What an item is to the model: tokens to be computed, and a hash of all that it reads."""

    cost: int
    hash: str


def _item_tokens(task: ScoredTask, row: int, encoder: RequestEncoder) -> _ItemTokens:
    requests = task.requests[row]
    if all(request.request_type == "loglikelihood" for request in requests):
        # A prompt that several options share is computed once, and costs once.
        prompts, _ = gather_prompts(encoder.encode_pair(*request.args[:2]) for request in requests)
        if not all(prompt.prompt and all(prompt.continuations) for prompt in prompts):
            raise EvaluationError(
                f"{task.name}: {task.ids[row]}: its prompt or an option has no tokens; remove the "
                "item, or give every option a text."
            )
        read_tokens = [[prompt.prompt, prompt.continuations] for prompt in prompts]
        return _ItemTokens(sum(prompt.cost() for prompt in prompts), hash_json(read_tokens))
    request_texts = [str(part) for request in requests for part in _plain(request.args)]
    text_tokens = [encoder.encode_text(text) for text in request_texts]
    return _ItemTokens(max(1, sum(map(len, text_tokens))), hash_json(text_tokens))


def _plain(args: Sequence[Any]) -> list[Any]:
    return [part for part in args if isinstance(part, (str, int, float))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's bars and notes would bury ours; its errors are raised all the same."""
    disabled_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled_level)


@contextlib.contextmanager
def _seeded_generators() -> Iterator[None]:
    """Tasks may draw from the global generators: seeded as lm-eval does, then put back."""
    saved_states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(_FEWSHOT_SEED)
    torch.manual_seed(_FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(saved_states[0])
        np.random.set_state(saved_states[1])
        torch.set_rng_state(saved_states[2])
