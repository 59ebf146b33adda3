"""The curve of a run, read from its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import ToolkitError
from toolkit.train.metrics import CurvePoint, curve_line, read_curve

LOG = """{"step": 0, "domain_bits_per_byte": 2.0, "general_bits_per_byte": 1.0}
{"step": 1, "loss": 5.0, "learning_rate": 0.1, "tokens": 30, "memory_bytes": 7}
{"step": 2, "loss": null, "learning_rate": 0.2, "tokens": 10, "skipped": true}
{"step": 2, "domain_bits_per_byte": 1.5, "general_bits_per_byte": 1.1}
{"step": 2, "replay_share": 0.3}
{"step": 3, "lo"""


def test_rows_of_one_step_are_one_point(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LOG)
    assert read_curve(path) == [
        CurvePoint(0, 0, None, None, 2.0, 1.0),
        CurvePoint(1, 30, 5.0, 0.1),
        CurvePoint(2, 40, None, 0.2, 1.5, 1.1),
    ]


def test_a_run_that_was_not_trained(tmp_path: Path):
    with pytest.raises(ToolkitError, match="train first"):
        read_curve(tmp_path / "metrics.jsonl")


def test_a_line_of_text():
    assert curve_line([1.0, 1.0, 1.0]) == "▁▁▁"
    assert curve_line([8.0, 1.0]) == "█▁"
    assert curve_line([]) == ""
    assert len(curve_line([float(n) for n in range(1000)])) == 60
