"""Multiple-choice questions a second: our `LM` against lm-eval's, on the same questions, in turn.

python benchmarks/choices.py runs/finance/general --items 100

Both sides tokenize and score; loading of model and questions is not counted. lm-eval runs with
the batch size that was fastest for it in a first pass over (40 of) the questions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection
from toolkit.evaluate.lm_eval_model import RequestEncoder, SharedPromptLM
from toolkit.evaluate.question_task import QuestionTask
from toolkit.evaluate.questions import Question, load_questions

TASKS = ("social_iqa", "general_knowledge", "misconceptions", "physics")
BATCH_SIZES = (4, 16, 64)
TRIAL_ITEMS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--items", type=int, default=60, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fp32", action="store_true", help="float32 in place of the stored type")
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(wanted.model)
    dtype = torch.float32 if wanted.fp32 else stored_dtype(wanted.model)
    model = load_causal_model(wanted.model, dtype).eval()
    print(f"{wanted.model.name}, {dtype}, {torch.get_num_threads()} threads")
    for task in wanted.tasks.split(","):
        section = MultipleChoiceSection(name=task, bigbench=task, limit=wanted.items)
        questions = load_questions(section)[: wanted.items]
        compare(model, tokenizer, task, questions, wanted.rounds)


def compare(
    model: Any, tokenizer: Any, name: str, questions: Sequence[Question], rounds: int
) -> None:
    trial = questions[:TRIAL_ITEMS]
    seconds = {n: theirs(model, tokenizer, trial, n)[0] for n in BATCH_SIZES}
    batch_size = min(seconds, key=lambda n: seconds[n])
    ours(model, tokenizer, trial)
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        slow, results = theirs(model, tokenizer, questions, batch_size)
        quick, answered = ours(model, tokenizer, questions)
        times.append((slow, quick))
    lm_eval, mine = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    options = sum(len(question.options) for question in questions) / len(questions)
    print(
        f"{name}: {len(questions)} questions, {options:.1f} options; lm-eval (batch {batch_size}) "
        f"{len(questions) / lm_eval:.2f} items/s, ours {len(questions) / mine:.2f}: "
        f"{ratio:.2f} times as fast; {agreement(results, answered)}",
        flush=True,
    )


def agreement(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> str:
    parts = []
    for metric in ("acc", "acc_norm"):
        pairs = [(float(a[metric]), b[metric]) for a, b in zip(theirs, ours, strict=True)]
        same = sum(a == b for a, b in pairs)
        means = " and ".join(
            f"{statistics.mean(column):.3f}" for column in zip(*pairs, strict=True)
        )
        parts.append(f"{metric} {means} ({same} of {len(pairs)} the same)")
    apart = max(
        abs(a - b)
        for row, other in zip(theirs, ours, strict=True)
        for a, b in zip(row["log_likelihoods"], other["log_likelihoods"], strict=True)
    )
    return ", ".join([*parts, f"log likelihoods at most {apart:.2g} apart"])


def ours(
    model: Any, tokenizer: Any, questions: Sequence[Question]
) -> tuple[float, list[dict[str, Any]]]:
    """Our model class on our task over the same questions."""
    task = QuestionTask("questions", questions)
    task.set_fewshot_seed(0)
    lm = SharedPromptLM(model, RequestEncoder(tokenizer), EvaluateSection().batch_tokens)
    return run_task(lm, task)


def theirs(
    model: Any, tokenizer: Any, questions: Sequence[Question], batch_size: int
) -> tuple[float, list[dict[str, Any]]]:
    """lm-eval's own task over the same questions: its requests, its model class, its metrics."""
    from lm_eval.models.huggingface import HFLM

    with contextlib.redirect_stderr(io.StringIO()):
        task = their_task(questions)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        return run_task(lm, task)


def run_task(lm: Any, task: Any) -> tuple[float, list[dict[str, Any]]]:
    with contextlib.redirect_stderr(io.StringIO()):
        task.build_all_requests()
        began = time.perf_counter()
        responses = lm.loglikelihood(task.instances)
        seconds = time.perf_counter() - began
    by_item: dict[int, list[Any]] = {}
    for request, response in zip(task.instances, responses, strict=True):
        by_item.setdefault(request.doc_id, []).append((request, response))
    results = []
    for pairs in by_item.values():
        row = dict(task.process_results(pairs[0][0].doc, [response for _, response in pairs]))
        results.append({**row, "log_likelihoods": [response[0] for _, response in pairs]})
    return seconds, results


def their_task(questions: Sequence[Question]) -> Any:
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for question in questions:
                row = {"p": question.prompt, "o": question.options, "a": question.answers[0]}
                file.write(json.dumps(row) + "\n")
        values = {
            "task": "questions",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(rows)},
                "cache_dir": str(Path(folder) / "cache"),
            },
            "test_split": "test",
            "num_fewshot": 0,
            "output_type": "multiple_choice",
            "doc_to_text": "p",
            "doc_to_choice": "o",
            "doc_to_target": "a",
            "target_delimiter": questions[0].delimiter,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (Path(folder) / "questions.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        manager = TaskManager(include_path=folder, include_defaults=False)
        task = manager.load(["questions"])["tasks"]["questions"]
        list(task.eval_docs)  # read while the file is there
        return task


if __name__ == "__main__":
    main()
