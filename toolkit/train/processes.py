"""Several processes of one run: the first writes, the others take part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from toolkit.errors import ConfigError, ToolkitError
from toolkit.library_errors import first_line

Shared = TypeVar("Shared")


def num_processes() -> int:
    """How many `accelerate launch` or torchrun started; 1 without them."""
    # From the environment: it is asked before there is a group of processes, or torch.
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def start_processes() -> None:
    """Let the processes find each other; the first may then work for long while they wait."""
    import atexit
    from datetime import timedelta

    from accelerate import PartialState

    processes_found = PartialState(cpu=on_cpu(), timeout=timedelta(hours=24)).num_processes
    if processes_found != num_processes():
        raise ToolkitError(
            f"WORLD_SIZE is {num_processes()}, but {processes_found} processes found each other; "
            "start them with `accelerate launch` or torchrun."
        )
    atexit.register(_leave_group)


def _leave_group() -> None:
    """End gloo's threads before Python ends, which may otherwise abort the process: a launcher then
    takes a run that is complete for one that failed. NCCL is left alone, as leaving it waits for
    what other processes have not answered."""
    from torch import distributed

    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def on_cpu() -> bool:
    """Whether there is no GPU or the like: accelerate starts no group of processes on CPUs unless
    told so, and each would train for itself."""
    import torch

    return not torch.accelerator.is_available()


def add_up_in_float32(accelerator: Any) -> None:
    """Under FSDP2 with bfloat16: parameters travel in bfloat16, but gradients are summed over the
    processes, and the loss is returned, in float32. accelerate would round both."""
    if not accelerator.is_fsdp2 or accelerator.mixed_precision != "bf16":
        return
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )


@contextlib.contextmanager
def exchanging(accelerator: Any, module: Any, *, waits: bool) -> Iterator[None]:
    """A backward pass whose gradients are exchanged, or wait for the step's last pass.

    Where processes share out the parameters (FSDP2), each keeps its part of the sum alone: the
    gradients of every pass are summed within the group that shares them, and only replicas of such
    groups wait. To wait with all would hold whole gradients of the model in every process, which is
    the memory that sharing them out is to spare.
    """
    if not waits:
        yield
        return
    if not accelerator.is_fsdp2:
        with accelerator.no_sync(module):
            yield
        return
    module.set_requires_all_reduce(False)
    try:
        yield
    finally:
        module.set_requires_all_reduce(True)


def refuse_parallelism() -> None:
    """Refuse a launcher's `parallelism_config` that training has no way for, before any work.

    Replicas of groups that share a model out (HSDP) are taken; what gives several processes the
    same block is not: each would train on another one, and nothing would say so.

    Raises:
        ConfigError: it asks for tensor, context or sequence parallelism, or for another number of
            processes than were started.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return
    from accelerate import ParallelismConfig

    try:
        # Made without arguments it reads the launcher's variables, as `Accelerator` does later.
        sizes = ParallelismConfig()
    except ValueError as error:
        raise ConfigError(f"parallelism_config: {first_line(error)}") from error
    for name, words in (("tp", "tensor"), ("cp", "context"), ("sp", "sequence")):
        size = getattr(sizes, f"{name}_size")
        if size > 1:
            raise ConfigError(
                f"parallelism_config_{name}_size: with {words} parallelism {size} processes "
                "compute each block together, and here each process trains on blocks of its own; "
                "set it to 1 and raise parallelism_config_dp_shard_size."
            )
    if sizes.total_size != num_processes():
        raise ConfigError(
            f"parallelism_config: dp_replicate_size {sizes.dp_replicate_size} times dp_shard_size "
            f"{sizes.dp_shard_size} is {sizes.total_size} processes, and {num_processes()} were "
            "started; make the two agree."
        )


def from_first(value: Shared) -> Shared:
    """The first process's value in every process.

    What decides the steps that follow (a measurement, a score, what a disk shows) may fall out
    differently in each, and processes that went different ways would wait for each other forever.
    """
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if num_processes() == 1:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
