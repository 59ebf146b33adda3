"""The verdict, case by case, and the settings that follow."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.plan.settings import SettingInputs, choose_settings, sft_advice
from toolkit.plan.verdict import (
    Evidence,
    NeededTokens,
    judge,
    measured_shift,
    needed_tokens,
    worth_of_repeats,
)

SMALL = 135e6  # wants 100M at least
FOREIGN: dict[str, Any] = {
    "domain": 1.6, "general": 1.0, "gap_low": 0.5, "gap_high": 0.7,
    "pieces_ratio": 1.5, "badly_split": 0.1, "badly_split_general": 0.01, "rare": 0.4,
}  # fmt: skip
FAMILIAR: dict[str, Any] = {
    "domain": 0.8, "general": 1.0, "gap_low": -0.3, "gap_high": -0.1,
    "pieces_ratio": 1.0, "order_ratio": 1.0, "rare": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "figures", "tool", "shift", "is_sure"),
    [
        (5e9, FOREIGN, "cpt", "strong", True),
        (5e9, {**FAMILIAR, "gap_high": 0.05}, "cpt", "weak", True),
        (5e9, FAMILIAR, "nothing", "weak", True),
        (5e9, {**FAMILIAR, "num_talks": 5000}, "fine-tuning", "weak", True),
        (5e9, {}, "cpt", "not measured", False),
        (4e7, FOREIGN, "cpt", "strong", True),  # four epochs are worth 149M
        (4e7, FAMILIAR, "nothing", "weak", True),
        (4e7, {**FAMILIAR, "num_talks": 5000}, "fine-tuning", "weak", True),
        (5e9, {**FAMILIAR, "is_talk": True}, "fine-tuning", "weak", True),
        (8e4, FOREIGN, "retrieval", "strong", True),
        (8e4, {**FOREIGN, "num_talks": 64}, "retrieval", "strong", True),
        (8e4, {**FOREIGN, "num_talks": 5000}, "fine-tuning", "strong", True),
        (8e4, {"is_talk": True}, "fine-tuning", "not measured", True),
        (8e4, {"at_least": True}, "retrieval", "not measured", False),
        (1.2e8, FOREIGN, "cpt", "strong", False),  # near the threshold
        (None, FOREIGN, "cpt", "strong", False),
    ],
)
def test_the_table(tokens, figures, tool, shift, is_sure):
    values = {"at_least": False, **figures}
    found = judge(Evidence(tokens=tokens, trained_parameters=SMALL, **values))
    assert (found.tool, found.shift, found.is_sure) == (tool, shift, is_sure)
    assert found.reasons
    assert found.what_would_change_it


def test_what_would_change_it_says_how_much_text():
    found = judge(Evidence(tokens=1e5, at_least=False, trained_parameters=SMALL))
    assert found.what_would_change_it[0] == (
        "1,000 times the text (100M tokens), or 268 times and four epochs, would speak for CPT"
    )


def test_no_text_at_all_is_too_little():
    found = judge(Evidence(tokens=0.0, at_least=False, trained_parameters=SMALL))
    assert found.tool == "retrieval"
    assert found.reasons[0].startswith("too little text: 0 tokens of domain text")


def test_of_text_that_was_seen_in_part_it_says_at_most():
    found = judge(Evidence(tokens=1e6, at_least=True, trained_parameters=SMALL))
    assert found.what_would_change_it[0].startswith("at most 100 times the text")


def test_a_larger_model_wants_more():
    assert needed_tokens(SMALL) == NeededTokens(1e8, 1e9)
    assert needed_tokens(70e9) == NeededTokens(1.75e10, 2.1e11)
    assert judge(Evidence(5e9, False, 70e9, **FOREIGN)).tool == "cpt"  # four epochs: 18.7B
    assert judge(Evidence(2e9, False, 70e9, **FOREIGN)).tool == "retrieval"


def test_one_sign_of_a_strong_shift_is_unclear():
    shift, signs = measured_shift(Evidence(1e9, False, SMALL, **{**FAMILIAR, "rare": 0.5}))
    assert shift == "unclear"
    assert any("a vocabulary of its own" in line for line in signs)


def test_repeats():
    # Muennighoff: 1 + 15.4 (1 - exp(-1/15.4)) = 1.968
    assert worth_of_repeats(100.0, 1.0) == 100.0
    assert worth_of_repeats(100.0, 2.0) == pytest.approx(196.8, abs=0.1)
    assert worth_of_repeats(100.0, 1000.0) == pytest.approx(1640.0, abs=1)


def settings_now() -> dict[str, Any]:
    return {
        "data.replay_fraction": 0.15, "train.epochs": 1, "train.schedule.kind": "cosine",
        "train.schedule.peak_lr": 1e-4, "train.schedule.warmup_fraction": 0.02,
        "train.global_batch_size": 8, "train.micro_batch_size": 8, "train.lora": None,
        "tokenizer": None, "train.start": None,
    }  # fmt: skip


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "shift": "weak", "domain_tokens": 5e9, "parameters": SMALL, "steps": 5000, "tokens": 5.5e9,
        "origin_tokens": 2e12, "lora_fits_only": False, "pieces_ratio": 1.0,
        "is_instruct": False, "now": settings_now(),
    }  # fmt: skip
    return {s.key: s for s in choose_settings(SettingInputs(**{**values, **changes}))}


@pytest.mark.parametrize(
    ("shift", "share"),
    [("strong", 0.25), ("weak", 0.05), ("unclear", 0.15), ("not measured", 0.15)],
)
def test_replay_by_shift(shift: str, share: float):
    found = settings(shift=shift)["data.replay_fraction"]
    assert found.value == share
    assert "Ibrahim" in found.why


@pytest.mark.parametrize(
    ("tokens", "epochs"), [(5e9, 1), (6e7, 2), (4e7, 3), (3e7, 4), (2e7, 4), (8e4, 1)]
)
def test_epochs_against_repetition(tokens: float, epochs: int):
    assert settings(domain_tokens=tokens)["train.epochs"].value == epochs


def with_peak(rate: float) -> dict[str, Any]:
    return {**settings_now(), "train.schedule.peak_lr": rate}


@pytest.mark.parametrize(
    ("parameters", "now", "peak"),
    [
        (SMALL, 1e-3, 2e-4),  # too high: the published one
        (SMALL, 1e-4, 1e-4),  # within what is known
        (SMALL, 1e-6, 2e-4),  # learns nothing
        (7e9, 1e-3, 3e-4),
        (70e9, 1e-3, 1.5e-4),
        (70e9, 1e-5, 1e-5),
    ],
)
def test_peak_by_size(parameters: float, now: float, peak: float):
    found = settings(parameters=parameters, now=with_peak(now))
    assert found["train.schedule.peak_lr"].value == peak


def test_adapters_take_a_higher_peak():
    found = settings(parameters=70e9, lora_fits_only=True, now=with_peak(1e-5))
    assert found["train.schedule.peak_lr"].value == 1.5e-3
    assert found["train.lora"].value == {"rank": 256}


def test_few_steps_are_made_more():
    found = settings(steps=20)
    assert found["train.global_batch_size"].value == 3
    assert found["train.micro_batch_size"].value == 3
    assert "train.global_batch_size" not in settings(steps=5000)


def test_few_steps_of_a_curriculum_are_counted_with_its_own_epochs():
    now = {key: value for key, value in settings_now().items() if key != "train.epochs"}
    # So little text would be seen four times, were it not for the curriculum's own amounts.
    found = settings(steps=20, domain_tokens=4e7, now=now)
    assert found["train.global_batch_size"].why.startswith("20 steps are few")
    assert "train.global_batch_size" not in settings(steps=20, epochs=3, now=now)


def test_new_tokens_only_with_text_to_learn_them():
    assert settings(pieces_ratio=1.6)["tokenizer"].value == {"new_tokens": 1000}
    assert "tokenizer" not in settings(pieces_ratio=1.6, domain_tokens=1e5)


def test_a_setting_that_is_right_changes_nothing():
    found = settings()
    assert not found["train.epochs"].changes
    assert found["data.replay_fraction"].changes


def test_fine_tuning_advice():
    assert "about 3.0M tokens" in sft_advice(3e10)
    assert "thousands of good conversations" in sft_advice(1e5)


@pytest.mark.parametrize(
    ("own", "steps", "wanted"), [(0.008, 5000, 0.008), (0.2, 5000, 0.01), (0.0, 200, 0.02)]
)
def test_rewarming_within_what_is_usual_stays(own: float, steps: int, wanted: float):
    now = {**settings_now(), "train.schedule.warmup_fraction": own}
    assert settings(steps=steps, now=now)["train.schedule.warmup_fraction"].value == wanted


@pytest.mark.parametrize(
    ("own", "tokens", "wanted"),
    [
        ("cosine", 5.5e9, "cosine"),
        ("minimum", 5.5e9, "cosine"),  # not short beside 2T tokens
        ("minimum", 1e8, "minimum"),
        ("cosine", 1e8, "cosine"),
        ("infinite", 1e8, "infinite"),
        ("wsd", 5.5e9, "wsd"),
    ],
)
def test_a_schedule_with_a_purpose_stays(own: str, tokens: float, wanted: str):
    now = {**settings_now(), "train.schedule.kind": own}
    found = settings(tokens=tokens, now=now)
    assert found["train.schedule.kind"].value == wanted
    assert ("train.schedule.warmup_fraction" in found) == (wanted != "minimum")


def test_start_is_the_users_to_choose():
    assert "train.start" not in settings()
    large = settings(is_instruct=True, parameters=8e9)["train.start"]
    assert not large.changes
    assert "name it under models:" in large.why
    small = settings(is_instruct=True, parameters=SMALL)["train.start"]
    assert not small.changes
    assert "said to fail" in small.why
    named = settings(now={**settings_now(), "train.start": "base"})["train.start"]
    assert named.value == "base"
    assert not named.changes
