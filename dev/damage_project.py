"""The sound project that `dev/damage.py` damages: models, recipes, documents."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dev.damage_packed import tar_of, zip_of
from tests.conftest import paragraph

TEMPLATE = (
    "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)
TEMPLATE_NAME = "chat_template.jinja"
FORMATS = ("jsonl", "csv", "txt", "html", "parquet", "jsonl.gz", "jsonl.xz", "jsonl.bz2")


def make_model(folder: Path, seed: int, **settings: Any) -> None:
    """A tiny Llama with its tokenizer and chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([paragraph(n) for n in range(20)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")  # noqa: S106
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder, **settings)
    tokenizer.save_pretrained(folder)


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM.from_pretrained(folder.parent / "a")
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    adapted.save_pretrained(folder)


def _documents(folder: Path) -> None:
    rows = [{"text": paragraph(n, 3), "id": str(n)} for n in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    web = [{"text": paragraph(n, 3)} for n in range(100, 120)]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in web))
    packers: dict[str, Any] = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    (folder / "docs.jsonl").write_bytes(lines)
    for ending, pack in packers.items():
        (folder / f"docs.jsonl.{ending}").write_bytes(pack(lines))
    table = "text,id\n" + "".join(f'"{row["text"]}",{row["id"]}\n' for row in rows)
    (folder / "docs.csv").write_text(table)
    (folder / "docs.txt").write_text("\n\n".join(row["text"] for row in rows))
    page = "".join(f"<p>{row['text']}</p>" for row in rows)
    (folder / "docs.html").write_text(f"<html><body>{page}</body></html>")
    pq.write_table(
        pa.table({key: [row[key] for row in rows] for key in rows[0]}), folder / "docs.parquet"
    )
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"question {n} of the board?"},
                {"role": "assistant", "content": f"the bank reported income in {n}."},
            ]
        }
        for n in range(12)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe over one file of documents."""
    shares = {
        "train": {"fraction": 0.5},
        "validation": {"fraction": 0.25},
        "test": {"fraction": 0.25},
    }
    source: dict[str, Any] = {"role": "domain", "files": [name], "split": shares}
    if name.startswith("docs.txt") or name.startswith("docs.html"):
        source["split"] = {"train": {"fraction": 1.0}}
    if name.startswith("talks"):
        source["messages_field"] = "messages"
    web = {"role": "general", "files": ["web.jsonl"], "split": shares}
    cleaning = {"min_words": 0, "near_duplicate_similarity": None, "decontamination_ngram": None}
    return {
        "seed": 3,
        "model": {"path": "a"},
        "data": {
            "sequence_length": 64,
            "replay_fraction": 0.2,
            "cleaning": cleaning,
            "sources": {"docs": source, "web": web},
        },
        "train": {
            "schedule": {"peak_lr": 1e-3},
            "save_steps": 1,
            "global_batch_size": 1,
            "forgetting_monitor": {"evaluations": 0},
        },
        "evaluate": {"window_tokens": 64, "bootstrap_resamples": 100},
        **changes,
    }


def _choice() -> dict[str, Any]:
    """A recipe whose search takes seconds."""
    values = recipe("docs.jsonl")
    split = {
        "train": {"fraction": 0.3},
        "validation": {"fraction": 0.35},
        "test": {"fraction": 0.35},
    }
    values["data"]["sources"]["docs"]["split"] = split
    values["evaluate"]["retention"] = {"num_prompts": 4, "max_new_tokens": 4}
    search = {"merges": ["linear"], "sweep": [0.7, 0.5, 0.3], "num_trials": 6, "refine": 0}
    return {**values, "search": search}


def _numbers() -> dict[str, Any]:
    """A recipe in which most numbers that a recipe may have stand, small."""
    values = _choice()
    values["seed"] = 1
    values["data"] |= {"max_repeats": 4.0, "evaluation_document_tokens": 64}
    values["data"]["cleaning"] |= {"max_words": 10_000, "decontamination_ngram": 13}
    values["data"]["sources"]["docs"]["split"]["train"]["max_tokens"] = 500
    values["train"] |= {
        "epochs": 1,
        "micro_batch_size": 1,
        "max_grad_norm": 1.0,
        "max_nonfinite_steps": 5,
        "save_total_limit": 1,
        "forgetting_monitor": {"evaluations": 1, "tokens_per_role": 64, "tolerance": 0.05},
        "stages": {"train": {"max_position_embeddings": 256}},
        "optimizer": {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1},
    }
    values["train"]["schedule"] |= {"warmup_fraction": 0.02, "final_lr_fraction": 0.1}
    values["evaluate"] |= {"context_tokens": 1, "batch_tokens": 64}
    values["evaluate"]["retention"] |= {"top_tokens": 16, "loss_tolerance": 0.1}
    values["evaluate"]["middles"] = {"per_document": 1, "lines": 1}
    values["search"] |= {"grid_points": 4, "confirm_trials": 1, "stale_seconds": 300.0}
    return values


def _packed(folder: Path) -> None:
    """A GGUF file, and archives of documents."""
    from toolkit.checkpoint.gguf.write import export_gguf

    export_gguf(folder / "a", folder / "tiny.gguf", "Q8_0", name="tiny")
    documents = (folder / "docs.jsonl").read_bytes()
    (folder / "docs.tar.gz").write_bytes(gzip.compress(tar_of(documents)))
    (folder / "docs.zip").write_bytes(zip_of(documents))


def make_project(folder: Path) -> None:
    """All sound files of the campaign; stages are run by the caller."""
    make_model(folder / "a", 1)
    make_model(folder / "b", 2)
    make_model(folder / "sharded", 3, max_shard_size="20KB")
    _adapter(folder / "adapter")
    (folder / "pickled").mkdir()
    for path in (folder / "a").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / "pickled" / path.name)
    state = LlamaForCausalLM.from_pretrained(folder / "a").state_dict()
    torch.save(state, folder / "pickled" / "pytorch_model.bin")
    _documents(folder)
    for ending in FORMATS:
        values = recipe(f"docs.{ending}")
        (folder / f"{ending.replace('.', '-')}.yaml").write_text(yaml.safe_dump(values))
    (folder / "talks.yaml").write_text(yaml.safe_dump(recipe("talks.jsonl")))
    (folder / "choose.yaml").write_text(yaml.safe_dump(_choice()))
    (folder / "numbers.yaml").write_text(yaml.safe_dump(_numbers()))
    _packed(folder)
    _merges(folder)
    (folder / "tasks").mkdir()
    questions = [
        {"question": f"Part {n} drives the", "choices": ["valve", "rotor"], "answer": n % 2}
        for n in range(6)
    ]
    (folder / "tasks" / "parts.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in questions)
    )
    task = {
        "task": "parts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "tasks" / "parts.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "tasks" / "parts.yaml").write_text(yaml.safe_dump(task))


def _merges(folder: Path) -> None:
    pair = [{"model": name, "parameters": {"weight": 0.5, "density": 0.5}} for name in "ab"]
    linear = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    merges: dict[str, Any] = {
        "linear": {"merge_method": "linear", "models": linear, "dtype": "float32"},
        "ties": {
            "merge_method": "ties",
            "base_model": "a",
            "models": pair,
            "parameters": {"normalize": True, "lambda": 1.0},
            "tokenizer": {"source": "union", "pad_to_multiple_of": 8},
        },
        "dare": {
            "merge_method": "dare_ties",
            "base_model": "a",
            "models": [{"model": "b", "parameters": {"weight": 0.5, "density": 0.5}}],
        },
        "slices": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 1]}]},
                {"sources": [{"model": "b", "layer_range": [1, 2]}]},
            ],
        },
        "slerp": {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "b"}],
            "parameters": {"t": [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.3}]},
        },
        "adapted": {
            "merge_method": "linear",
            "models": [{**linear[0], "model": "a+adapter"}, linear[1]],
        },
        "sharded": {
            "merge_method": "linear",
            "models": [linear[0], {**linear[1], "model": "sharded"}],
        },
        "pickled": {
            "merge_method": "linear",
            "models": [{**linear[0], "model": "pickled"}, linear[1]],
        },
    }
    for name, values in merges.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump(values, sort_keys=False))
    values = {
        "merge_method": "ties",
        "models": [
            {"model": "adapter", "parameters": {"weight": w, "density": 0.5}} for w in (1, 2)
        ],
    }
    (folder / "adapters.yml").write_text(yaml.safe_dump(values, sort_keys=False))
    moe = {
        "base_model": "a",
        "gate_mode": "random",
        "experts_per_token": 2,
        "experts": [{"source_model": "a"}, {"source_model": "b"}],
    }
    (folder / "moe.yml").write_text(yaml.safe_dump(moe, sort_keys=False))
