"""Tiny models and documents, made here; nothing in the tests reaches for the network."""

from __future__ import annotations

import json
import os

from tests.helpers.projects import recipe, write

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models here are so small that a second thread costs more than it brings, and where the machine is
# busy, threads that wait for each other take a hundred times as long. Commands inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

_SUBJECTS = ("the company", "our segment", "the board", "a retailer", "the bank", "net income")
_VERBS = ("reported", "increased", "expects", "recognized", "disclosed", "reduced")
_OBJECTS = ("revenue", "lease costs", "operating margin", "deferred taxes", "inventory", "debt")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def sentence(chance: random.Random) -> str:
    year = chance.randint(2015, 2025)
    words = (chance.choice(_SUBJECTS), chance.choice(_VERBS), chance.choice(_OBJECTS))
    return f"{' '.join(words)} in {year}."


def paragraph(seed: int, sentences: int = 8) -> str:
    chance = random.Random(seed)  # noqa: S311  (text, not secrets)
    return " ".join(sentence(chance) for _ in range(sentences))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The real model's tests take minutes: begun last, they would run beside nothing."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> None:
    """accelerate keeps one state a process; here every test is a process of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([paragraph(seed) for seed in range(40)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{role}_token": "<|end|>" for role in ("eos", "pad")}
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(**changes: Any) -> LlamaConfig:
    values: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Write a tiny random Llama with its tokenizer: `make_model(folder, seed=0, **config)`."""

    def make(
        folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> Path:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(**changes)).to(dtype)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def two_models(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[Path, Path]:
    """A base and a tuned model: the tuned one is the base plus a small change."""
    base = make_model(tmp_path / "base", seed=1)
    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tuned / name).write_bytes((base / name).read_bytes())
    return base, tuned


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    make_model(tmp_path / "model")
    (tmp_path / "docs").mkdir()
    for number in range(26):
        name = f"{'train' if number < 8 else 'held'}{number}.txt"
        (tmp_path / "docs" / name).write_text(paragraph(number, sentences=20))
    rows = [{"text": f"{number} " + "a cat sat on the mat and slept. " * 6} for number in range(24)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path, recipe())
    return tmp_path
