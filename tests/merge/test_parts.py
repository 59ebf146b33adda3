"""A merge divided among processes: the bytes of one process, whoever is killed meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.parts import MergePart, parse_part, run_merge_part
from toolkit.merge.to_disk import run_merge

ROOT = Path(__file__).parents[2]
SHARD_BYTES = 8_000  # several files of the tiny models


@pytest.fixture
def config(two_models: tuple[Path, Path]) -> MergeConfig:
    return parse_merge_config(configuration(*two_models), where="test")


def configuration(base: Path, tuned: Path) -> dict[str, Any]:
    return {
        "merge_method": "dare_ties",
        "base_model": str(base),
        "models": [{"model": str(tuned), "parameters": {"weight": 0.7, "density": 0.5}}],
        "dtype": "bfloat16",
    }


def run_part(config: MergeConfig, out: Path, part: str, **options: Any) -> Any:
    return run_merge_part(
        config, out, parse_part(part), **{"seed": 3, "shard_bytes": SHARD_BYTES, **options}
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(config: MergeConfig, tmp_path: Path) -> dict[str, bytes]:
    run_merge(config, tmp_path / "whole", seed=3, shard_bytes=SHARD_BYTES)
    files = contents(tmp_path / "whole")
    assert sum(name.endswith(".safetensors") for name in files) > 3
    return files


@pytest.mark.parametrize("count", [1, 3, 50])
def test_parts_write_the_bytes_of_one_process(
    config: MergeConfig, whole: dict[str, bytes], tmp_path: Path, count: int
):
    out = tmp_path / "out"
    outcomes = [run_part(config, out, f"{number}/{count}") for number in range(count, 0, -1)]
    assert [outcome.is_complete for outcome in outcomes] == [False] * (count - 1) + [True]
    assert contents(out) == whole
    assert not (tmp_path / ".out.parts").exists()
    late = run_part(config, out, f"1/{count}")  # as of a queue that starts it when all is done
    assert (late.written, late.is_complete) == ((), True)
    with pytest.raises(MergeError, match="exists and is not empty"):
        run_part(config, out, f"1/{count}", seed=4)


def test_what_is_missing_is_named(config: MergeConfig, tmp_path: Path):
    run_part(config, tmp_path / "out", "1/4")
    outcome = run_part(config, tmp_path / "out", "3/4")
    assert set(outcome.missing.values()) == {"2/4", "4/4"}
    assert all(file.startswith("model-0") for file in outcome.missing)
    assert not (tmp_path / "out").exists()


def test_one_file_is_written_by_the_first_part(config: MergeConfig, tmp_path: Path):
    run_merge(config, tmp_path / "whole", seed=3)
    second = run_part(config, tmp_path / "out", "2/2", shard_bytes=10**9)
    assert second.written == ()
    assert second.missing == {"model.safetensors": "1/2"}
    assert run_part(config, tmp_path / "out", "1/2", shard_bytes=10**9).is_complete
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_numbers_of_parts_go_on(config: MergeConfig, whole: dict[str, bytes], tmp_path: Path):
    run_part(config, tmp_path / "out", "2/3")
    assert run_part(config, tmp_path / "out", "1/1").is_complete
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 4}, "seed"), ({"shard_bytes": 5_000}, "files")],
)
def test_parts_of_another_merge_are_refused(
    config: MergeConfig, tmp_path: Path, changed: dict[str, int], named: str
):
    run_part(config, tmp_path / "out", "1/2")
    with pytest.raises(MergeError, match=f"of another merge \\(differing: {named}\\)"):
        run_part(config, tmp_path / "out", "2/2", **changed)


def test_models_that_changed_meanwhile_are_refused(
    config: MergeConfig, two_models: tuple[Path, Path], tmp_path: Path
):
    run_part(config, tmp_path / "out", "1/2")
    path = two_models[1] / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(MergeError, match="differing: models"):
        run_part(config, tmp_path / "out", "2/2")


def test_a_killed_part_goes_on(
    two_models: tuple[Path, Path], whole: dict[str, bytes], tmp_path: Path
):
    """Killed while it writes its second file: the first stays, the half one is made anew."""
    program = f"""
import os, signal
from toolkit.merge import parts
from toolkit.merge.config import parse_merge_config
config = parse_merge_config({configuration(*two_models)!r}, where="test")
settle, merge = parts._settle_file, parts.merge_tensors
settled = []
def settle_and_count(path, name):
    settle(path, name)
    settled.append(name)
def die(*arguments, **options):
    if settled:
        os.kill(os.getpid(), signal.SIGKILL)
    merge(*arguments, **options)
parts._settle_file, parts.merge_tensors = settle_and_count, die
parts.run_merge_part(config, parts.Path({str(tmp_path / "out")!r}), parts.MergePart(1, 1),
    seed=3, shard_bytes={SHARD_BYTES})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    work = tmp_path / ".out.parts"
    (first,) = work.glob("*.safetensors")
    written = first.stat().st_mtime_ns
    assert list(work.glob("writing-*/*"))
    config = parse_merge_config(configuration(*two_models), where="test")
    outcome = run_part(config, tmp_path / "out", "1/1")
    assert outcome.is_complete
    assert first.name not in outcome.written
    assert contents(tmp_path / "out") == whole
    assert (tmp_path / "out" / first.name).stat().st_mtime_ns == written


def test_parts_that_run_together(config: MergeConfig, whole: dict[str, bytes], tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        parts = [f"{number}/4" for number in (1, 2, 3, 4)]
        outcomes = list(pool.map(lambda part: run_part(config, tmp_path / "out", part), parts))
    assert any(outcome.is_complete for outcome in outcomes)
    assert contents(tmp_path / "out") == whole


def test_the_command_divides_a_merge(
    two_models: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(configuration(*two_models)))
    command = [sys.executable, "-m", "toolkit", "merge", "run", str(path), str(tmp_path / "out")]
    for number in (1, 2):
        subprocess.run([*command, "--part", f"{number}/2"], cwd=ROOT, check=True)
    said = capfd.readouterr().out
    assert "part 1/2: 1 files written\nall files are there" in said
    assert "part 2/2: 0 files written\nall files are there" in said


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_parts_that_are_none_are_refused(text: str):
    with pytest.raises(ConfigError, match="such as 3/8"):
        parse_part(text)


def test_a_part_takes_every_so_many_th_file():
    names = [str(number) for number in range(7)]
    shares = [MergePart(number, 3).files(names) for number in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == names
    assert [MergePart(1, 3).part_of(index) for index in range(4)] == ["1/3", "2/3", "3/3", "1/3"]
