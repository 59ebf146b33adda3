"""lm-eval's own code on the same items, and its tasks item by item."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection, MultipleChoiceSection, TaskSection
from toolkit.evaluate.lm_eval_model import RequestEncoder, SharedPromptLM
from toolkit.evaluate.question_task import QuestionTask
from toolkit.evaluate.questions import load_questions
from toolkit.evaluate.tasks import load_tasks, question_sets, task_sets

MULTIPLE_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}


LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "question",
    "doc_to_target": "{{choices[answer]}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "question",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"max_gen_toks": 8, "until": ["\n"]},
    "metric_list": [{"metric": "exact_match"}],
}


def samples_of_lm_eval(lm: Any, task: Any, folder: Path | None = None) -> list[dict[str, Any]]:
    """`simple_evaluate` itself, but for its list of every package on this machine (20 s)."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder and str(folder), include_defaults=False)
    with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda _: None)
        results = evaluator.simple_evaluate(
            model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0
        )
    (samples,) = results["samples"].values()
    return sorted(samples, key=lambda sample: sample["doc_id"])


def their_model(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    # Its cache of logits gives windows of repetitive texts the places of others (lm-eval 0.4.13).
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7, logits_cache=False)


def test_question_files_are_scored_as_lm_eval_scores(
    model, tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    theirs = samples_of_lm_eval(their_model(model, tiny_tokenizer), "mine", folder)
    evaluate = EvaluateSection(batch_tokens=300)
    for metric in ("acc", "acc_norm"):
        section = MultipleChoiceSection(name="mine", files=(str(question_file),), metric=metric)
        (ours,) = question_sets(section, tiny_tokenizer, evaluate, None)
        losses = ours.score(model, range(len(ours)))
        assert losses == [1.0 - sample[metric] for sample in theirs]
        assert 0.0 < sum(losses) < len(losses)  # neither all right nor all wrong


def test_our_model_and_questions_go_through_lm_eval_s_own_evaluator(
    model, tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    theirs = samples_of_lm_eval(their_model(model, tiny_tokenizer), "mine", folder)
    section = MultipleChoiceSection(name="mine", files=(str(question_file),))
    lm = SharedPromptLM(model, RequestEncoder(tiny_tokenizer), 300)
    ours = samples_of_lm_eval(lm, QuestionTask("ours", load_questions(section)))
    for mine, sample in zip(ours, theirs, strict=True):
        assert (mine["acc"], mine["acc_norm"]) == (sample["acc"], sample["acc_norm"])
        found, expected = (
            [response[0] for response in one["filtered_resps"]] for one in (mine, sample)
        )
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [MULTIPLE_CHOICE, LAST_WORD, ROLLING, GENERATION])
def test_our_model_answers_as_lm_eval_s(
    model, tiny_tokenizer, tmp_path: Path, write_task: Callable[..., Path], settings: dict[str, Any]
):
    """Likelihoods, what greedy decoding gives, and texts: the whole interface."""
    rows = [
        {
            "question": f"the board reported {n} of",
            "choices": [" revenue", " debt\n", " a retailer in 2019"],
            "answer": n % 3,
            "text": "the board reported revenue " * (1 + 40 * n),
        }
        for n in range(5)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = write_task("any", path, **settings)
    ours, theirs = (
        samples_of_lm_eval(lm, "any", folder)
        for lm in (
            SharedPromptLM(model, RequestEncoder(tiny_tokenizer), 300),
            their_model(model, tiny_tokenizer),
        )
    )
    for mine, sample in zip(ours, theirs, strict=True):
        for answer, expected in zip(mine["filtered_resps"], sample["filtered_resps"], strict=True):
            if isinstance(expected, str):
                assert answer == expected
            elif isinstance(expected, float):
                assert answer == pytest.approx(expected, rel=1e-5)
            else:
                assert answer[0] == pytest.approx(expected[0], rel=1e-5)
                assert answer[1] == expected[1]


def test_a_task_enters_as_a_set(
    model, tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    theirs = samples_of_lm_eval(their_model(model, tiny_tokenizer), "mine", folder)
    section = TaskSection(task="mine", include_path=str(folder))
    both = task_sets(section, tiny_tokenizer, EvaluateSection(), None, all_metrics=True)
    assert [found.name for found in both] == ["mine acc", "mine acc_norm"]
    rows = [5, 0, 17]
    together = both[0].score_together(model, rows)
    for found, metric in zip(both, ("acc", "acc_norm"), strict=True):
        expected = [1.0 - theirs[row][metric] for row in rows]
        assert found.score(model, rows) == expected == together[found.name]


def test_examples_in_prompts_do_not_depend_on_the_rows(
    model, tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    settings = {"num_fewshot": 2, "fewshot_split": "test", **MULTIPLE_CHOICE}
    folder = write_task("shots", question_file, **settings)
    theirs = samples_of_lm_eval(their_model(model, tiny_tokenizer), "shots", folder)
    (task,) = load_tasks(TaskSection(task="shots", include_path=str(folder)))
    for row in (0, 11, 39):
        (mine,) = task.run(SharedPromptLM(model, RequestEncoder(tiny_tokenizer), 2048), [row])
        assert mine["acc"] == theirs[row]["acc"]
        assert task.requests[row][0].args[0] == theirs[row]["arguments"][0][0]
        assert task.requests[row][0].args[0].count("?") == 3


def test_rolling_likelihood_is_lm_eval_s(
    model, tiny_tokenizer, tmp_path: Path, write_task: Callable[..., Path]
):
    from tests.conftest import paragraph
    from toolkit.evaluate.documents import likelihood_sets

    rows = [
        {"id": f"x/{n}", "role": "domain", "group": str(n), "text": paragraph(n, 1 + 7 * n)}
        for n in range(6)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = write_task("texts", path, **ROLLING)
    theirs = samples_of_lm_eval(their_model(model, tiny_tokenizer), "texts", folder)
    window = model.config.max_position_embeddings  # what lm-eval takes for its window
    (ours,) = likelihood_sets(path, tiny_tokenizer, 0, EvaluateSection(window_tokens=window))
    assert max(ours.costs) > 2 * window
    losses = ours.score(model, range(6))
    assert losses == pytest.approx([-sample["bits_per_byte"][0] for sample in theirs], rel=1e-5)
    assert list(ours.sizes) == [sample["bits_per_byte"][1] for sample in theirs]

    section = TaskSection(task="texts", include_path=str(folder), metric="bits_per_byte")
    (bridged,) = task_sets(section, tiny_tokenizer, EvaluateSection(), None)
    assert bridged.figure(bridged.score(model, range(6))) == pytest.approx(
        sum(losses) / math.log(2.0) / sum(ours.sizes), rel=1e-5
    )


def test_splits_share_no_item(tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    section = TaskSection(task="mine", include_path=str(folder))
    (validation,), (test,) = (
        task_sets(section, tiny_tokenizer, EvaluateSection(), split)
        for split in ("validation", "test")
    )
    assert len(validation) + len(test) == 40
    assert not set(validation.item_hashes) & set(test.item_hashes)
    limited = TaskSection(task="mine", include_path=str(folder), limit=5)
    (few,) = task_sets(limited, tiny_tokenizer, EvaluateSection(), "validation")
    assert len(few) == 5
    assert set(few.ids) <= set(validation.ids)


def test_randomness_of_others_is_left_alone(
    model, tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    (found,) = task_sets(
        TaskSection(task="mine", include_path=str(folder)), tiny_tokenizer, EvaluateSection(), None
    )
    found.score(model, [0])
    assert torch.rand(1) == expected


def test_unknown_tasks_and_metrics(
    tiny_tokenizer, question_file: Path, write_task: Callable[..., Path]
):
    folder = write_task("mine", question_file, **MULTIPLE_CHOICE)
    with pytest.raises(EvaluationError, match="did you mean acc_norm"):
        task_sets(
            TaskSection(task="mine", include_path=str(folder), metric="acc_nrm"),
            tiny_tokenizer,
            EvaluateSection(),
            None,
        )
    with pytest.raises(EvaluationError, match="no folder"):
        load_tasks(TaskSection(task="mine", include_path=str(folder / "none")))
    missing = write_task("gone", question_file.with_name("gone.jsonl"), **MULTIPLE_CHOICE)
    with pytest.raises(EvaluationError, match="gone: cannot be loaded"):
        load_tasks(TaskSection(task="gone", include_path=str(missing)))


def test_examples_that_a_task_does_not_take_are_said(
    question_file: Path, write_task: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    folder = write_task("none", question_file, **MULTIPLE_CHOICE, num_fewshot=0)
    for asked in (0, 5):
        section = TaskSection(task="none", include_path=str(folder), num_fewshot=asked)
        assert load_tasks(section)[0].task.get_config("num_fewshot") == 0
        assert ("the 5 asked for have no effect" in capsys.readouterr().err) is (asked == 5)
