"""Recipes of `recipes/` at a scale below their laptop one: a tiny model and texts made here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import paragraph
from toolkit.load_yaml import load_yaml
from toolkit.recipe.layers import overlay

RECIPES = Path(__file__).parents[2] / "recipes"
SEQUENCE = 64
_PLAIN = ("a cat", "the dog", "our garden", "a river", "the old house", "my brother", "rain")
_DOES = ("sat on", "looked at", "slept near", "ran to", "was green like", "sang of", "fell on")
_CLEANING = {
    "collapse_spaces": False,
    "min_words": 5,
    "max_repeated_line_fraction": 1.0,
    "max_repeated_ngram_fraction": 1.0,
    "near_duplicate_similarity": None,
    "decontamination_ngram": None,
}
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def write_small(
    name: str, folder: Path, make_model: Callable[..., Path], tokens: int = 1500
) -> dict[str, Any]:
    """A copy of a recipe in `folder/recipes/` whose laptop layer is smaller still.

    Only models, documents and amounts change, as in any scale: what the recipe is about stays.

    Returns:
        Its values.
    """
    make_model(folder / "model")
    values = load_yaml(RECIPES / f"{name}.yaml")
    layer = values["scales"]["laptop"]
    changes: dict[str, Any] = {"model": _model(layer["model"]), "train": _training()}
    if "tokens" in layer:
        changes["tokens"] = tokens
    changes["sequence_divisor"] = values["data"]["sequence_length"] // SEQUENCE
    changes["data"] = _data(folder, layer["data"])
    if "sft" in layer:
        changes["sft"] = {"data": _data(folder, layer["sft"]["data"]), "train": _training()}
    changes["variants"] = {
        variant: {"tokens": 2 * tokens}
        for variant, own in layer.get("variants", {}).items()
        if "tokens" in own
    }
    changes["evaluate"] = {"window_tokens": SEQUENCE, "bootstrap_resamples": 500}
    values["scales"]["laptop"] = {**overlay(layer, changes), "model": changes["model"]}
    (folder / "recipes").mkdir(exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False)
    (folder / "recipes" / f"{name}.yaml").write_text(text)
    return values


def _model(model: dict[str, Any]) -> dict[str, Any]:
    if "scratch" in model:
        return {"scratch": {"shape": SHAPE, "tokenizer": {"path": "model"}}}
    return {"path": "model"}


def _training() -> dict[str, Any]:
    return {"schedule": {"peak_lr": 5e-3}, "global_batch_size": 2, "micro_batch_size": 2}


def _data(folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    """The section's sources as texts made here: roles, weights and the like stay."""
    sources = {}
    for number, (name, source) in enumerate(section["sources"].items()):
        path = folder / f"{name}.jsonl"
        texts = [_text(source["role"], 1000 * number + n) for n in range(160)]
        if source.get("fim"):  # lines, so that there is something to fill in
            texts = [text.replace(". ", ".\n") for text in texts]
        rows = [{"text": text} for text in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        kept = {key: source[key] for key in ("role", "weight", "fim") if key in source}
        limit = source.get("split", {}).get("train", {}).get("max_tokens")
        train = {"fraction": 0.6} if limit is None else {"fraction": 0.6, "max_tokens": 600}
        split = {"train": train, "validation": {"fraction": 0.1}, "test": {"fraction": 0.3}}
        sources[name] = {**kept, "files": [path.name], "split": split}
    return {
        "sources": sources,
        "cleaning": _CLEANING,
        "end_of_document": "<|end|>",
        "evaluation_document_tokens": SEQUENCE,
    }


def _text(role: str, seed: int) -> str:
    if role == "domain":
        return paragraph(seed, sentences=4)
    chance = random.Random(seed)  # noqa: S311  (text, not secrets)
    words = [(chance.choice(_PLAIN), chance.choice(_DOES), chance.choice(_PLAIN)) for _ in range(6)]
    return ". ".join(" ".join(line) for line in words) + "."


COMPARISONS = ("ibrahim-replay", "reuse-dont-retrain", "kotha-replay", "mix-early")
