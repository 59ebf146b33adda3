"""The cpt stage put together: the loop, the watch that scores while it runs, later annealing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.likelihood import ItemSet, load_items, score_documents
from toolkit.evaluate.statistics import bits_per_byte
from toolkit.manifest import Stage, read_manifest
from toolkit.recipe import Recipe
from toolkit.train.config import TrainSection
from toolkit.train.run import run_train
from toolkit.train.watch import Watch


def train_specialist(recipe: Recipe, stage: Stage, general: Path, data: Path) -> None:
    """Run the cpt stage of a recipe."""
    run_train(
        recipe.train,
        stage,
        general,
        data,
        watch=make_watch(recipe.train, recipe.evaluate, general, data),
        general_sources=tuple(n for n, s in recipe.data.sources.items() if s.role == "general"),
    )


def make_watch(
    section: TrainSection, evaluate: EvaluateSection, general: Path, data: Path
) -> Watch | None:
    """A function that scores the first documents of the tuning sets, or None where it is off."""
    if section.watch.evaluations == 0:
        return None
    from transformers import AutoTokenizer

    separator = read_manifest(data)["results"]["separator_token_id"]
    items = load_items(data / "tuning.jsonl", AutoTokenizer.from_pretrained(general), separator)
    chosen = _first_tokens(items, section.watch.tokens_per_role)

    def watch(model: Any) -> dict[str, float]:
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=section.precision == "bf16"):
            nats = score_documents(model, chosen, evaluate)
        return {
            role: bits_per_byte(
                sum(nats[n] for n in chosen.only(role)),
                sum(chosen.num_bytes[n] for n in chosen.only(role)),
            )
            for role in ("domain", "general")
        }

    return watch


def _first_tokens(items: ItemSet, limit: int) -> ItemSet:
    rows: list[int] = []
    for role in ("domain", "general"):
        total = 0
        for index in items.only(role):
            if total >= limit:
                break
            rows.append(index)
            total += len(items.tokens[index])
    return ItemSet(
        [items.ids[n] for n in rows],
        [items.roles[n] for n in rows],
        [items.num_bytes[n] for n in rows],
        [items.tokens[n] for n in rows],
    )
