"""What a merge stage found, read back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.stage import load_json


def read_results(folder: Path) -> dict[str, Any]:
    """Every figure of a merge stage, as in its `report.json`.

    Args:
        folder: of a complete merge stage, such as `runs/finance/merge`.

    Returns:
        Among others `chosen`, `any_merge` (False where the general model was kept), `gain_kept`,
        `models` (figures of the general model, the specialist and the merge on the test sets, each
        with `estimate`, `low` and `high`) and `candidates`.

    Raises:
        ToolkitError: there is none, or it cannot be read.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise ToolkitError(
            f"{folder}: holds no report.json; give the folder of a complete merge stage, such as "
            "runs/finance/merge."
        )
    results: dict[str, Any] = load_json(path)
    return results
