"""Fine-tuning: the same data stage and loop, on conversations, from any of three models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.data.blocks import IGNORED, Blocks
from toolkit.errors import ConfigError
from toolkit.pipeline.stages import ensure_sft
from toolkit.pipeline.training import load_answers
from toolkit.stage import read_manifest

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
    from toolkit.train.model import answer_loss

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
