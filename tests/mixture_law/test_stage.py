"""Small runs for the law of mixture: made once, with the shares that were asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.data.blocks import Blocks
from toolkit.errors import ConfigError
from toolkit.mixture_law.stage import (
    MixtureRequest,
    check_fit,
    load_scores,
    parse_shares,
    report_mixture,
    run_mixtures,
)

WANTED = MixtureRequest((0.25, 0.5, 0.75, 1.0, 0.6), 1_024)


@pytest.fixture
def project(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, make_model)


def test_the_runs_are_made_once_and_their_law_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    run = open_run(project, {})
    files = run_mixtures(run, WANTED)
    root = project / "runs/tiny/mixture"
    assert len(files) == 6
    blocks = Blocks.open(root / "data")
    for stage, share in zip(blocks.stages, (0.25, 0.5, 0.6, 0.75, 1.0), strict=True):
        counts = {part.source: part.count for part in stage.shares}
        assert counts["docs"] / sum(counts.values()) == pytest.approx(share, abs=0.07)
        assert sum(counts.values()) == pytest.approx(16, abs=2)

    times = [file.stat().st_mtime_ns for file in files]
    assert [file.stat().st_mtime_ns for file in run_mixtures(run, WANTED)] == times
    assert not list(root.glob("share-*/state-*"))  # nothing heavy is kept
    assert not list(root.glob("share-*/*.safetensors"))

    found = load_scores(files)
    assert found[0].share is None
    assert found[0].domain.loss > found[-1].domain.loss  # it learned
    capsys.readouterr()
    results = report_mixture(found, (0.6,), 5.0, root, "tiny")
    shown = capsys.readouterr().out
    assert "0.6 held out" in shown
    assert {check.share for check in results.held_out} == {0.6}
    assert json.loads((root / "mixture.json").read_text()) == json.loads(
        json.dumps(results.as_json())
    )
    assert (root / "mixture.svg").read_text().startswith("<svg")

    with pytest.raises(ConfigError, match=r"there is no run of share 0\.9"):
        report_mixture(found, (0.9,), 5.0, None, "tiny")
    with pytest.raises(ConfigError, match="share 1 lies outside what was measured"):
        report_mixture(found, (1.0,), 5.0, None, "tiny")
    with pytest.raises(ConfigError, match="met by no measured share"):
        report_mixture(found, (), -100.0, None, "tiny")


def test_another_share_adds_one_run(project: Path):
    run = open_run(project, {})
    first = run_mixtures(run, MixtureRequest((0.5, 1.0), 512))
    times = {file: file.stat().st_mtime_ns for file in first}
    second = run_mixtures(run, MixtureRequest((0.5, 0.75, 1.0), 512))
    assert len(second) == len(first) + 1
    assert {file: file.stat().st_mtime_ns for file in first} == times


def test_runs_of_one_share_see_other_blocks(project: Path):
    run = open_run(project, {})
    files = run_mixtures(run, MixtureRequest((0.5,), 512, repeats=2))
    assert [file.parent.name for file in files] == ["general", "share-0.5", "share-0.5-2"]
    first, second = load_scores(files)[1:]
    assert first.share == second.share == 0.5
    assert first.domain.loss != second.domain.loss


@pytest.mark.parametrize(
    ("wanted", "held_out", "tolerance", "message"),
    [
        (
            MixtureRequest((0.5, 0.7, 1.0), 512),
            (),
            0.1,
            "--shares: 3 runs of 3 shares are left to fit",
        ),
        (
            MixtureRequest((0.5, 0.7, 0.8, 1.0), 512),
            (0.7,),
            0.1,
            "3 runs of 3 shares are left to fit",
        ),
        (MixtureRequest((0.5, 1.0), 512, 4), (), 0.1, "8 runs of 2 shares are left to fit"),
        (
            MixtureRequest((0.4, 0.5, 0.7, 0.8, 1.0), 512),
            (0.4,),
            0.1,
            "--hold-out: 0.4 lies outside",
        ),
        (
            MixtureRequest((0.4, 0.5, 0.7, 0.8, 1.0), 512),
            (),
            math.nan,
            "--tolerance: must be a finite",
        ),
    ],
)
def test_what_no_law_can_come_of_is_refused_before_a_run(
    wanted: MixtureRequest, held_out: tuple[float, ...], tolerance: float, message: str
):
    with pytest.raises(ConfigError, match=message):
        check_fit(wanted, held_out, tolerance)


def test_three_shares_twice_are_enough():
    check_fit(MixtureRequest((0.5, 0.7, 1.0), 512, repeats=2), (), 0.1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (MixtureRequest((0.5, 1.5), 1_024), "--shares: 1.5 is no share"),
        (MixtureRequest((-0.1,), 1_024), "--shares: -0.1 is no share"),
        (MixtureRequest((0.5, 0.5), 1_024), "--shares: 0.5 stands there twice"),
        (MixtureRequest((0.5,), 1_024, 0), "--repeats: must be at least 1"),
        (MixtureRequest((0.5,), 100), "--tokens: 100 are fewer than 4 steps of 128"),
    ],
)
def test_bad_flags(project: Path, wanted: MixtureRequest, message: str):
    with pytest.raises(ConfigError, match=message):
        run_mixtures(open_run(project, {}), wanted)
    assert not (project / "runs").exists()


def test_shares_are_numbers():
    with pytest.raises(ConfigError, match="'half' is no number"):
        parse_shares("0.5,half")
