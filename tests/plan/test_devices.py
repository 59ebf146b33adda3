"""Devices, prices, and what is said when they are unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shapes import ROUND
from toolkit.errors import ConfigError
from toolkit.plan.cost import bill, find_origin, share_of_scratch, stage_work
from toolkit.plan.devices import CPU, DEVICES, Device, Fleet, parse_fleet, with_prices
from toolkit.plan.speed import this_machine
from toolkit.plan.token_budget import StageAmount
from toolkit.train.config import TrainSection


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("8xH100", 8, "H100"), ("L40S", 1, "L40S"), (" 2 x h200", 2, "H200"), ("4*A100", 4, "A100")],
)
def test_fleets(text: str, count: int, name: str):
    found = parse_fleet(text, DEVICES)
    assert (found.count, found.device.name) == (count, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8xH10", "there is no device 'H10'; did you mean H100?"),
        ("0xH100", "must be like 8xH100"),
        ("8 H100 each", "must be like 8xH100"),
        (
            "4xCPU",
            "CPU is this machine, all of its processors, and there is one of it (got '4xCPU')",
        ),
        ("TPU", "Known: H100, H200, B200, A100, L40S"),
    ],
)
def test_unknown_fleets(text: str, words: str):
    with pytest.raises(ConfigError) as caught:
        parse_fleet(text, {**DEVICES, CPU: this_machine(None)})
    assert words in str(caught.value)


def test_prices_of_flags_win_over_the_file(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text("prices: {H100: 2.0, A100: 1.0}\n")
    found = with_prices(DEVICES, ["H100=2.5"], path)
    assert (found["H100"].price, found["A100"].price) == (2.5, 1.0)
    assert found["B200"].price == DEVICES["B200"].price
    path.write_text("H100: 2.0\n")  # prices alone
    assert with_prices(DEVICES, [], path)["H100"].price == 2.0


def test_own_devices(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text("devices: {MI300X: {memory_gb: 192, tflops: 1307, price: 2.9}}\n")
    found = parse_fleet("8xmi300x", with_prices(DEVICES, [], path))
    assert (found.device.memory_bytes, found.device.price) == (192e9, 2.9)


@pytest.mark.parametrize(
    ("given", "text", "words"),
    [
        (["H100"], "", "--price: must be like H100=2.5 (got 'H100')"),
        (["H100=dear"], "", "must be a number, not below 0 (got 'dear')"),
        (["H100=-1"], "", "not below 0"),
        (["H10=1"], "", "did you mean H100?"),
        ([], "prices: {A10: 1.0}\n", "there is no device 'A10'; did you mean A100?"),
        ([], "devices: {X: {memory_gb: 1}}\n", "devices.X.tflops: is missing"),
        (
            [],
            "devices: {X: {memory_gb: 1, tflops: 0}}\n",
            "devices.X.tflops: must be greater than 0.0 (got 0)",
        ),
        ([], "devices: {X: 80}\n", "devices.X: must hold memory_gb, tflops and price (got 80)"),
        (
            [],
            "devices: {X: {memory_gb: yes, tflops: 1}}\n",
            "devices.X.memory_gb: must be a number (got True)",
        ),
        (
            [],
            "devices: {X: {memory: 1}}\n",
            "devices.X.memory: unknown key; did you mean memory_gb?",
        ),
        (
            [],
            "devices: {X: {memory_gb: 1, tflops: 1, utilization: 2}}\n",
            "devices.X.utilization: must be at most 1.0 (got 2)",
        ),
        ([], "prices: {H100: 1}\nprice: {}\n", "price: unknown key beside prices and devices"),
    ],
)
def test_bad_prices(tmp_path: Path, given: list[str], text: str, words: str):
    path = tmp_path / "prices.yaml"
    path.write_text(text or "prices: {}\n")
    with pytest.raises(ConfigError) as caught:
        with_prices(DEVICES, given, path)
    assert words in str(caught.value)


def test_a_bill_by_hand():
    # 100 blocks of 8 tokens at 19,260 operations a token = 15,408,000; two devices of 1,000 at
    # half use give 1,000 a second: 15,408 s = 4.28 h, twice that on two devices, at 3 dollars
    amount = StageAmount("cpt", 8, 700.0, 80.0, 100, 50)
    work = [stage_work(amount, ROUND, TrainSection())]
    device = Device("D", 1.0, 1000.0, 3.0, 0.5)
    found = bill(work, Fleet(2, device))
    assert found.hours == pytest.approx(4.28)
    assert found.dollars == pytest.approx(25.68)


def test_the_share_of_a_first_training():
    # all parameters that are multiplied, once over as many tokens, without attention: 1 - a little
    amount = StageAmount("cpt", 8, 800.0, 0.0, 100, 50)
    work = [stage_work(amount, ROUND, TrainSection())]
    assert share_of_scratch(work, ROUND, 800.0) == pytest.approx(19260 / (6 * 3050))


def test_origins_are_found_by_the_longest_name():
    assert find_origin("meta-llama/Meta-Llama-3-70B-Instruct").tokens == 15e12  # type: ignore[union-attr]
    assert find_origin("HuggingFaceTB/SmolLM2-1.7B").tokens == 11e12  # type: ignore[union-attr]
    assert find_origin("meta-llama/Llama-3.2-1B-Instruct").tokens == 9e12  # type: ignore[union-attr]
    assert find_origin("meta-llama/Llama-3.1-8B").tokens == 15e12  # type: ignore[union-attr]
    assert find_origin("Qwen/Qwen3-8B").tokens == 36e12  # type: ignore[union-attr]
    assert find_origin("Qwen/Qwen3.5-8B") is None  # a later version was trained on other text
    assert find_origin("org/mine") is None
    assert find_origin(None) is None
