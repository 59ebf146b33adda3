"""The `adapter` commands. Nothing slow is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import OutFolder, seed_option

app = typer.Typer(no_args_is_help=True, help="LoRA adapters: extracted, and merged together.")

Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Energy = Annotated[
    float | None,
    typer.Option(help="Smallest rank that keeps this share of a change, such as 0.95."),
]


@app.command("extract")
def extract(
    tuned: Annotated[str, typer.Argument(help="Tuned model: path[@revision][+adapter].")],
    base: Annotated[str, typer.Argument(help="The model it was tuned from.")],
    out: OutFolder,
    rank: Annotated[int, typer.Option(help="Rank of every layer, or the most with --energy.")] = 16,
    energy: Energy = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Only modules in whose name this is found (regex).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No modules in whose name this is found (regex).")
    ] = None,
    save_modules: Annotated[
        list[str] | None, typer.Option(help="Store this module whole, such as embed_tokens.")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Give embeddings factors too.")
    ] = False,
    seed: Annotated[int, seed_option("Seed of the randomized SVD.")] = 0,
    dtype: Dtype = "float32",
) -> None:
    """Make a LoRA of a tuned model's difference to its base."""
    from toolkit.adapter.extract import run_extract
    from toolkit.adapter.extract_plan import ExtractSettings
    from toolkit.adapter.report import show_report

    settings = ExtractSettings(
        rank=rank,
        energy=energy,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        save_modules=tuple(save_modules or ()),
        embeddings=embeddings,
        seed=seed,
        dtype=dtype,
    )
    report = run_extract(tuned, base, out, settings)
    show_report(report, out)


@app.command("merge")
def merge(
    config: Annotated[Path, typer.Argument(help="Merge configuration; its models are adapters.")],
    out: OutFolder,
    rank: Annotated[
        int | None,
        typer.Option(help="Most columns; a sum is whole by default, others get the largest rank."),
    ] = None,
    energy: Energy = None,
    seed: Annotated[int, seed_option("Seed of random methods and of the SVD.")] = 0,
    dtype: Dtype = "float32",
) -> None:
    """Merge LoRA adapters of one model with each other, into one adapter."""
    from toolkit.adapter.folder import FactorSettings
    from toolkit.adapter.merge import merge_adapters
    from toolkit.adapter.report import show_report
    from toolkit.merge.config import load_merge_config
    from toolkit.progress import say

    settings = FactorSettings(rank=rank, energy=energy, seed=seed, dtype=dtype)
    report = merge_adapters(load_merge_config(config), out, settings)
    show_report(report, out)
    if len(bases := report.settings["bases"]) > 1:
        say(f"the adapters name different models ({', '.join(bases)}): make sure they are one")
