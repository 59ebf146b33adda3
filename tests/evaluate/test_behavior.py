"""How a model answers, counted: each fault as it is planted, sets as everything else takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import paragraph
from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate import behavior as module
from toolkit.evaluate.behavior import BehaviorItem, ModelAnswer, behavior_prompts, has_fault
from toolkit.evaluate.config import (
    BEHAVIOR_TITLES,
    BehaviorCount,
    BehaviorSection,
    EvaluateSection,
    identity_of_evaluation,
)
from toolkit.evaluate.instructions import INSTRUCTIONS, InstructionCheck, parse_check
from toolkit.evaluate.load import load_sets
from toolkit.evaluate.prompts import RetentionPrompt, instruction_prompts


def asked(text: str = "What is this?", length: int = 12, **check: Any) -> BehaviorItem:
    instruction = InstructionCheck.model_validate(check) if check else None
    return BehaviorItem(RetentionPrompt(text, "kind", text, instruction), [1, 2], length)


def said(
    text: str, *, tokens: int | list[int] = 12, ended: bool = True, raw: str | None = None
) -> ModelAnswer:
    listed = list(range(tokens)) if isinstance(tokens, int) else tokens
    return ModelAnswer(listed, text, text if raw is None else raw, ended)


GOOD = said("It is a bridge over a river.")


@pytest.mark.parametrize(
    ("name", "item", "answer"),
    [
        ("unfinished", asked(), said("on and on", ended=False)),
        ("repetitive", asked(), said("no no no", tokens=[7, 8, 9] * 8)),
        ("length", asked(length=12), said("long", tokens=60)),
        ("length", asked(length=60), said("short", tokens=3)),
        ("script", asked(), said("\u042d\u0442\u043e \u043c\u043e\u0441\u0442.")),
        ("script", asked("\u8fd9\u662f\u4ec0\u4e48\uff1f"), said("It is a bridge.")),
        ("markup", asked(), said("Yes.", raw="Yes.<|im_start|>")),
        ("markup", asked(), said("<|im_start|>user")),
        ("markup", asked(), said("<think>it may be")),
        ("instructions", asked(lines=3), said("one\ntwo")),
    ],
)
def test_a_planted_fault_is_seen_and_no_other(
    name: BehaviorCount, item: BehaviorItem, answer: ModelAnswer
):
    faults = {other for other in BEHAVIOR_TITLES if has_fault(other, item, answer)}
    assert faults == {name}


def test_a_good_answer_has_no_fault():
    assert not [name for name in BEHAVIOR_TITLES if has_fault(name, asked(), GOOD)]
    thought = said("4.", raw="<think>2 and 2</think>4.")
    assert not has_fault("markup", asked(), thought)
    short = said("Yes.", tokens=[5, 5])
    assert not [name for name in BEHAVIOR_TITLES if has_fault(name, asked(length=6), short)]


@pytest.mark.parametrize(
    ("check", "kept", "broken"),
    [
        ({"lines": 2}, "a\n\nb", "a"),
        ({"items": 2}, "Here:\n- a\n2. b", "- a"),
        ({"most_words": 3}, "one two three", "one two three four"),
        ({"least_words": 2}, "one two", "one"),
        ({"uppercase": True}, "ALL OF IT, 3.", "All"),
        ({"uppercase": True}, "A", "123"),
        ({"lowercase": True}, "all of it", "All"),
        ({"json_keys": ["a"]}, '```json\n{"a": 1}\n```', '{"b": 1}'),
        ({"json_keys": ["a"]}, '{"a": {"b": 2}}', "[" * 100_000),
        ({"contains": ["Sea"]}, "the sea", "the lake"),
        ({"lacks": ["sea"]}, "the lake", "The SEA"),
        ({"starts_with": "Dear"}, "Dear all", "Hello"),
        ({"ends_with": "Bye."}, "x. Bye.\n", "Bye"),
        ({"most_sentences": 1}, "Version 1.5 is out.", "One. Two."),
        ({"lines": 1}, "x", "  "),
    ],
)
def test_instructions_are_checked_by_what_they_say(check: dict[str, Any], kept: str, broken: str):
    parsed = parse_check(check, "here")
    assert parsed.holds(kept)
    assert not parsed.holds(broken)


def test_a_check_that_nobody_knows_names_its_key():
    with pytest.raises(ConfigError, match="linse"):
        parse_check({"linse": 3}, "prompts.jsonl:4")


def test_our_prompts_are_split_by_what_they_are_about():
    validation, test = (instruction_prompts(split) for split in ("validation", "test"))
    assert not {prompt.group for prompt in validation} & {prompt.group for prompt in test}
    for prompts in (validation, test):
        assert len({prompt.kind for prompt in prompts[: len(INSTRUCTIONS)]}) == len(INSTRUCTIONS)
    chosen = behavior_prompts(EvaluateSection(behavior=BehaviorSection(num_prompts=90)), "test")
    assert sum(prompt.check is not None for prompt in chosen) == 30


@pytest.fixture
def stages(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[Path, Path]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.json").write_text(json.dumps({"results": {"separator_token_id": 0}}))
    rows = [
        {"id": f"f/{n}", "role": "domain", "group": f"f{n}", "text": paragraph(n)} for n in range(4)
    ]
    (data / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data, make_model(tmp_path / "general")


def section(**values: Any) -> EvaluateSection:
    base = {"num_prompts": 12, "max_new_tokens": 6, **values}
    return EvaluateSection.model_validate(
        {"window_tokens": 64, "retention": {"num_prompts": 0}, "behavior": base}
    )


def test_sets_that_one_pass_gives(
    stages: tuple[Path, Path], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, general = stages
    sets = load_sets(
        section(roles={"repetitive": "general"}), data, general, "validation", cache=tmp_path
    )
    by_name = {items.name: items for items in sets[1:]}
    assert set(by_name) == set(BEHAVIOR_TITLES.values())
    repetitive = by_name[BEHAVIOR_TITLES["repetitive"]]
    assert (repetitive.role, repetitive.unit, repetitive.tolerance) == ("general", "error", 0.05)
    assert by_name[BEHAVIOR_TITLES["length"]].role == "watch"
    # What decides is asked first, so it bears the costs.
    assert sum(repetitive.costs) > 0
    assert sum(by_name[BEHAVIOR_TITLES["unfinished"]].costs) == 0
    assert len(by_name[BEHAVIOR_TITLES["instructions"]]) == 4
    passes: list[int] = []
    answer_items = module.answer_items

    def counted(*given: Any) -> Any:
        passes.append(len(given[2]))
        return answer_items(*given)

    monkeypatch.setattr(module, "answer_items", counted)
    assert repetitive.score_together is not None
    together = repetitive.score_together(model, [0, 3])
    assert passes == [2]
    for name, losses in together.items():
        assert losses == by_name[name].score(model, [0, 3])
        assert set(losses) <= {0.0, 1.0}


def test_the_general_model_answers_as_itself(stages: tuple[Path, Path], tmp_path: Path):
    from transformers import AutoModelForCausalLM

    data, general = stages
    sets = load_sets(section(), data, general, "validation", cache=tmp_path)
    length = next(items for items in sets if items.name == BEHAVIOR_TITLES["length"])
    model = AutoModelForCausalLM.from_pretrained(general)
    assert length.score(model, range(len(length))) == [0.0] * len(length)


def test_files_of_ones_own(stages: tuple[Path, Path], tmp_path: Path):
    data, general = stages
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"Say {n} in one line.", "kind": "line", "check": {"lines": 1}} for n in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = load_sets(section(files=[str(path)]), data, general, "validation", cache=tmp_path)
    # All have a check, so that all are asked for everything.
    assert {len(items) for items in sets[1:]} == {4}
    path.write_text(json.dumps({"prompt": "x", "check": {"rows": 1}}) + "\n")
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:1.*\n.*rows"):
        load_sets(section(files=[str(path)]), data, general, "validation", cache=tmp_path)
    path.write_text("")
    with pytest.raises(EvaluationError, match="there are no prompts"):
        load_sets(section(files=[str(path)]), data, general, "validation", cache=tmp_path)


def test_recipes_without_it_keep_their_identity():
    assert "behavior" not in identity_of_evaluation(EvaluateSection())
