"""Several processes give what one gives: copies of the model (DDP), or parts of it (FSDP2)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from safetensors.torch import load_file

from tests.helpers.own_conversations import conversations
from tests.helpers.token_blocks import make_blocks
from toolkit.checkpoint.sharded_state import StateParameters, stored_shapes
from toolkit.checkpoint.training_state import refuse_shape, saved_steps
from toolkit.errors import CheckpointError, ConfigError
from toolkit.merge.moe.config import MoeConfig
from toolkit.merge.moe.run import run_moe
from toolkit.section import parse_section
from toolkit.train import precision
from toolkit.train.config import TrainSection
from toolkit.train.processes import from_first, refuse_parallelism
from toolkit.train.self_distillation import CONVERSATIONS, save_conversations

ROOT = Path(__file__).parent.parent.parent

_SCRIPT = """
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.utils import DistributedType
from toolkit.checkpoint import sharded_state
from toolkit.checkpoint.training_state import latest_step
from toolkit.stage import Stage
from toolkit.train import loop, run, schedule, setup
from toolkit.train.config import TrainSection
from toolkit.train.processes import is_first, num_processes, start_processes
from toolkit.train.run import run_train

kind, precision, folder, killed = sys.argv[1:]

class OnCpu(Accelerator):
    # accelerate itself takes FSDP on GPUs alone; from here on all is its own code.
    def __init__(self, **settings):
        super().__init__(**settings)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
        )

class InReplicas(OnCpu):
    def __init__(self, **settings):
        super().__init__(**settings)
        sizes = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
        self.state.parallelism_config = sizes
        self.state.device_mesh = sizes.get_device_mesh("cpu")
        sizes._validate_accelerator(self)

if kind == "fsdp":
    setup.Accelerator = OnCpu
if kind == "hsdp":
    setup.Accelerator = InReplicas
if num_processes() > 1:
    start_processes()

def killed_in_save(path, parts):
    # In the middle of the second state, on the second process; torchrun then ends the others.
    if Path(path).parent.name == ".state-00000004.partial" and not is_first():
        os.kill(os.getpid(), signal.SIGKILL)
    return write_file(path, parts)

@contextlib.contextmanager
def exchanging(accelerator, module, *, waits):
    with exchange(accelerator, module, waits=waits):
        yield
    if kind in ("fsdp", "hsdp"):  # each has its part of the sum, and no whole gradients wait
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)

exchange, loop.exchanging = loop.exchanging, exchanging
write_file = sharded_state._write_file
if killed == "in save":
    sharded_state._write_file = killed_in_save

def killed_at(step, *rest):
    # Once the state of step 2 stands, on the first process; torchrun then ends the other.
    if step == 3 and is_first():
        while latest_step(stage.work) != 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return learning_rate(step, *rest)

learning_rate = schedule.learning_rate
if killed == "killed":
    schedule.learning_rate = killed_at

def watch(model):
    with torch.no_grad():
        nats = model.eval()(input_ids=torch.arange(1, 40)[None]).logits.float().logsumexp(-1)
    return {"domain": nats.mean().item(), "general": nats.mean().item()}

values = {
    "precision": precision, "schedule": {"peak_lr": 1e-2}, "global_batch_size": 5,
    "micro_batch_size": 1, "save_steps": 2, "keep_checkpoints": True, "save_total_limit": 9,
    "forgetting_monitor": {"evaluations": 1},
}
own = Path("own") if Path("own").is_dir() else None
if Path("changes.json").exists():
    values |= json.loads(Path("changes.json").read_text())
if own is not None:
    values["self_distillation"] = {"tokens_per_step": 64}
section = TrainSection.model_validate(values)
stage = Stage(Path(folder), {}, {}, 7)
run_train(section, stage, Path("model"), Path("blocks"), score_roles=watch, conversations=own)
"""


def run(
    folder: Path, kind: str, precision: str, out: str = "", *, kill: str = "", processes: int = 2
) -> None:
    (folder / "script.py").write_text(_SCRIPT)
    start = [sys.executable]
    if kind != "one":
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "script.py", kind, precision, out or kind, kill],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) is bool(kill), done.stderr[-3000:]
    if kill:
        assert "SIGKILL" in done.stderr


def rows(folder: Path, key: str) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in lines if key in row]


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    make_model(tmp_path / "model", tie_word_embeddings=False)
    chance = np.random.default_rng(0)
    documents = [[int(n) % 50 + 1] * int(size) for n, size in chance.integers(5, 40, (22, 2))]
    made = make_blocks(tmp_path / "blocks", {"a": documents})
    assert made.stages[0].num_positions % 5 in {1, 2, 3}  # the last step cannot be shared evenly
    return tmp_path


def moments(state: Path) -> dict[str, Any]:
    """Of a state in parts, those of each put together by its rows."""
    parts: dict[str, list[torch.Tensor]] = {}
    for path in sorted(state.glob("optimizer*.safetensors")):
        for name, tensor in load_file(path).items():
            parts.setdefault(name, []).append(tensor)
    return {n: torch.cat(rows) if len(rows) > 1 else rows[0] for n, rows in parts.items()}


def close(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=0, atol=tolerance), name


def test_two_processes_give_the_losses_of_one(project: Path):
    for kind in ("one", "ddp", "fsdp"):
        run(project, kind, "fp32")
    for kind in ("ddp", "fsdp"):
        for key in ("loss", "gradient_norm", "general_bits_per_byte"):
            assert rows(project / kind, key) == pytest.approx(
                rows(project / "one", key), rel=1e-5
            ), (kind, key)
        model = load_file(project / kind / "model.safetensors")
        close(load_file(project / "one/model.safetensors"), model, 1e-5)
        assert saved_steps(project / kind / "states") == saved_steps(project / "one/states")
        step = saved_steps(project / kind / "states")[0]
        state = f"states/state-{step:08d}"
        close(moments(project / "one" / state), moments(project / kind / state), 1e-5)
    losses = rows(project / "one", "loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "changes",
    [{"lora": {"rank": 4}}, {"block_expansion": {"num_blocks": 1}}, {"trainable": ["*mlp*"]}],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_of_what_learns(project: Path, changes: dict[str, Any]):
    """Adapters, new blocks and chosen parameters of a model that no process holds whole."""
    (project / "changes.json").write_text(json.dumps(changes))
    for kind in ("one", "fsdp"):
        run(project, kind, "fp32")
    for key in ("loss", "gradient_norm"):
        assert rows(project / "fsdp", key) == pytest.approx(rows(project / "one", key), rel=1e-4)
    model = load_file(project / "fsdp/model.safetensors")
    close(load_file(project / "one/model.safetensors"), model, 1e-4)


def test_two_processes_stay_as_near_to_conversations(project: Path):
    """Shared out among processes, or none for one of them: the divergence of all is the same."""
    (project / "own").mkdir()
    for own in (conversations(), conversations(1)):
        save_conversations(project / "own" / CONVERSATIONS, own)
        for kind in ("one", "ddp", "fsdp"):
            run(project, kind, "fp32", f"{kind}{len(own)}")
        for kind in ("ddp", "fsdp"):
            for key in ("divergence", "loss", "gradient_norm"):
                assert rows(project / f"{kind}{len(own)}", key) == pytest.approx(
                    rows(project / f"one{len(own)}", key), rel=1e-4, abs=1e-5
                ), (kind, key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_killed_and_started_again_end_in_the_same_bits(
    project: Path, kind: str, precision: str
):
    run(project, kind, precision, "whole")
    run(project, kind, precision, "again", kill="killed")
    assert not (project / "again" / "manifest.json").exists()
    run(project, kind, precision, "again")
    whole, again = project / "whole", project / "again"
    assert json.loads((again / "manifest.json").read_text())["results"]["resumed_at_step"] == 2
    for key in ("loss", "gradient_norm", "general_bits_per_byte"):
        assert rows(again, key) == rows(whole, key), key
    close(load_file(whole / "model.safetensors"), load_file(again / "model.safetensors"), 0.0)


def test_states_in_parts_go_on_with_another_number_of_processes(project: Path):
    """A process dies while it writes; the state before it is whole, and any number reads it."""
    run(project, "one", "fp32")
    run(project, "fsdp", "fp32", "cut", kill="in save")
    assert saved_steps(project / "cut.partial") == [2]
    state = project / "cut.partial/state-00000002"
    assert len(list(state.glob("parameters-*-of-00002.safetensors"))) == 2
    for kind, processes in (("fsdp", 3), ("one", 1)):
        out = f"{kind}{processes}"
        shutil.copytree(project / "cut.partial", project / f"{out}.partial")
        run(project, kind, "fp32", out, processes=processes)
        results = json.loads((project / out / "manifest.json").read_text())["results"]
        assert results["resumed_at_step"] == 2
        assert rows(project / out, "loss") == pytest.approx(rows(project / "one", "loss"), rel=1e-5)
        model = load_file(project / out / "model.safetensors")
        close(load_file(project / "one/model.safetensors"), model, 1e-5)
    # A state of another shape is refused in a line.
    file = next(iter(state.glob("parameters-00001-*.safetensors")))
    with pytest.raises(CheckpointError, match=r"norm.weight is \[.*\] in the model, the state has"):
        refuse_shape(state, "norm.weight", (3,), stored_shapes(state)["model.norm.weight"])
    file.unlink()
    with pytest.raises(CheckpointError, match="holds not all parts of"):
        StateParameters(state)


def test_replicas_of_groups_that_share_a_model(project: Path):
    """Two by two processes (HSDP) give the losses of one; a state holds every part once."""
    run(project, "one", "fp32")
    run(project, "hsdp", "fp32", processes=4)
    for key in ("loss", "gradient_norm"):
        assert rows(project / "hsdp", key) == pytest.approx(rows(project / "one", key), rel=1e-5)
    model = load_file(project / "hsdp/model.safetensors")
    close(load_file(project / "one/model.safetensors"), model, 1e-5)
    step = saved_steps(project / "one/states")[0]
    parameters = StateParameters(project / "hsdp/states" / f"state-{step:08d}")
    whole = load_file(project / "one/states" / f"state-{step:08d}/parameters.safetensors")
    close(whole, {name: parameters.tensor(name) for name in parameters.names}, 1e-5)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"TP_SIZE": "2"}, "with tensor parallelism 2 processes compute each block together"),
        ({"CP_SIZE": "4"}, "parallelism_config_cp_size: with context parallelism"),
        ({"DP_SHARD_SIZE": "3"}, "is 3 processes, and 1 were started"),
        ({"DP_SHARD_SIZE": "0"}, "parallelism_config: dp_shard_size must be at least 1"),
    ],
)
def test_parallelism_that_training_has_no_way_for(
    sizes: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    for name, value in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}", value)
    with pytest.raises(ConfigError, match=said):
        refuse_parallelism()


def test_shared_parameters_in_bfloat16(project: Path):
    """Weights are rounded before products in both; FSDP rounds embeddings and norms as well."""
    for kind in ("one", "fsdp"):
        run(project, kind, "bf16")
    assert rows(project / "fsdp", "loss") == pytest.approx(rows(project / "one", "loss"), rel=1e-2)


def test_a_mixture_of_experts(project: Path):
    """Balancing loss and shares of tokens are those of one process."""
    (project / "model").rename(project / "dense")
    dense = str(project / "dense")
    data = {"base_model": dense, "gate_mode": "random", "dtype": "float32"}
    data |= {"experts": [{"source_model": dense, "noise_scale": 0.02}] * 3}
    run_moe(parse_section(MoeConfig, data, where="test", what="test"), project / "model")
    values = json.loads((project / "model/config.json").read_text())
    (project / "model/config.json").write_text(json.dumps(values | {"router_aux_loss_coef": 0.5}))
    for kind in ("one", "ddp", "fsdp"):
        run(project, kind, "fp32")
    for kind in ("ddp", "fsdp"):
        for key in ("loss", "gradient_norm", "least_expert_share"):
            assert rows(project / kind, key) == pytest.approx(
                rows(project / "one", key), rel=1e-4
            ), (kind, key)


CONFIGS = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_ready_configurations(path: Path, monkeypatch: pytest.MonkeyPatch):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes % config.num_machines == 0
    if not config.fsdp_config:
        return
    # As `accelerate launch` hands it over: through the environment, to the plugin.
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(args)
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


def test_a_named_precision_is_told_of_by_the_first_process_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[str] = []
    monkeypatch.setattr(precision, "choose_training_precision", asked.append)
    section = TrainSection.model_validate({"precision": "bf16"})
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert precision.settle_precision(section) is section
    assert asked == ["bf16"]


def test_what_the_first_process_says_holds_for_all(monkeypatch: pytest.MonkeyPatch):
    assert from_first("own") == "own"  # alone there is nobody to ask
    monkeypatch.setenv("WORLD_SIZE", "2")

    def received(values: list[Any], from_process: int) -> None:
        assert from_process == 0
        values[0] = "the first's"

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", received)
    assert from_first("own") == "the first's"
