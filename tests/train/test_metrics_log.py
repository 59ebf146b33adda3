"""The metrics log on resume: later rows go, and a long log is not read for it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from toolkit.train import metrics
from toolkit.train.metrics import MetricsLog


def rows(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("piece", [7, 64, 1 << 16])
def test_rows_after_the_resumed_step_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
):
    monkeypatch.setattr(metrics, "_PIECE_BYTES", piece)
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(step=0, general_bits_per_byte=1.5)
        for step in range(1, 6):
            log.write(step=step, loss=float(10 - step))
        log.write(step=3, general_bits_per_byte=1.6)
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # cut short by a kill
    with MetricsLog(path, keep_steps=5) as log:
        assert rows(path) == [0, 1, 2, 3, 4, 5, 3]
        assert (log.first_loss, log.last_loss) == (9.0, 5.0)
        log.write(step=6, loss=4.0)
        assert log.last_loss == 4.0
    with MetricsLog(path, keep_steps=2) as log:
        assert rows(path) == [0, 1, 2]
        assert (log.first_loss, log.last_loss) == (9.0, 8.0)
    with MetricsLog(path, keep_steps=0) as log:
        assert rows(path) == [0]
        assert (log.first_loss, log.last_loss) == (None, None)


def test_a_long_log_is_taken_up_at_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    row = '{{"step": {0}, "loss": {0}, "learning_rate": 0.0001, "gradient_norm": 0.5}}\n'
    path.write_text("".join(row.format(step) for step in range(1, 300_001)))
    began = time.perf_counter()
    with MetricsLog(path, keep_steps=299_990) as log:
        assert time.perf_counter() - began < 0.1
        assert (log.first_loss, log.last_loss) == (1, 299_990)
