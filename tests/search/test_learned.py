"""Learned coefficients: the gradient, the frozen configuration, what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import ConfigError
from toolkit.evaluate.config import EvaluationRole
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.in_memory import LiveMerge
from toolkit.search import learned
from toolkit.search.config import LearnedSection, RaceSection
from toolkit.search.learned import (
    FigureTrade,
    LiveProfile,
    ModuleGroup,
    find_groups,
    item_losses,
    learn_profile,
    load_learned,
    profile_config,
    save_learned,
)
from toolkit.search.objective import Objective
from toolkit.stage import hash_json

TIES = LearnedSection(method="ties", density=0.3)


def texts(name: str, role: EvaluationRole, seed: int, count: int = 6) -> EvaluationSet:
    chance = torch.Generator().manual_seed(seed)
    sequences = [
        (torch.randint(1, 300, (9 + row,), generator=chance).tolist(), 5 + row)
        for row in range(count)
    ]

    def score(model: Any, rows: Any) -> list[float]:
        with torch.no_grad():
            return [float(sum(item_losses(model, items, [row]))) for row in rows]

    ids = [f"{name}/{row}" for row in range(count)]
    items = EvaluationSet(
        name,
        role,
        "nats per token",
        ids,
        ids,
        [float(scored) for _, scored in sequences],
        [10] * count,
        hash_json([name, sequences]),
        score,
        sequences=sequences,
    )
    return items


def objective_of(sets: list[EvaluationSet]) -> Objective:
    return Objective(
        sets,
        weights={},
        tolerances={},
        tolerance=0.05,
        confidence=0.95,
        race=RaceSection(enabled=False),
        seed=1,
    )


def test_a_part_of_a_set_is_learned_from_by_its_own_items(tmp_path: Path, make_model: Any):
    model = load_causal_model(make_model(tmp_path / "m"), torch.float32)
    items = texts("law", "domain", 0)
    part = items.only([4, 1])
    with torch.no_grad():
        for place, row in enumerate((4, 1)):
            (own,), (of_part,) = item_losses(model, items, [row]), item_losses(model, part, [place])
            assert of_part == own


@pytest.fixture
def live(two_models: tuple[Path, Path]) -> LiveMerge:
    return LiveMerge(dict(zip(("general", "specialist"), two_models, strict=True)), num_threads=1)


def loaded(two_models: tuple[Path, Path]) -> Any:
    return load_causal_model(two_models[0], torch.float32).eval()


@pytest.mark.parametrize("section", [LearnedSection(), TIES])
def test_the_gradient_is_that_of_differences(
    two_models: tuple[Path, Path], live: LiveMerge, section: LearnedSection
):
    model, items = loaded(two_models), texts("filings", "domain", 1)
    profile = LiveProfile(live, model, section, torch.float32)
    place = torch.linspace(0.2, 0.9, len(profile.groups), dtype=torch.float64)
    profile.put(place)
    value, gradient = profile.gradient(item_losses(model, items, range(6)))
    profile.put(place)
    alone = sum(
        len(items.sequences[row][0]) * 0 + items.score(model, [row])[0] * items.sizes[row]
        for row in range(6)
    )
    assert value == pytest.approx(alone / sum(items.sizes), rel=1e-5)
    for number in range(len(profile.groups)):
        sides = []
        for sign in (1.0, -1.0):
            moved = place.clone()
            moved[number] += sign * 0.05
            profile.put(moved)
            with torch.no_grad():
                sides.append(float(sum(item_losses(model, items, range(6)))))
        slope = (sides[0] - sides[1]) / 0.1
        assert slope == pytest.approx(float(gradient[number]), rel=0.05, abs=3e-5), number


@pytest.mark.parametrize("section", [LearnedSection(), TIES])
def test_the_frozen_configuration_is_the_merge_that_was_scored(
    two_models: tuple[Path, Path], live: LiveMerge, section: LearnedSection
):
    model = loaded(two_models)
    profile = LiveProfile(live, model, section, torch.float32)
    values = {group: round(0.1 + 0.07 * n, 4) for n, group in enumerate(profile.groups)}
    profile.put(torch.tensor(list(values.values()), dtype=torch.float64))
    expected = {name: tensor.clone() for name, tensor in model.named_parameters()}
    live.apply(profile_config(section, profile.stack, values), model)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_groups_are_layers_and_kinds_of_modules(two_models: tuple[Path, Path], live: LiveMerge):
    profile = LiveProfile(live, loaded(two_models), LearnedSection(), torch.float32)
    kinds = {group.kind for group in profile.groups if group.layer is not None}
    assert kinds == {"self_attn", "mlp", ""}  # norms together
    assert ModuleGroup(None) in profile.groups
    with pytest.raises(ConfigError, match="one stack of layers"):
        find_groups({"a.0.b.weight": (2, 2), "c.0.b.weight": (2, 2)})


def test_what_is_learned_trades_better_than_the_plain_mean(
    two_models: tuple[Path, Path], live: LiveMerge, tmp_path: Path
):
    sets = [texts("filings", "domain", 1), texts("news", "general", 2)]
    objective = objective_of(sets)
    section = LearnedSection(steps=12, learning_rate=0.1)
    candidate, figures = learn_profile(objective, live, loaded(two_models), section, torch.float32)
    assert float(figures["value_at_end"]) < float(figures["value_at_start"])
    assert candidate.config.merge_method == "task_arithmetic"
    path = tmp_path / "learned.json"
    assert load_learned(path) is None
    save_learned(path, candidate, figures)
    again = load_learned(path)
    assert again is not None
    assert again.key == candidate.key


def test_tokens_of_what_is_worth_nothing_are_not_counted(
    two_models: tuple[Path, Path], live: LiveMerge, monkeypatch: pytest.MonkeyPatch
):
    sets = [texts("filings", "domain", 1), texts("news", "general", 2)]
    objective = objective_of(sets)
    counted = []
    for weights in ({"filings": 1.0, "news": 0.0}, {"filings": 1.0}):
        trade = FigureTrade(weights, {items.name: items for items in sets})
        monkeypatch.setattr(learned, "_balance", lambda *_, trade=trade: (trade, 0.0))
        section = LearnedSection(steps=2)
        _, figures = learn_profile(objective, live, loaded(two_models), section, torch.float32)
        counted.append(figures["tokens"])
    assert counted[0] == counted[1]


def test_sets_without_texts_cannot_be_learned_from(two_models: tuple[Path, Path], live: LiveMerge):
    domain = texts("filings", "domain", 1)
    questions = EvaluationSet(
        "questions",
        "domain",
        "error",
        domain.ids,
        domain.ids,
        domain.sizes,
        domain.costs,
        "q",
        domain.score,
    )
    objective = Objective(
        [questions, texts("news", "general", 2)],
        weights={},
        tolerances={},
        tolerance=0.05,
        confidence=0.95,
        race=RaceSection(enabled=False),
        seed=1,
    )
    with pytest.raises(ConfigError, match="no domain set consists of texts"):
        learn_profile(objective, live, loaded(two_models), LearnedSection(), torch.float32)
