"""The general model's own answers: made once, and what has faded of them."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from toolkit.errors import EvaluationError
from toolkit.evaluate.answers import (
    DATED,
    NO_TEMPLATE,
    encode_prompts,
    load_answers,
    make_answers,
)
from toolkit.evaluate.behavior import behavior_prompts
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.prompts import retention_prompts
from toolkit.evaluate.retention import (
    DIVERGENCE,
    LOSS,
    divergence,
    retention_sets,
    score_answers,
    split_prompts,
)

CHOSEN = retention_prompts("validation")[:30]
PROMPTS = [prompt.text for prompt in CHOSEN]


@pytest.fixture
def other(tmp_path: Path, make_model: Callable[..., Path]) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "o", seed=9)).eval()


def answers_of(model: Any, tokenizer: Any, folder: Path, **more: Any) -> Any:
    settings = {"max_new_tokens": 6, "top_tokens": 319, **more}
    return load_answers(tokenizer, PROMPTS, lambda: model, "hash", folder, **settings)


def test_answers_are_greedy(model, tiny_tokenizer, tmp_path: Path):
    answers = answers_of(model, tiny_tokenizer, tmp_path)
    for prompt, answer in list(zip(answers.prompts, answers.answers, strict=True))[:5]:
        tokens = list(prompt)
        for wanted in answer:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()) == wanted
            tokens.append(wanted)
        assert len(answer) == 6 or answer[-1] == tiny_tokenizer.eos_token_id


def test_generation_settings_of_the_model_do_not_matter(model, tiny_tokenizer, tmp_path: Path):
    expected = answers_of(model, tiny_tokenizer, tmp_path / "a").answers
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 9.0
    assert answers_of(model, tiny_tokenizer, tmp_path / "b").answers == expected
    assert model.generation_config.repetition_penalty == 9.0


def test_losses_and_divergence_are_the_models_own(model, other, tiny_tokenizer, tmp_path: Path):
    answers = answers_of(model, tiny_tokenizer, tmp_path)
    losses, moved = score_answers(other, answers, [3, 0, 17], 100)
    for row, loss, apart in zip([3, 0, 17], losses, moved, strict=True):
        prompt, answer = answers.prompts[row], answers.answers[row]
        inputs = torch.tensor([[*prompt, *answer][:-1]])
        with torch.no_grad():
            theirs = model(input_ids=inputs).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
            own = other(input_ids=inputs).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
        assert loss == pytest.approx(-float(own[range(len(answer)), answer].sum()), rel=1e-5)
        assert apart == pytest.approx(float((theirs.exp() * (theirs - own)).sum()), rel=1e-4)


def test_the_general_model_has_not_moved(model, tiny_tokenizer, tmp_path: Path):
    answers = answers_of(model, tiny_tokenizer, tmp_path)
    _, moved = score_answers(model, answers, range(len(PROMPTS)), 4096)
    assert max(map(abs, moved)) < 1e-4


def test_fewer_kept_tokens_never_show_more(model, other, tiny_tokenizer, tmp_path: Path):
    figures = []
    for kept in (1, 8, 64, 319):
        answers = answers_of(model, tiny_tokenizer, tmp_path, top_tokens=kept)
        figures.append(sum(score_answers(other, answers, range(len(PROMPTS)), 4096)[1]))
    assert figures == sorted(figures)
    assert figures[0] > 0.0


def test_divergence_where_the_rest_is_nothing():
    sure = torch.tensor([[0.0]])
    nothing = torch.tensor([-torch.inf])
    half = torch.log(torch.tensor([[0.5]]))
    found = divergence(sure, nothing, half, torch.log(torch.tensor([0.5])))
    assert found == pytest.approx([torch.log(torch.tensor(2.0)).item()])


def test_made_once_and_again_where_damaged(model, tiny_tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("toolkit.evaluate.answers._MOST_ROWS", 24)
    first = answers_of(model, tiny_tokenizer, tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 2  # blocks of 24 and 6

    def refuse() -> Any:
        raise AssertionError("the model is not needed")

    settings: dict[str, Any] = {"max_new_tokens": 6, "top_tokens": 319}
    again = load_answers(tiny_tokenizer, PROMPTS, refuse, "hash", tmp_path, **settings)
    assert again.answers == first.answers
    assert all(torch.equal(a, b) for a, b in zip(again.top_logs, first.top_logs, strict=True))
    os.truncate(files[0], files[0].stat().st_size // 2)
    assert answers_of(model, tiny_tokenizer, tmp_path).answers == first.answers
    with pytest.raises(AssertionError):
        load_answers(tiny_tokenizer, PROMPTS, refuse, "other model", tmp_path, **settings)


def test_sets_share_one_pass(model, other, tiny_tokenizer, tmp_path: Path):
    answers = answers_of(model, tiny_tokenizer, tmp_path)
    loss, moved = retention_sets(answers, CHOSEN, EvaluateSection(), "hash")
    assert (loss.name, moved.name, loss.note) == (LOSS, DIVERGENCE, "")
    assert loss.score_together is not None
    both = loss.score_together(other, [4, 2])
    assert both == {LOSS: loss.score(other, [4, 2]), DIVERGENCE: moved.score(other, [4, 2])}
    # greedy answers are what their own model finds likeliest
    rows = range(len(PROMPTS))
    assert loss.figure(loss.score(model, rows)) < loss.figure(loss.score(other, rows))


def test_without_a_chat_template(model, tiny_tokenizer, tmp_path: Path):
    import copy

    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    tokens, note = encode_prompts(plain, ["net income"])
    assert note == NO_TEMPLATE
    assert plain.decode(tokens[0]) == "net income\n"
    answers = answers_of(model, plain, tmp_path)
    assert retention_sets(answers, CHOSEN, EvaluateSection(), "h")[0].note == NO_TEMPLATE
    assert encode_prompts(tiny_tokenizer, ["net income"])[1] == ""


def test_a_template_that_writes_the_day_asks_the_same_tomorrow(
    model, tiny_tokenizer, tmp_path: Path
):
    import copy

    dated = copy.deepcopy(tiny_tokenizer)
    dated.chat_template = (
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ day }} {{ strftime_now('%Y-%m-%d, %-d %B') }} {{ messages[0]['content'] }}"
    )
    tokens, note = encode_prompts(dated, ["net income"])
    assert dated.decode(tokens[0]) == "26 Jul 2024 2024-07-26, 26 July net income"
    assert note == DATED
    answers = answers_of(model, dated, tmp_path)
    assert {items.note for items in retention_sets(answers, CHOSEN, EvaluateSection(), "h")} == {
        "its chat template writes the day, which is 26 July 2024 whenever it is asked"
    }


def test_a_prompt_that_the_model_cannot_read_whole_is_refused(model, tiny_tokenizer):
    with pytest.raises(EvaluationError, match=r"250 tokens and its answer up to 8, .* reads 256"):
        make_answers(model, tiny_tokenizer, [[5] * 3, [5] * 250], 8, 4)


def test_damaged_weights(model, tiny_tokenizer, tmp_path: Path):
    answers = answers_of(model, tiny_tokenizer, tmp_path)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="damaged"):
        score_answers(model, answers, [0], 100)
    with pytest.raises(EvaluationError, match="damaged"):
        make_answers(model, tiny_tokenizer, answers.prompts[:2], 3, 8)


def of_ours(count: int) -> EvaluateSection:
    return EvaluateSection.model_validate({"retention": {"num_prompts": count}})


def of_files(*files: Path | str) -> EvaluateSection:
    return EvaluateSection.model_validate({"retention": {"files": list(map(str, files))}})


def test_every_kind_stands_in_both_splits_and_no_text_does():
    validation, test = (split_prompts(of_ours(192), split) for split in ("validation", "test"))
    assert len(validation) == len(test) == 192
    assert not {p.text for p in validation} & {p.text for p in test}
    assert not {p.group for p in validation} & {p.group for p in test}
    for prompts in (validation, test):
        for count in (12, 96, 192):  # any beginning has all twelve kinds in like shares
            kinds = collections.Counter(prompt.kind for prompt in prompts[:count])
            assert set(kinds.values()) == {count // 12}
            assert len(kinds) == 12


def test_prompts_over_one_text_are_one_group(model, tiny_tokenizer, tmp_path: Path):
    prompts = split_prompts(of_ours(96), "validation")
    over = [p for p in prompts if "The library will close early" in p.text]
    assert len({p.text for p in over}) == len(over) > 1
    assert len({p.group for p in over}) == 1
    answers = load_answers(
        tiny_tokenizer, [p.text for p in prompts], lambda: model, "hash", tmp_path,
        max_new_tokens=2, top_tokens=8,
    )  # fmt: skip
    loss, _ = retention_sets(answers, prompts, EvaluateSection(), "hash")
    assert (len(loss), loss.num_groups) == (96, 80)


def test_own_prompts_are_split_within_kinds(tmp_path: Path):
    rows = [
        {"prompt": f"{kind} {n}", "kind": kind, **({"group": f"g{n // 2}"} if kind == "b" else {})}
        for kind in "ab"
        for n in range(8)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    validation, test = (split_prompts(of_files(file), split) for split in ("validation", "test"))
    assert sorted(p.text for p in [*validation, *test]) == sorted(row["prompt"] for row in rows)
    for prompts in (validation, test):
        assert collections.Counter(p.kind for p in prompts) == {"a": 4, "b": 4}
        assert [p.kind for p in prompts[:4]] == ["a", "b", "a", "b"]
    assert not {p.group for p in validation} & {p.group for p in test}


@pytest.mark.parametrize("line", ["[1]", '{"text": "hello"}', '{"prompt": " "}', "{"])
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str):
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "one"}\n' + line + "\n")
    with pytest.raises(EvaluationError, match=r"own\.jsonl:2: holds no prompt"):
        split_prompts(of_files(file), "test")
    absent = str(tmp_path / "none.jsonl")
    with pytest.raises(EvaluationError, match=r"evaluate\.retention\.files: .* cannot be read"):
        split_prompts(of_files(absent), "test")
    with pytest.raises(EvaluationError, match=r"evaluate\.behavior\.files: .* cannot be read"):
        behavior_prompts(EvaluateSection.model_validate({"behavior": {"files": [absent]}}), "test")


def test_prompts_that_two_sections_share_are_of_one_split(tmp_path: Path):
    files = []
    for name, numbers in (("a", range(9)), ("b", range(20, 40))):
        files.append(str(tmp_path / f"{name}.jsonl"))
        rows = [json.dumps({"prompt": f"{name} {n}", "kind": str(n % 2)}) for n in numbers]
        Path(files[-1]).write_text("\n".join(rows))
    values = {"retention": {"files": files[:1]}, "behavior": {"files": files}}
    evaluate = EvaluateSection.model_validate(values)
    texts = {
        split: {
            p.text for p in (*split_prompts(evaluate, split), *behavior_prompts(evaluate, split))
        }
        for split in ("validation", "test")
    }
    assert not texts["validation"] & texts["test"]
    assert len(texts["validation"] | texts["test"]) == 29
    assert all(p.text[0] == "a" for p in split_prompts(evaluate, "test"))
