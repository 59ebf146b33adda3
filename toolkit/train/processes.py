"""Several processes of one run: the first writes, the others take part."""

from __future__ import annotations

import os


def num_processes() -> int:
    """How many `accelerate launch` or torchrun started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def start_processes() -> None:
    """Let the processes find each other; the first may then work for long while they wait."""
    from datetime import timedelta

    from accelerate import PartialState

    PartialState(timeout=timedelta(hours=24))


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if num_processes() == 1:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
