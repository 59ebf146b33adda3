"""The loop: repeatable, resumable bit for bit, and indifferent to how a step is cut up."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.token_blocks import make_blocks
from toolkit.checkpoint import training_state
from toolkit.data.blocks import Blocks
from toolkit.errors import ToolkitError
from toolkit.train import loop, setup, state
from toolkit.train.config import TrainSection
from toolkit.train.loop import train
from toolkit.train.model import NextTokenLoss
from toolkit.train.steps import plan_steps

ROOT = Path(__file__).parent.parent.parent


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
    base = {"precision": "fp32", "schedule": {"peak_lr": 1e-2}, "save_steps": 3}
    return TrainSection.model_validate({**base, **values})


def losses(work: Path) -> list[float]:
    rows = map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


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

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            if step == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(state, "StateWriter", Killed)
    with pytest.raises(KeyboardInterrupt):
        run(fresh, blocks, tmp_path / "cut")
    monkeypatch.undo()
    # A step that was logged after the last state must be done again, not counted twice.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "loss": 99.0}) + '\n{"step": 8, "lo')
    assert same(run(fresh, blocks, tmp_path / "cut"), whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_accumulation_changes_the_result_only_by_rounding(fresh, blocks, tmp_path: Path):
    one = run(fresh, blocks, tmp_path / "one", global_batch_size=4, micro_batch_size=4)
    four = run(fresh, blocks, tmp_path / "four", global_batch_size=4, micro_batch_size=1)
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


def test_losses_that_are_no_numbers_are_refused_and_end_the_run(fresh, blocks, tmp_path: Path):
    model = fresh()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    before = weights(model)
    (tmp_path / "n").mkdir()
    with pytest.raises(ToolkitError, match=r"the 3\. in a row that .*peak_lr"):
        train(model, blocks, section(max_nonfinite_steps=3), seed=0, work=tmp_path / "n")
    rows = [json.loads(line) for line in (tmp_path / "n/metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [True] * 3
    assert all(
        torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in weights(model).items()
    )


def test_one_bad_step_is_left_out_and_training_goes_on(
    fresh, blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = {"n": 0}
    real = NextTokenLoss.forward

    def sometimes(self, *args):
        calls["n"] += 1
        return real(self, *args) * (float("inf") if calls["n"] == 4 else 1.0)

    monkeypatch.setattr(NextTokenLoss, "forward", sometimes)
    monkeypatch.setattr(loop, "settle_packing", lambda _, plain, *__: plain.fused)
    (tmp_path / "w").mkdir()
    model = fresh()
    results = train(model, blocks, section(), seed=7, work=tmp_path / "w")
    assert results.skipped_steps == 1
    assert all(value.isfinite().all() for value in weights(model).values())


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import os
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
from tests.train.test_loop import section
from toolkit.data.blocks import Blocks
from toolkit.errors import ToolkitError
from toolkit.train.loop import train
folder = Path({folder!r})
model = AutoModelForCausalLM.from_pretrained(folder / "model")
train(model, Blocks.open(folder / "blocks", 12), section(save_steps=2), seed=7,
      work=folder / {work!r})
model.save_pretrained(folder / {work!r} / "final")
"""


def test_kill_minus_nine_at_any_moment_ends_in_the_same_bits(fresh, blocks, tmp_path: Path):
    from safetensors.torch import load_file

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    chance = random.Random(4)  # noqa: S311

    def start(work: str) -> subprocess.Popen[bytes]:
        (tmp_path / work).mkdir(exist_ok=True)
        script = _KILLED.format(root=str(ROOT), folder=str(tmp_path), work=work)
        return subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    kills = 0
    for _ in range(3):
        process = start("cut")
        rows = tmp_path / "cut/metrics.jsonl"
        begun = len(rows.read_text().splitlines()) if rows.is_file() else 0
        goal = begun + chance.randint(3, 12)
        while process.poll() is None:
            if rows.is_file() and len(rows.read_text().splitlines()) >= goal:
                time.sleep(chance.random() * 0.01)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        process.wait()
    assert kills >= 2
    assert start("cut").wait() == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / w / "final/model.safetensors") for w in ("cut", "whole"))
    assert same(ours, theirs)


def test_a_full_disk_leaves_the_former_state(
    fresh, blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = training_state.save_tensors

    def full(tensors: object, path: Path) -> None:
        if "00000006" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)  # type: ignore[arg-type]

    monkeypatch.setattr(training_state, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run(fresh, blocks, tmp_path / "w")
    assert training_state.saved_steps(tmp_path / "w") == [3]
    assert not list((tmp_path / "w").glob(".state*"))
    monkeypatch.undo()
    assert same(run(fresh, blocks, tmp_path / "w"), run(fresh, blocks, tmp_path / "x"))


def test_the_last_states_are_kept(fresh, blocks, tmp_path: Path):
    run(fresh, blocks, tmp_path / "w", save_total_limit=2)
    assert training_state.saved_steps(tmp_path / "w") == [6, 9]


def test_the_watch_looks_and_warns(fresh, blocks, tmp_path: Path):
    seen: list[int] = []

    def watch(model: torch.nn.Module) -> dict[str, float]:
        seen.append(len(seen))
        return {"domain": 1.0 - 0.1 * len(seen), "general": 1.0 + 0.1 * len(seen)}

    (tmp_path / "w").mkdir()
    given = section(forgetting_monitor={"evaluations": 2, "tolerance": 0.15})
    results = train(fresh(), blocks, given, seed=7, work=tmp_path / "w", score_roles=watch)
    rows = [json.loads(line) for line in (tmp_path / "w/metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "general_bits_per_byte" in row]
    assert len(looks) == 4  # before, twice, and after
    assert looks[0]["step"] == 0
    assert looks[-1]["step"] == results.num_steps

    (tmp_path / "s").mkdir()
    seen.clear()
    stop = section(forgetting_monitor={"evaluations": 2, "tolerance": 0.15, "action": "stop"})
    results = train(fresh(), blocks, stop, seed=7, work=tmp_path / "s", score_roles=watch)
    assert "more than the tolerance of 0.15" in results.stopped_by_watch
    assert len(losses(tmp_path / "s")) == looks[2]["step"]


def test_the_watch_can_raise_replay_and_a_killed_run_does_so_again(
    fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sources = {"d": [[5] * 31] * 30, "g": [[6] * 31] * 30}

    def watch(model: torch.nn.Module) -> dict[str, float]:
        watch.calls += 1  # type: ignore[attr-defined]
        return {"domain": 1.0, "general": 1.0 if watch.calls == 1 else 2.0}  # type: ignore[attr-defined]

    def go(work: Path) -> torch.nn.Module:
        work.mkdir(exist_ok=True)
        watch.calls = 0 if not training_state.saved_steps(work) else 1  # type: ignore[attr-defined]
        made = make_blocks(tmp_path / "mix", sources, counts={"d": 28, "g": 4})
        given = section(
            forgetting_monitor={"evaluations": 1, "action": "raise_replay"}, save_steps=10
        )
        model = fresh()
        result = train(
            model, made, given, seed=7, work=work, score_roles=watch, general_sources=("g",)
        )
        assert result.replay_raised == 1
        stage = made.stages[0]
        first = [stage.source_at(p) for p in range(16)]
        rest = [stage.source_at(p) for p in range(16, 32)]
        assert (first.count("g"), rest.count("g")) == (2, 4)
        read = stage.read(range(32)).input_ids
        assert ((read == 6).any(axis=1)).sum() == 6
        return model

    whole = go(tmp_path / "a")

    class Killed(training_state.StateWriter):
        def save(self, step: int, *rest: object) -> None:  # type: ignore[override]
            super().save(step, *rest)  # type: ignore[arg-type]
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(state, "StateWriter", Killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "b")
    monkeypatch.undo()
    assert training_state.saved_steps(tmp_path / "b") == [10]
    assert same(weights(go(tmp_path / "b")), weights(whole))


def test_a_state_that_is_being_written_knows_nothing_of_later_steps():
    """It is written by a thread while training, and the monitor, go on."""
    state_now = state.TrainState(raises=[(0, 8)])
    written = state_now.to_json()
    state_now.raises.append((0, 16))
    assert written["raises"] == [(0, 8)]


def test_more_processes_than_blocks_are_refused(fresh, blocks, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(setup.Accelerator, "num_processes", property(lambda _: 3))
    with pytest.raises(ToolkitError, match="2 blocks cannot be shared by 3 processes"):
        run(fresh, blocks, tmp_path / "w")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_gradient_checkpointing_changes_nothing_but_memory(
    fresh, blocks, tmp_path: Path, kind: str, precision: str
):
    plain = run(fresh, blocks, tmp_path / "a", gradient_checkpointing="none", precision=precision)
    again = run(fresh, blocks, tmp_path / "b", gradient_checkpointing=kind, precision=precision)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert same(again, plain)


def test_compiling_changes_rounding_at_most(
    fresh, blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Traced as for any compiler; the code generator alone is left out, since it takes minutes."""
    real, calls = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        calls.append(type(module).__name__)
        real(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    few = {"epochs": 1, "save_steps": 100}
    plain = run(fresh, blocks, tmp_path / "a", **few)
    compiled = run(fresh, blocks, tmp_path / "b", compile=True, **few)
    torch._dynamo.reset()
    assert calls == ["LlamaModel"]
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)
    for name, value in plain.items():
        assert torch.allclose(compiled[name], value, atol=1e-5), name
