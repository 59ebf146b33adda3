"""Metrics go to trackers as well, and none is left out without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator, tracking
from accelerate.utils import LoggerType

from tests.helpers.token_blocks import make_blocks
from toolkit.errors import ConfigError, ToolkitError
from toolkit.stage import Stage
from toolkit.train import loop, trackers
from toolkit.train.config import TrainSection
from toolkit.train.run import run_train


def attempt(folder: Path, make_model: Callable[..., Path]) -> Path:
    make_model(folder / "model")
    make_blocks(folder / "blocks", {"a": [[1, 2, 3] * 9] * 3})
    values = {
        "trackers": ["tensorboard"],
        "global_batch_size": 1,
        "forgetting_monitor": {"evaluations": 0},
    }
    stage = Stage(folder / "cpt", {}, {}, 5)
    section = TrainSection.model_validate({**values, "schedule": {"peak_lr": 1e-3}})
    run_train(section, stage, folder / "model", folder / "blocks")
    return stage.folder


def test_a_tracker_that_is_not_installed(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(trackers._INSTALLED, "tensorboard", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.trackers: tensorboard is not installed; pip"):
        attempt(tmp_path, make_model)
    assert not (tmp_path / "cpt.partial").exists()


def test_settings_and_metrics_reach_a_tracker(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    settings: dict[str, Any] = {}
    logged: list[tuple[int | None, dict[str, Any]]] = []

    class Recorder(tracking.GeneralTracker):  # type: ignore[misc]
        name = "tensorboard"
        requires_logging_directory = True
        main_process_only = True

        def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
            super().__init__()
            self.folder = Path(logging_dir) / run_name

        @property
        def tracker(self) -> Path:
            return self.folder

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            settings.update(values)

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            logged.append((None, {}))

    monkeypatch.setitem(trackers._INSTALLED, "tensorboard", lambda: True)
    # It would end the group of processes too, which writes the model afterwards.
    monkeypatch.setattr(Accelerator, "end_training", None)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    known = [*tracking._available_trackers, LoggerType.TENSORBOARD]
    monkeypatch.setattr(tracking, "_available_trackers", known)
    folder = attempt(tmp_path, make_model)
    # As TensorBoard demands: one level, plain values.
    assert {type(value) for value in settings.values()} <= {bool, int, float, str}
    assert settings["seed"] == 5
    assert settings["schedule.peak_lr"] == 1e-3
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 1
    assert [step for step, _ in logged] == [*(row["step"] for row in rows), None]
    assert [values["loss"] for _, values in logged[:-1]] == [row["loss"] for row in rows]

    # A run that fails ends them too, with what was logged so far.
    def failing(*_: Any, **__: Any) -> None:
        raise ToolkitError("the disk is full")

    logged.clear()
    monkeypatch.setattr(loop, "optimizer_step", failing)
    shutil.rmtree(folder)
    with pytest.raises(ToolkitError, match="the disk is full"):
        attempt(tmp_path, make_model)
    assert logged == [(None, {})]
