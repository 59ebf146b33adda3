"""Parts of a recipe that do not fit each other: told when it is read, each at its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.errors import ConfigError
from toolkit.pipeline.run import Run
from toolkit.recipe.load import load_recipe

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}


def source(role: str, tokens: int | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "hub": {"dataset": "org/x"}, "tokens": tokens, **more}


def stage(name: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "tokens": tokens, "mixture": {"code": 0.9, "web": 0.1}, **more}


def recipe(**data: Any) -> dict[str, Any]:
    sources = {"code": source("domain", 1000), "web": source("general", 300)}
    return {
        "model": {"hub": "org/large", "shape": SHAPE},
        "data": {"sources": sources, "max_repeats": 2.0, **data},
    }


def faults(folder: Path, values: dict[str, Any]) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        load_recipe(path)
    except ConfigError as error:
        return str(error).split("\n  ")[1:]
    return []


def test_shares_add_up_and_stages_are_no_longer_than_their_data(tmp_path: Path):
    stages = [
        stage("a", 2000),  # 1800 of 1000 and 200 of 300: within two repeats
        stage("b", 2300),  # 2070 of 1000
        stage("c", 100, mixture={"code": 0.9, "web": 0.05}),
        stage("a", 100),
    ]
    assert faults(tmp_path, recipe(stages=stages)) == [
        "data.stages.1.mixture.code: 2,070 tokens would repeat its 1,000 2.1 times; lower the "
        "fraction or the stage's tokens, or raise data.max_repeats (2)",
        "data.stages.2.mixture: must add up to 1 (they add up to 0.95)",
        "data.stages.3.name: 'a' stands twice; names of stages must differ",
    ]


def test_a_limit_counts_as_the_end_of_a_source(tmp_path: Path):
    values = recipe(stages=[stage("a", 1000)])
    values["data"]["sources"]["code"] = source("domain", split={"train": {"max_tokens": 400}})
    (line,) = faults(tmp_path, values)
    assert line.startswith("data.stages.0.mixture.code: 900 tokens would repeat its 400 2.2 times")


def test_replay_that_runs_out(tmp_path: Path):
    assert faults(tmp_path, recipe(replay_fraction=0.3)) == []  # 428 of 300
    (line,) = faults(tmp_path, recipe(replay_fraction=0.4))
    assert line.startswith("data.replay_fraction: 0.4 of the training tokens needs 667 tokens")


def test_without_general_text_nothing_is_replayed_and_something_is_watched(tmp_path: Path):
    values = recipe()
    del values["data"]["sources"]["web"]
    (line,) = faults(tmp_path, values)
    assert line.startswith("data.replay_fraction: no source has role general, so there is nothing")
    values["data"]["replay_fraction"] = 0
    assert faults(tmp_path, values) == []
    values["evaluate"] = {"retention": {"num_prompts": 0}}
    values["train"] = {"forgetting_monitor": {"action": "stop"}}
    nothing_general, nothing_to_monitor = faults(tmp_path, values)
    assert nothing_general.startswith("evaluate.retention: no set has the role general")
    for watched in (
        {"infilling": {"role": "general"}},
        {"behavior": {"roles": {"unfinished": "general"}}},
        {"tasks": [{"task": "arc_easy", "role": "general"}]},
    ):
        values["evaluate"] = {"retention": {"num_prompts": 0}, **watched}
        assert not any("no set has the role" in fault for fault in faults(tmp_path, values))
    assert nothing_to_monitor.startswith("train.forgetting_monitor.action: stop acts on a loss on")


def test_blocks_beyond_the_positions(tmp_path: Path):
    long = stage("long", 100, sequence_length=16384)
    values = recipe(stages=[stage("a", 100), long], sequence_length=8192)
    assert faults(tmp_path, values) == [
        "data.sequence_length: must be at most 4096, the positions that the model has (got 8192); "
        "shorten it, or give rope_theta or max_position_embeddings in train.stages.a",
        "data.stages.1.sequence_length: must be at most 4096, the positions that the model has "
        "(got 16384); shorten it, or give rope_theta or max_position_embeddings in "
        "train.stages.long",
    ]
    values["data"]["sequence_length"] = 4096
    values["train"] = {"stages": {"long": {"rope_theta": 1e6}}}
    assert faults(tmp_path, values) == []
    values["train"] = {"stages": {"long": {"max_position_embeddings": 8192}}}
    (line,) = faults(tmp_path, values)
    assert "must be at most 8192" in line


def test_training_of_stages_that_are_not_there(tmp_path: Path):
    values = recipe(stages=[stage("python", 100)])
    values["train"] = {"stages": {"pyton": {"rope_theta": 1e6}}}
    assert faults(tmp_path, values) == [
        "train.stages.pyton: there is no such stage in data.stages; did you mean python? "
        "Stages: python"
    ]


def test_merges_and_models(tmp_path: Path):
    values = recipe()
    values["models"] = {"general": {"hub": "org/base"}}
    values["search"] = {"merges": ["linear", "llama3-sec-three"]}
    first, second = faults(tmp_path, values)
    assert first.startswith("models.general: is the name of a model that every recipe has")
    assert second.startswith("search.merges: ")
    assert "'base'; here there are only general, specialist" in second


def test_no_merge_of_models_with_different_positions(tmp_path: Path):
    values = recipe(stages=[stage("long", 100)])
    values["train"] = {"stages": {"long": {"rope_theta": 1e6}}}
    values["sft"] = {"data": recipe()["data"], "train": {}}
    (line,) = faults(tmp_path, values)
    assert line.startswith("sft.start: there is no merge to start from, as train.stages.long.rope")


def test_a_tokenizer_without_the_tokens(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model")
    values = recipe(end_of_document="<|endoftext|>", sequence_length=64)
    values["data"]["sources"]["code"]["fim"] = True
    values["model"] = {"path": "model"}
    end = "data.end_of_document: the tokenizer of model has no token '<|endoftext|>'"
    assert faults(tmp_path, values) == [
        end,
        "data.fim.tokens: the tokenizer of model has none of the tokens that code models use for "
        "fill-in-the-middle; name three, or add three by tokenizer.special_tokens",
    ]
    values["data"]["fim"] = {"tokens": ["<PRE>", "<SUF>", "<|end|>"]}
    values["data"]["end_of_document"] = "<|end|>"
    assert faults(tmp_path, values) == [
        "data.fim.tokens: the tokenizer of model lacks <PRE>, <SUF>; name others, or add them by "
        "tokenizer.special_tokens"
    ]
    values["evaluate"] = {"infilling": {"tokens": ["<PRE>", "<MID>", "<|end|>"]}}
    lines = faults(tmp_path, values)
    assert lines[0] == "evaluate.infilling.tokens: the tokenizer of model lacks <PRE>, <MID>"
    del values["evaluate"]
    values["tokenizer"] = {"special_tokens": ["<PRE>", "<SUF>"]}
    assert faults(tmp_path, values) == []
    # Conversations need a template.
    conversations = source("domain", messages_field="messages")
    values["sft"] = {"data": {**recipe()["data"], "sequence_length": 64}, "train": {}}
    values["sft"]["data"]["sources"] = {"talks": conversations, "web": source("general")}
    assert faults(tmp_path, values) == []
    (tmp_path / "model/chat_template.jinja").unlink()
    (line,) = faults(tmp_path, values)
    assert line.startswith("sft.data.sources.talks.messages_field: the tokenizer of model has no")
    values["tokenizer"]["chat_template"] = "{{ messages }}"
    assert faults(tmp_path, values) == []
    del values["sft"]
    # A model that was fetched before is looked at too.
    del values["tokenizer"]
    values["model"] = {"hub": "org/large"}
    assert faults(tmp_path, values) == []
    make_model(tmp_path / "runs/mine/general")
    with pytest.raises(ConfigError, match=r"data\.fim\.tokens: .*mine/general lacks <PRE>"):
        Run.open("mine.yaml", Path("runs"))


@pytest.mark.parametrize(
    ("publish", "words"),
    [
        (
            {"parents": {"lwa": {}}},
            "publish.parents.lwa: there is no such specialist or model; did",
        ),
        ({"gguf": []}, "publish.gguf: "),
    ],
)
def test_what_cannot_be_published(tmp_path: Path, publish: dict[str, Any], words: str):
    values = recipe()
    values["models"] = {"law": {"hub": "org/law"}}
    values["publish"] = publish
    (line,) = faults(tmp_path, values)
    assert line.startswith(words)
    values["publish"] = {"parents": {"law": {}}, "gguf": ["F16"]}
    assert faults(tmp_path, values) == []


def test_experts_of_differing_shapes(tmp_path: Path):
    wide = {"hub": "org/wide", "shape": {**SHAPE, "intermediate_size": 96, "num_hidden_layers": 3}}
    base = {"hub": "org/base", "shape": SHAPE}
    values = recipe()
    values["model"] = {"moe": {"base": base, "num_experts": 2, "experts": [base, wide]}}
    assert faults(tmp_path, values) == [
        "model.moe.experts.1: its num_hidden_layers is 3, that of the base 2; experts must have "
        "the base's shapes",
        "model.moe.experts.1: its intermediate_size is 96, that of the base 64; experts must have "
        "the base's shapes",
    ]
    values["model"]["moe"]["experts"] = [base, {"hub": "org/not-known"}]
    assert faults(tmp_path, values) == []
