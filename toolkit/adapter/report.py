"""What an adapter keeps of the change it stands for, layer by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.stage import write_json

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class LayerRow:
    """One tensor that is stored by factors.

    Attributes:
        name: of the model's tensor.
        shape: of it.
        rank: of the factors.
        norm: Frobenius norm of its change.
        error: Frobenius norm of what the factors miss of that, relative to `norm`.
        energy_kept: share of the squared norm that they keep.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    error: float
    energy_kept: float

    @classmethod
    def of(cls, name: str, shape: Sequence[int], rank: int, norm: float, error: float) -> LayerRow:
        relative = error / norm if norm else 0.0
        return cls(name, tuple(shape), rank, norm, relative, max(0.0, 1.0 - relative**2))


@dataclass(frozen=True)
class OtherRow:
    """One tensor that differs and is not stored by factors.

    Attributes:
        name: of the model's tensor.
        shape: of it.
        norm: Frobenius norm of its change.
        relative_change: that, relative to the base's norm; None where that is zero.
        why: what it is, or what was asked.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    relative_change: float | None
    why: str


@dataclass
class AdapterReport:
    """All tensors of an adapter.

    Attributes:
        settings: what was asked.
        layers: stored by factors.
        saved: stored whole.
        left_out: differ, and are not in the adapter.
    """

    settings: Mapping[str, Any]
    layers: list[LayerRow] = field(default_factory=list)
    saved: list[OtherRow] = field(default_factory=list)
    left_out: list[OtherRow] = field(default_factory=list)

    def sort(self) -> None:
        """Put layer 2 before layer 10."""
        self.layers.sort(key=lambda row: by_layer(row.name))
        for other_rows in (self.saved, self.left_out):
            other_rows.sort(key=lambda row: by_layer(row.name))

    @property
    def error(self) -> float:
        """Relative error over all tensors stored by factors."""
        squared_norm = math.fsum(row.norm**2 for row in self.layers)
        squared_error = math.fsum((row.norm * row.error) ** 2 for row in self.layers)
        return math.sqrt(squared_error / squared_norm) if squared_norm else 0.0

    @property
    def energy_kept(self) -> float:
        """Share of the squared norm of the whole change that the adapter keeps, of what it leaves
        out too."""
        squared_norm = math.fsum(row.norm**2 for row in self.layers)
        squared_norm += math.fsum(row.norm**2 for row in (*self.saved, *self.left_out))
        kept_energy = math.fsum(row.energy_kept * row.norm**2 for row in self.layers)
        kept_energy += math.fsum(row.norm**2 for row in self.saved)
        return kept_energy / squared_norm if squared_norm else 1.0

    def write(self, folder: Path) -> None:
        """Write report.json."""
        report_values = {
            **self.settings,
            "relative_error": self.error,
            "energy_kept": self.energy_kept,
            "layers": [asdict(row) for row in self.layers],
            "saved": [asdict(row) for row in self.saved],
            "left_out": [asdict(row) for row in self.left_out],
        }
        write_json(folder / REPORT_FILE, report_values)


def by_layer(name: str) -> list[tuple[bool, int, str]]:
    """A sorting key by which numbers in names count as numbers, and come after words.

    >>> sorted(["h.10.a", "h.2.b", "head"], key=by_layer)
    ['h.2.b', 'h.10.a', 'head']
    """
    name_parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name_parts]


def show_report(report: AdapterReport, out: Path) -> None:
    """Print the table of layers, what is not among them, and the sums."""
    from rich.table import Table

    from toolkit.progress import console, say

    layer_table = Table(title="what the factors keep of each change")
    layer_table.add_column("tensor", no_wrap=True)
    for column_title in ("shape", "rank", "relative error", "energy kept"):
        layer_table.add_column(column_title, justify="right", no_wrap=True)
    for row in report.layers:
        shape_text = " × ".join(map(str, row.shape))
        layer_table.add_row(
            row.name, shape_text, str(row.rank), f"{row.error:.3g}", f"{_percent(row.energy_kept)}"
        )
    # No narrower than its figures, whatever the terminal says: a cut number cannot be read.
    longest_name = max((len(row.name) for row in report.layers), default=0)
    layer_table.width = max(console.width, longest_name + 56)
    console.print(layer_table, crop=False, soft_wrap=True)
    for other_rows, words in ((report.saved, "stored whole"), (report.left_out, "left out")):
        for reason in dict.fromkeys(row.why for row in other_rows):
            named = [row for row in other_rows if row.why == reason]
            change = max(row.relative_change or 0.0 for row in named)
            first = named[0].name if len(named) == 1 else f"{len(named)} such as {named[0].name}"
            say(f"{words} ({reason}): {first}; changed by up to {change:.2g} of the base's norm")
    ranks = sorted({row.rank for row in report.layers})
    rank_text = f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} to {ranks[-1]}"
    say(
        f"{len(report.layers)} tensors, {rank_text}, relative error {report.error:.3g}; of the "
        f"whole change {_percent(report.energy_kept)} is kept. Written to {out}."
    )


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{math.floor(share * 1000 + 1e-6) / 10:.1f} %"
