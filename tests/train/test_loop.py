"""The loop: repeatable, resumable bit for bit, and indifferent to how a step is cut up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from toolkit.checkpoint import resume
from toolkit.data.packing import pack_best_fit
from toolkit.train import loop
from toolkit.train.config import TrainSection
from toolkit.train.loop import Blocks, block_order, train


@pytest.fixture
def blocks() -> Blocks:
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 300, size=int(n)).tolist() for n in chance.integers(5, 40, 30)]
    packed = pack_best_fit(documents, 32, pad=0)
    return Blocks(packed.input_ids, packed.labels, packed.segments)


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
    rows = block_order(len(blocks), 1, 7)[:2]
    total, count = 0.0, 0
    for row in rows:
        for number in range(int(blocks.segments[row].max()) + 1):
            here = blocks.segments[row] == number
            ids = torch.from_numpy(blocks.input_ids[row][here].astype(np.int64))[None]
            targets = torch.from_numpy(blocks.labels[row][here].astype(np.int64))
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    assert losses(tmp_path / "w")[0] == pytest.approx(total / count, rel=1e-5)


def test_every_epoch_has_every_block_once_in_its_own_order():
    order = block_order(10, 2, seed=1)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


def test_a_loss_that_is_no_number_stops_the_run(fresh, blocks, tmp_path: Path):
    from toolkit.errors import ToolkitError

    model = fresh()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (tmp_path / "n").mkdir()
    with pytest.raises(ToolkitError, match="peak_lr"):
        train(model, blocks, section(), seed=0, work=tmp_path / "n")
