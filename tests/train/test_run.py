"""What the stage refuses before it trains: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.token_blocks import make_blocks
from toolkit.errors import ConfigError, DataError, ToolkitError
from toolkit.pipeline.models import ensure_cpt
from toolkit.pipeline.run import Run
from toolkit.stage import Stage
from toolkit.train import loop, processes
from toolkit.train.config import TrainSection
from toolkit.train.model import NextTokenLoss
from toolkit.train.run import run_train


def attempt(folder: Path, tokens: list[int], length: int = 32) -> None:
    make_blocks(folder / "blocks", {"a": [tokens]}, length)
    stage = Stage(folder / "cpt", {}, {}, 0)
    run_train(TrainSection(), stage, folder / "model", folder / "blocks")


def test_tokens_that_the_model_does_not_have(tmp_path: Path, make_model: Callable[..., Path]):
    make_model(tmp_path / "model")
    with pytest.raises(DataError, match=r"holds token 320, but the model's vocabulary has 320;"):
        attempt(tmp_path, [1, 320, 2])


def test_blocks_longer_than_the_model(tmp_path: Path, make_model: Callable[..., Path]):
    make_model(tmp_path / "model", max_position_embeddings=16)
    words = r"data\.sequence_length: must be at most 16, .* \(got 32\)"
    with pytest.raises(ConfigError, match=words):
        attempt(tmp_path, [1, 2, 3])
    assert not (tmp_path / "cpt").exists()


def test_a_run_whose_last_step_is_not_finite_says_so(
    tmp_path: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    make_model(tmp_path / "model")
    real, calls = NextTokenLoss.forward, [0]

    def bad_at_last(self: NextTokenLoss, *tensors: Any) -> Any:
        calls[0] += 1
        return real(self, *tensors) * (float("inf") if calls[0] == 2 else 1.0)

    monkeypatch.setattr(NextTokenLoss, "forward", bad_at_last)
    monkeypatch.setattr(loop, "settle_packing", lambda _, plain, *__: plain.fused)
    attempt(tmp_path, [1, 2, 3] * 40)
    text = capsys.readouterr().out
    assert "-> not finite" in text
    assert "1 steps were not finite and left out" in text


def test_processes_that_did_not_find_each_other(monkeypatch: pytest.MonkeyPatch):
    """Each would train for itself and write to the same folder."""
    import accelerate

    monkeypatch.setenv("WORLD_SIZE", "4")

    class Alone:
        num_processes = 1

        def __init__(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(accelerate, "PartialState", Alone)
    with pytest.raises(ToolkitError, match="WORLD_SIZE is 4, but 1 processes found each other"):
        processes.start_processes()


def test_a_recipe_changed_while_interrupted_says_which_key(
    tmp_path: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from tests.helpers.tiny_runs import make_project, open_run
    from toolkit.checkpoint import training_state
    from toolkit.train import state

    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, make_model)

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            raise KeyboardInterrupt

    def start(run: Run) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(state, "StateWriter", Killed)
            with pytest.raises(KeyboardInterrupt):
                ensure_cpt(run)

    start(open_run(tmp_path, {}))
    capsys.readouterr()
    start(open_run(tmp_path, {"train": {"global_batch_size": 3}}))
    text = capsys.readouterr().out
    assert "train.global_batch_size: 2 -> 3" in text
    assert "put these back" in text
    assert list(Path("runs/tiny/cpt.partial.1").glob("state-*"))

    # The data: another document, so another data stage, and the key is the input's.
    (tmp_path / "docs/train99.txt").write_text("the board expects net income in 2031. " * 20)
    start(open_run(tmp_path, {"train": {"global_batch_size": 3}}))
    text = capsys.readouterr().out
    assert "inputs.data: " in text
