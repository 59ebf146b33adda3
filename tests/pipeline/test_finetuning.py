"""Fine-tuning: the same data stage and loop, on conversations, from any of three models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.data.blocks import IGNORED, Blocks
from toolkit.data.encode import Encoder
from toolkit.errors import ConfigError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import windows
from toolkit.pipeline.stages import ensure_sft
from toolkit.pipeline.training import Answer, _answer_nats, load_answers
from toolkit.stage import read_manifest
from toolkit.train.model import answer_loss

SPLIT = {
    name: {"fraction": share}
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2))
}


def sft(**changes: Any) -> dict[str, Any]:
    cleaning = {"min_words": 1, "near_duplicate_similarity": None, "decontamination_ngram": None}
    values: dict[str, Any] = {
        "start": "general",
        "data": {
            "sequence_length": 64,
            "replay_fraction": 0.2,
            "cleaning": {**cleaning, "max_repeated_ngram_fraction": 1.0},
            "sources": {
                "talks": {
                    "role": "domain",
                    "files": ["talks.jsonl"],
                    "messages_field": "messages",
                    "split": SPLIT,
                },
                "web": {"role": "general", "files": ["web.jsonl"], "split": SPLIT},
            },
        },
        "train": {
            "epochs": 3,
            "schedule": {"peak_lr": 5e-3},
            "forgetting_monitor": {"evaluations": 1},
        },
    }
    return {**values, **changes}


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


def test_answers_are_learned_and_questions_are_not_targets(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    run = open_run(project, {"sft": sft()})
    folder = ensure_sft(run)
    assert folder == Path("runs/tiny/sft")
    looks = read_manifest(folder)["results"]["watch"]
    assert looks["end"]["domain"] < looks["start"]["domain"] - 0.1  # held-out answers
    AutoModelForCausalLM.from_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks = Blocks.open(Path("runs/tiny/sft-data"))
    stage = blocks.stages[0]
    talks = [p for p in range(stage.num_positions) if stage.source_at(p) == "talks"]
    batch = stage.read(talks)
    learned = tokenizer.decode(batch.labels[batch.labels != IGNORED].tolist())
    read = tokenizer.decode(batch.input_ids[batch.segments >= 0].tolist())
    assert "net income" in learned
    assert "question" in read
    assert "question" not in learned
    assert 0 < len(talks) < stage.num_positions  # replay is there

    capsys.readouterr()
    assert ensure_sft(run) == folder
    assert "sft: up to date" not in capsys.readouterr().out  # said once a process
    changed = open_run(project, {"sft": sft(train={"epochs": 1})})
    ensure_sft(changed)
    assert "train.epochs: 3 -> 1" in capsys.readouterr().out


def test_the_watch_scores_the_assistants_words_alone(project: Path):
    ensure_sft(open_run(project, {"sft": sft()}))
    model = AutoModelForCausalLM.from_pretrained("model")
    answers = load_answers(Path("runs/tiny/sft-data/validation.jsonl"), Path("model"), 1000)
    answer = answers[0]
    said = [token for token, wanted in zip(answer.tokens, answer.targets, strict=True) if wanted]
    words = AutoTokenizer.from_pretrained("model").decode(said)
    assert "the bank reported" in words
    assert "question" not in words
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([answer.tokens])).logits[0].double()
    nats = -logits.log_softmax(dim=1)
    expected = sum(
        float(nats[place - 1, token])
        for place, (token, wanted) in enumerate(zip(answer.tokens, answer.targets, strict=True))
        if wanted
    )
    assert answer_loss(model, answer.tokens, answer.targets) == pytest.approx(expected, rel=1e-5)


def test_long_conversations_are_scored_in_windows():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    ).eval()
    tokens = [n * 7 % 50 for n in range(40)]
    targets = [n % 3 > 0 for n in range(40)]
    section = EvaluateSection(window_tokens=16, context_tokens=4)
    expected, start = 0.0, 1
    with torch.no_grad():
        for inputs, predicted in windows(tokens, 16, 4):
            nats = -model(torch.tensor([inputs])).logits[0].log_softmax(dim=1)
            first = len(inputs) - len(predicted)
            wanted = targets[start : start + len(predicted)]
            start += len(predicted)
            expected += sum(
                float(nats[first + n, token]) for n, token in enumerate(predicted) if wanted[n]
            )
        long = _answer_nats(model, Answer("domain", tokens, targets, 1), section)
        short = _answer_nats(model, Answer("domain", tokens[:12], targets[:12], 1), section)
        assert long == pytest.approx(expected, rel=1e-5)
        assert short == answer_loss(model, tokens[:12], targets[:12])


def test_no_more_conversations_are_encoded_than_are_scored(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    encoded = []
    encode = Encoder.encode

    def note(encoder: Encoder, documents: Any) -> Any:
        encoded.extend(documents)
        return encode(encoder, documents)

    row = {"role": "domain", "group": "g", "text": "", "num_tokens": 1}
    talk = [{"role": "user", "content": "the bank"}, {"role": "assistant", "content": "the board"}]
    rows = [{**row, "id": f"talks/{n}", "messages": talk} for n in range(30)]
    path = project / "validation.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setattr(Encoder, "encode", note)
    assert len(load_answers(path, Path("model"), 1)) == len(encoded) == 1


def test_fine_tuning_starts_from_the_specialist_when_said(project: Path):
    folder = ensure_sft(open_run(project, {"sft": sft(start="specialist")}))
    assert Path("runs/tiny/cpt/manifest.json").is_file()
    assert not Path("runs/tiny/merge").exists()
    assert read_manifest(folder)["config"]["start"] == "specialist"


def test_a_recipe_without_the_section(project: Path):
    with pytest.raises(ConfigError, match="tiny: the recipe has no section sft"):
        ensure_sft(open_run(project, {}))


def test_annealing_belongs_to_cpt():
    from toolkit.train.config import SftSection

    with pytest.raises(ValueError, match=r"train\.use: anneal is for cpt"):
        SftSection.model_validate(sft(train={"use": "anneal", "keep_checkpoints": True}))
