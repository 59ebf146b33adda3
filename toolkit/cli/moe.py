"""`toolkit merge moe`. Nothing slow is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.limits import MOST_SEED


def merge_moe(
    config: Annotated[Path, typer.Argument(help="A configuration of mergekit-moe.")],
    out: Annotated[Path | None, typer.Argument(help="Folder to make.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be made, and make nothing.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Of random rows and of noise.")
    ] = 0,
) -> None:
    """Make a mixture of experts from dense models (sparse upcycling)."""
    from toolkit.checkpoint.models import Models
    from toolkit.errors import ConfigError
    from toolkit.merge.moe.config import load_moe_config
    from toolkit.merge.moe.plan import plan_moe
    from toolkit.merge.moe.run import describe_moe, run_moe
    from toolkit.progress import say

    wanted = load_moe_config(config)
    if plan:
        print(describe_moe(wanted, plan_moe(wanted, Models())))
        return
    if out is None:
        raise ConfigError("OUT: is missing; give a folder to make, or --plan.")
    made = run_moe(wanted, out, seed=seed)
    say(describe_moe(wanted, made))
    say(f"written to {out}")
