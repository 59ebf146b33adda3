"""Conversations of the general model's own: what is written, kept, left out, continued, learned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.errors import ConfigError, EvaluationError, MergeError
from toolkit.generate.greedy import drawn_answers, grow_together
from toolkit.pipeline import own_conversations as module
from toolkit.pipeline.models import ensure_cpt, ensure_general
from toolkit.pipeline.own_conversations import ensure_conversations
from toolkit.pipeline.stages import ensure_merge
from toolkit.stage import hash_folder, read_manifest
from toolkit.train.self_distillation import CONVERSATIONS, load_conversations

WRITING = {"num_tokens": 600, "max_new_tokens": 80, "tokens_per_step": 64, "top_tokens": 8}


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


def conversations_of(project: Path, **values: Any) -> Path:
    run = open_run(project, {"train": {"self_distillation": {**WRITING, **values}}})
    section = run.recipe.train.self_distillation
    assert section is not None
    return ensure_conversations(run, ensure_general(run), section)


def test_training_stays_near_to_them(project: Path, capsys: pytest.CaptureFixture[str]):
    run = open_run(project, {"train": {"self_distillation": WRITING}})
    folder = ensure_cpt(run)
    manifest = read_manifest(folder)
    assert "conversations" in manifest["inputs"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    divergences = [row["divergence"] for row in rows if "loss" in row]
    assert divergences[0] == pytest.approx(
        0.0, abs=1e-4
    )  # the general model's own, but for rounding
    assert min(divergences[1:]) > 0.0
    capsys.readouterr()
    ensure_cpt(run)
    assert "writing" not in capsys.readouterr().out

    # Another weight trains anew, and writes nothing anew.
    again = ensure_cpt(
        open_run(project, {"train": {"self_distillation": {**WRITING, "weight": 1}}})
    )
    assert read_manifest(again)["inputs"] == manifest["inputs"]
    assert not (project / "runs/tiny/conversations.1").exists()


def test_what_is_written_ended_and_stands_once(project: Path):
    folder = conversations_of(project)
    found = load_conversations(folder / CONVERSATIONS)
    texts = [json.loads(line) for line in (folder / module.TEXTS).read_text().splitlines()]
    assert len(found) == len(texts) == read_manifest(folder)["results"]["num_conversations"]
    assert len({text["user"] for text in texts}) == len(texts)
    assert sum(len(one.teacher.rest_logs) for one in found) >= WRITING["num_tokens"]
    for one in found:
        assert len(one.teacher.rest_logs) == len(one.tokens) - one.first_written
        total = one.teacher.top_logs.exp().sum(dim=1) + one.teacher.rest_logs.exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)
    assert not list(folder.glob("part-*"))


def test_a_killed_run_continues_to_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch):
    whole = hash_folder(conversations_of(project), leave_out=("manifest.json",))
    (project / "runs").rename(project / "runs-before")
    written = module._write_block
    calls: list[int] = []

    def killed(*given: Any) -> Any:
        calls.append(given[3])
        if given[3] == 1:
            raise KeyboardInterrupt
        return written(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_block", killed)
        with pytest.raises(KeyboardInterrupt):
            conversations_of(project, num_tokens=100_000)
    assert calls == [0, 1]

    def counted(*given: Any) -> Any:
        calls.append(given[3])
        return written(*given)

    # The same settings as those of the first run: its first block is written once only.
    work = project / "runs/tiny/conversations.partial"
    identity = json.loads((work / "identity.json").read_text())
    identity["config"]["self_distillation"]["num_tokens"] = WRITING["num_tokens"]
    (work / "identity.json").write_text(json.dumps(identity))
    calls.clear()
    monkeypatch.setattr(module, "_write_block", counted)
    again = conversations_of(project)
    assert hash_folder(again, leave_out=("manifest.json",)) == whole
    assert 0 not in calls


def test_what_resembles_a_retention_prompt_is_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = conversations_of(project)
    texts = [json.loads(line)["user"] for line in (plain / module.TEXTS).read_text().splitlines()]
    prompts = project / "prompts.jsonl"
    rows = [{"prompt": text} for text in [*texts[:2], "what is said here?", "and what is not?"]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = open_run(
        project,
        {
            "train": {"self_distillation": WRITING},
            "evaluate": {"retention": {"files": [str(prompts)], "num_prompts": 8}},
        },
    )
    section = run.recipe.train.self_distillation
    assert section is not None
    folder = ensure_conversations(run, ensure_general(run), section)
    after = [json.loads(line)["user"] for line in (folder / module.TEXTS).read_text().splitlines()]
    assert not {*texts[:2]} & {*after}
    assert read_manifest(folder)["results"]["left_out"]["like a retention prompt"] >= 2


def test_a_model_without_a_template_continues_its_first_token(project: Path):
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = project / "model" / name
        if path.suffix == ".jinja":
            path.unlink(missing_ok=True)
        else:
            values = json.loads(path.read_text())
            values.pop("chat_template", None)
            path.write_text(json.dumps(values))
    folder = conversations_of(project)
    assert all(one.first_written == 1 for one in load_conversations(folder / CONVERSATIONS))


def test_a_model_that_never_ends_a_turn_is_said(project: Path, monkeypatch: pytest.MonkeyPatch):
    from toolkit.generate import chat_model

    monkeypatch.setattr(chat_model, "stops_of", lambda *_: frozenset())
    with pytest.raises(EvaluationError, match="only 0 tokens can be used"):
        conversations_of(project)


def test_fine_tuning_has_none(project: Path):
    data = {
        "sources": {
            "talks": {"role": "domain", "files": ["talks.jsonl"], "messages_field": "messages"}
        }
    }
    with pytest.raises(ConfigError, match=r"sft\.train\.self_distillation: is for continued"):
        open_run(project, {"sft": {"data": data, "train": {"self_distillation": {}}}})


def test_draws_follow_the_distribution(project: Path):
    model = AutoModelForCausalLM.from_pretrained(project / "model").eval()
    number = 3000
    chance = torch.rand(number, generator=torch.Generator().manual_seed(3)).tolist()
    answers = drawn_answers(
        model, (), [[5, 6]] * number, 1, temperature=0.7, units=lambda row, _: chance[row]
    )
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 6]])).logits[0, -1].double() / 0.7).softmax(0)
    counts = Counter(token for (token,) in answers)
    found = torch.tensor([counts[n] / number for n in range(len(expected))], dtype=torch.float64)
    spread = (expected * (1 - expected) / number).sqrt()
    assert float(((found - expected).abs() / spread.clamp_min(1e-4)).max()) < 5.0


def test_answers_that_ended_leave_the_batch(project: Path):
    model = AutoModelForCausalLM.from_pretrained(project / "model").eval()
    prompts = [[5, 6], [7, 8, 9], [3], [4, 4, 4, 4]]
    stops = set(range(0, 300, 7))

    def likeliest(logits: torch.Tensor, rows: Any, place: int) -> torch.Tensor:
        # Another token for every prompt and place, so that answers end at different places.
        return (logits.argmax(1) + torch.tensor([13 * row + place for row in rows])) % 300

    sizes: list[int] = []

    def watched(logits: torch.Tensor, rows: Any, place: int) -> torch.Tensor:
        sizes.append(len(rows))
        return likeliest(logits, rows, place)

    whole = grow_together(model, stops, prompts, 40, likeliest)
    assert grow_together(model, stops, prompts, 40, watched, drop_ended=True) == whole
    assert len({len(answer) for answer in whole}) > 1
    assert min(sizes) < len(prompts)


def test_none_are_written_for_a_model_that_cannot_be_merged(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    why = "toolkit.merge.in_memory_proof.why_not_live"
    monkeypatch.setattr(why, lambda _: "another kind of model")
    with pytest.raises(MergeError, match="cannot be made in memory"):
        ensure_merge(open_run(project, {"train": {"self_distillation": WRITING}}))
    assert not list((project / "runs/tiny").glob("conversations*"))
