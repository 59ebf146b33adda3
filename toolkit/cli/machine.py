"""`toolkit machine`: what this machine computes well, in a form to paste into a bug report."""

from __future__ import annotations

from typing import Annotated

import typer


def machine(
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew, whatever was kept from before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a program.")] = False,
) -> None:
    """Processor, memory, GPUs, the types that are fast here, versions and optional parts."""
    import json
    from dataclasses import asdict

    from toolkit.cli.machine_report import describe_machine, machine_text
    from toolkit.machine import measure_again

    if again:
        measure_again()
    report = describe_machine()
    print(json.dumps(asdict(report), indent=2) if as_json else machine_text(report))
