"""The loop: repeatable, resumable bit for bit, and indifferent to how a step is cut up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.token_blocks import make_blocks
from toolkit.checkpoint import resume
from toolkit.data.blocks import Blocks
from toolkit.train import loop
from toolkit.train.config import TrainSection
from toolkit.train.loop import plan_steps, train


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 300, size=int(n)).tolist() for n in chance.integers(5, 40, 30)]
    return make_blocks(tmp_path / "blocks", {"a": documents})


@pytest.fixture
def fresh(tmp_path: Path, make_model: Callable[..., Path]) -> Callable[[], torch.nn.Module]:
    folder = make_model(tmp_path / "model")
    return lambda: AutoModelForCausalLM.from_pretrained(folder)


def section(**values: object) -> TrainSection:
    base = {"precision": "fp32", "schedule": {"peak_lr": 1e-2}, "save_every_steps": 3}
    return TrainSection.model_validate({**base, **values})


def losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def run(
    fresh: Callable[[], torch.nn.Module], blocks: Blocks, work: Path, **values: object
) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)
    model = fresh()
    train(model, blocks, section(**values), seed=7, work=work)
    return weights(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(fresh, blocks, tmp_path: Path, precision: str):
    first = run(fresh, blocks, tmp_path / "a", precision=precision)
    second = run(fresh, blocks, tmp_path / "b", precision=precision)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same(first, second)
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0]


def test_a_killed_run_continues_to_the_same_bits(
    fresh, blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(fresh, blocks, tmp_path / "whole")

    def killed_later(*args: object) -> None:
        resume.save_state(*args)  # type: ignore[arg-type]
        if args[1] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed_later)
    with pytest.raises(KeyboardInterrupt):
        run(fresh, blocks, tmp_path / "cut")
    monkeypatch.undo()
    # A step that was logged after the last state must be done again, not counted twice.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "loss": 99.0}) + '\n{"step": 8, "lo')
    assert same(run(fresh, blocks, tmp_path / "cut"), whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_accumulation_changes_the_result_only_by_rounding(fresh, blocks, tmp_path: Path):
    one = run(fresh, blocks, tmp_path / "one", blocks_per_step=4, micro_batch_blocks=4)
    four = run(fresh, blocks, tmp_path / "four", blocks_per_step=4, micro_batch_blocks=1)
    assert losses(tmp_path / "four")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-6)
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert not same(one, fresh().state_dict())
    del four


def test_the_step_loss_is_the_mean_over_real_tokens(fresh, blocks, tmp_path: Path):
    run(fresh, blocks, tmp_path / "w", schedule={"peak_lr": 1e-12})  # so the model stays as it is
    model = fresh().eval()
    batch = blocks.stages[0].read([0, 1])
    total, count = 0.0, 0
    for row in range(2):
        for number in range(int(batch.segments[row].max()) + 1):
            here = batch.segments[row] == number
            ids = torch.from_numpy(batch.input_ids[row][here].astype(np.int64))[None]
            targets = torch.from_numpy(batch.labels[row][here].astype(np.int64))
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    assert losses(tmp_path / "w")[0] == pytest.approx(total / count, rel=1e-5)


def test_steps_do_not_cross_stages(tmp_path: Path):
    documents = [[1] * 31 for _ in range(5)]
    blocks = make_blocks(tmp_path / "s", {"a": documents}, stages=[("one", 32), ("two", 16)])
    steps = plan_steps(blocks, 4)
    assert [(s.stage, list(s.positions)) for s in steps] == [
        (0, [0, 1, 2, 3]), (0, [4]), (1, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (1, [8, 9]),
    ]  # fmt: skip


def test_a_loss_that_is_no_number_stops_the_run(fresh, blocks, tmp_path: Path):
    from toolkit.errors import ToolkitError

    model = fresh()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (tmp_path / "n").mkdir()
    with pytest.raises(ToolkitError, match="peak_lr"):
        train(model, blocks, section(), seed=0, work=tmp_path / "n")
