"""One answer to which type this machine is fast in: measured, kept, overridden, and heeded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.processors import AVX2_ONLY, is_fast_in_bfloat16
from toolkit import machine
from toolkit.errors import ConfigError
from toolkit.machine import (
    ProductSpeeds,
    choose_scoring_precision,
    choose_training_precision,
    measure_product_speeds,
    product_speeds,
)

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
WITH_BF16 = ProductSpeeds("cpu", {"fp32": 2e11, "bf16": 4e11, "fp16": 3e9})
WITHOUT = ProductSpeeds("cpu", {"fp32": 2e11, "bf16": 4e9, "fp16": 3e9})
OLD_GPU = ProductSpeeds("cuda", {"fp32": 8e12, "bf16": 0.0, "fp16": 60e12})
EQUAL = ProductSpeeds("cpu", {"fp32": 1e11, "bf16": 1.02e11, "fp16": 3e9})


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(machine.OVERRIDE, raising=False)
    monkeypatch.setattr(machine, "_KNOWN", {})
    monkeypatch.setattr(machine, "_SAID", set())


def know(monkeypatch: pytest.MonkeyPatch, speeds: ProductSpeeds) -> None:
    monkeypatch.setattr(machine, "_KNOWN", {"cpu": speeds, "cuda": speeds})


@pytest.mark.parametrize(
    ("speeds", "training", "of_bf16", "of_fp16", "of_fp32"),
    [
        (WITH_BF16, "bf16", "bf16", "fp32", "fp32"),
        (WITHOUT, "fp32", "fp32", "fp32", "fp32"),
        (EQUAL, "fp32", "bf16", "fp32", "fp32"),  # as stored costs nothing there
        (OLD_GPU, "fp32", "fp32", "fp16", "fp32"),
    ],
)
def test_what_auto_is(
    monkeypatch: pytest.MonkeyPatch,
    speeds: ProductSpeeds,
    training: str,
    of_bf16: str,
    of_fp16: str,
    of_fp32: str,
):
    know(monkeypatch, speeds)
    assert choose_training_precision("auto", speeds.device) == training
    found = [
        choose_scoring_precision("auto", dtype, speeds.device)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    ]
    assert found == [of_bf16, of_fp16, of_fp32]


def test_a_slow_wish_is_granted_with_both_speeds_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    know(monkeypatch, WITHOUT)
    for _ in range(2):
        assert choose_training_precision("bf16", CPU) == "bf16"
    said = capsys.readouterr().out
    assert said.count("bf16 4 GFLOP/s") == said.count("fp32 200 GFLOP/s") == 1
    assert choose_scoring_precision("stored", torch.bfloat16, CPU) == "bf16"
    assert "evaluate.precision" in capsys.readouterr().out
    know(monkeypatch, WITH_BF16)
    assert choose_training_precision("bf16", CPU) == "bf16"
    assert capsys.readouterr().out == ""


def test_a_type_that_the_device_cannot_do_names_those_it_can(monkeypatch: pytest.MonkeyPatch):
    know(monkeypatch, OLD_GPU)
    with pytest.raises(ConfigError, match=r"train\.precision: cuda cannot .* fp32, fp16"):
        choose_training_precision("bf16", "cuda")


def test_the_environment_overrides_auto_and_never_rounds_what_is_scored(
    monkeypatch: pytest.MonkeyPatch,
):
    know(monkeypatch, WITH_BF16)
    monkeypatch.setenv(machine.OVERRIDE, "fp32")
    assert choose_training_precision("auto", CPU) == "fp32"
    assert choose_scoring_precision("auto", torch.bfloat16, CPU) == "fp32"
    assert choose_training_precision("bf16", CPU) == "bf16"  # a recipe's own wish stands
    know(monkeypatch, WITHOUT)
    monkeypatch.setenv(machine.OVERRIDE, "bf16")
    assert choose_training_precision("auto", CPU) == "bf16"
    assert choose_scoring_precision("auto", torch.float32, CPU) == "fp32"
    assert choose_scoring_precision("auto", torch.bfloat16, CPU) == "bf16"
    # bfloat16 has three bits less than float16, however fast it is.
    assert choose_scoring_precision("auto", torch.float16, CPU) == "fp32"
    know(monkeypatch, OLD_GPU)
    assert choose_scoring_precision("auto", torch.float16, "cuda") == "fp16"
    monkeypatch.setenv(machine.OVERRIDE, "half")
    with pytest.raises(ConfigError, match="TOOLKIT_PRECISION: must be bf16 or fp32"):
        choose_training_precision("auto", CPU)


def test_speeds_are_measured_once_and_kept_for_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    count = 0

    def measure(device: torch.device) -> ProductSpeeds:
        nonlocal count
        count += 1
        return WITHOUT if count == 2 else WITH_BF16

    def ask() -> ProductSpeeds:
        machine._KNOWN.clear()  # as another process
        return product_speeds("cpu")

    monkeypatch.setattr(machine, "measure_product_speeds", measure)
    assert ask() == ask() == WITH_BF16
    assert count == 1
    (kept,) = (tmp_path / "cache" / "machine").iterdir()

    identity = machine._identity
    monkeypatch.setattr(machine, "_identity", lambda device: {**identity(device), "torch": "0"})
    assert ask() == WITHOUT  # other libraries, or another machine with the same home
    monkeypatch.setattr(machine, "_identity", identity)
    assert ask() == WITH_BF16
    assert count == 2

    for damage in ("", "{", "[]", json.dumps({**json.loads(kept.read_text()), "speeds": {}})):
        kept.write_text(damage)
        before = count
        assert ask() == WITH_BF16
        assert count == before + 1
    values = json.loads(kept.read_text())
    values["identity"]["device"] = "another"  # copied here from another machine
    kept.write_text(json.dumps(values))
    before = count
    ask()
    assert count == before + 1


def test_a_disturbed_measurement_is_used_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    disturbed = ProductSpeeds("cpu", WITH_BF16.flops, disturbed=True)
    monkeypatch.setattr(machine, "measure_product_speeds", lambda _device: disturbed)
    assert product_speeds("cpu") == disturbed
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(machine, "measure_product_speeds", lambda _device: WITHOUT)
    assert product_speeds("cpu") == WITHOUT


def test_products_are_measured_in_every_type():
    found = measure_product_speeds(CPU)
    assert found.flops["fp32"] > 1e8
    assert set(found.possible) == {"fp32", "bf16", "fp16"}


def test_without_the_instructions_float32_is_chosen():
    if not is_fast_in_bfloat16():
        assert choose_training_precision("auto", CPU) == "fp32"  # this machine has none
        return
    code = (
        "from toolkit.machine import *; import torch; cpu = torch.device('cpu'); "
        "speeds = measure_product_speeds(cpu).flops; assert speeds['fp32'] > 3 * speeds['bf16']; "
        "print(choose_training_precision('auto', cpu), "
        "choose_scoring_precision('auto', torch.bfloat16, cpu))"
    )
    environment = {**os.environ, **AVX2_ONLY, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == ["fp32", "fp32"], done.stderr


def test_the_command_says_what_matters_and_names_no_place():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "toolkit", "machine"]
    text, values = (
        subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment, check=True
        ).stdout
        for more in ([], ["--json"])
    )
    for word in ("processor", "GFLOP/s", "memory", "precision: auto", "torch", "not installed"):
        assert word in text
    described = json.loads(values)
    assert described["processor"]["flops"]["fp32"] > 0.0
    assert described["fast_type"] in {"bf16", "fp32", "fp16"}
    for place in (str(Path.home()), str(ROOT)):
        assert place in {"", "/"} or place not in text + values
