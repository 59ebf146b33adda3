"""The Slurm job with stand-ins for Slurm's programs: what it starts, and that it queues itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.guide import BASH, ROOT, parse_accelerate, parse_toolkit, toolkit_words

SCRIPT = ROOT / "recipes" / "slurm" / "cpt.sbatch"
SAYS = '#!/bin/bash\necho "$(basename "$0") $*" >> calls\n'


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A folder as a project has it, and the environment of a job on the second of four nodes."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    programs = {
        "scontrol": SAYS + 'if [ "$1" = show ]; then printf "node-0\\nnode-1\\n"; fi\n',
        "srun": SAYS + 'SLURM_NODEID=1 "$@"\n',
        "accelerate": SAYS + "if [ -e slow ]; then touch started; sleep 30; fi\n",
        "toolkit": SAYS,
    }
    for name, text in programs.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("ACTIVATED=1\n")
    return {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node-[0-3]",
        "SLURM_NNODES": "4",
        "SLURM_GPUS_ON_NODE": "8",
    }


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_what_it_starts(cluster: dict[str, str], tmp_path: Path):
    subprocess.run([BASH, str(SCRIPT), "finance"], cwd=tmp_path, env=cluster, check=True)
    made, launched = (
        next(c for c in calls(tmp_path) if c.startswith(name)) for name in ("toolkit", "accelerate")
    )
    for command in (made, launched):
        words = toolkit_words(command)
        assert words is not None
        assert words[-1] == "finance"
        parse_toolkit(words)
    parse_accelerate(launched.split())
    for words in ("--num_machines 4", "--num_processes 32", "--machine_rank 1"):
        assert words in launched
    assert "--main_process_ip node-0 " in launched
    assert not any("requeue" in call for call in calls(tmp_path))


def test_it_is_queued_again_before_its_time_is_up(cluster: dict[str, str], tmp_path: Path):
    (tmp_path / "slow").touch()
    job = subprocess.Popen(
        [BASH, str(SCRIPT), "finance"], cwd=tmp_path, env=cluster, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert job.poll() is None, "the job ended before it trained"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        job.wait(timeout=60)
        assert "scontrol requeue 77" in calls(tmp_path)
    finally:
        os.killpg(job.pid, signal.SIGKILL)


def test_it_wants_a_recipe(cluster: dict[str, str], tmp_path: Path):
    done = subprocess.run(
        [BASH, str(SCRIPT)], cwd=tmp_path, env=cluster, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "usage: sbatch recipes/slurm/cpt.sbatch RECIPE" in done.stderr
