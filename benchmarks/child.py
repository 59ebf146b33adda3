"""One side of a benchmark in a process of its own, so that peaks and imports are its alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "FIGURES "
"""A child prints its figures as JSON behind this word; all else it prints is passed over."""


def figures_of(side: str, command: Sequence[str], pause: float) -> dict[str, Any]:
    """Figures that a Python program prints; its output where it prints none.

    Args:
        side: for the message.
        command: script and arguments.
        pause: seconds to wait afterwards, so that the next child begins on a calm machine.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment
    )
    found = [text for text in done.stdout.splitlines() if text.startswith(MARK)]
    if not found:
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    time.sleep(pause)
    return dict(json.loads(found[0].removeprefix(MARK)))
