"""Studies: workers, the queue, dead workers, other recipes, lost storages."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from optuna.trial import TrialState

from tests.helpers.fakes import FakeBench, made_up_set, plan
from toolkit.errors import ConfigError, EvaluationError, ToolkitError
from toolkit.search import worker
from toolkit.search.config import RaceSection
from toolkit.search.queue import SearchPlan
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import MergeSpace, alphas_by_name, read_space, sweep_point
from toolkit.search.storage import JournalLock, spoken
from toolkit.search.study import (
    DamagedScoresError,
    Study,
    is_surely_dead,
    pack,
    unpack,
    worker_identity,
)
from toolkit.search.worker import Worker, plain_points

IDENTITY = {"search": {"num_trials": 10}, "seed": 7}


def open_study(place: Any, wanted: SearchPlan, *, begin: bool = True, **changes: Any) -> Study:
    identity = changes.pop("identity", IDENTITY)
    study = Study(place, "tiny", identity, wanted.sampler(), begin=begin, **changes)
    if begin:
        study.fill(wanted.queue())
    return study


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "scores.jsonl"


def summary(place: Any, bench: FakeBench | None = None, **changes: Any) -> list[Any]:
    wanted = plan(**changes)
    outcomes = run_search(wanted, place, "tiny", IDENTITY, bench or FakeBench())
    return [
        (o.candidate.name, o.status, o.tokens, {n: v.tolist() for n, v in o.losses.items()})
        for o in outcomes
    ]


def test_numbers_keep_every_bit():
    values = np.array([0.1, 1e-300, -3.0])
    assert (unpack(pack(values)) == values).all()


def test_endpoints_and_sweep_come_first_and_the_rest_is_found(journal: Path):
    found = summary(journal)
    names = [row[0] for row in found]
    assert names[:5] == [
        "general",
        "specialist",
        *(f"linear alpha={a}" for a in ("0.3", "0.6", "0.9")),  # from the safest upwards
    ]
    assert len(names) == 10
    assert {row[1] for row in found} == {"complete", "dropped"}
    best = min((row for row in found if row[1] == "complete"), key=lambda r: sum(r[3]["filings"]))
    assert abs(float(best[0].split("=")[1]) - 0.8) < 0.1
    # Dropped early means fewer tokens, and never the endpoints.
    whole = 2 * 40 * 10
    assert all((row[2] < whole) == (row[1] == "dropped") for row in found)


def test_without_a_race_all_is_scored(journal: Path):
    found = summary(journal, race=RaceSection(enabled=False))
    assert {row[1] for row in found} == {"complete"}


def test_the_same_search_twice_and_a_second_call_scores_nothing(tmp_path: Path):
    first = summary(tmp_path / "a")
    assert summary(tmp_path / "b") == first
    bench = FakeBench()
    assert summary(tmp_path / "a", bench) == first
    assert bench.merged == []


def test_the_grid_is_tried_whole_or_refused(tmp_path: Path):
    names = [row[0] for row in summary(tmp_path / "a", sampler="grid", grid_points=3)]
    assert [name for name in names if name not in {"general", "specialist"}] == [
        *(f"linear alpha={a}" for a in ("0.3", "0.6", "0.9", "0.1", "0.65", "1.2"))
    ]
    with pytest.raises(ConfigError, match="make 8 candidates, more than 7"):
        summary(tmp_path / "b", sampler="grid", grid_points=3, num_trials=7)


def test_a_candidate_whose_loss_is_not_finite_fails_and_the_study_goes_on(journal: Path):
    good = made_up_set("filings", "domain")

    def score(model: Any, rows: Any) -> list[float]:
        if float(model) == 0.6:
            raise EvaluationError("filings/0: the loss is nan; the model's weights are damaged.")
        return good.score(model, rows)

    sets = [
        type(good)(**{**vars(good), "score": score}),
        made_up_set("news", "general", seed=1),
    ]
    found = run_search(plan(sets), journal, "tiny", IDENTITY, FakeBench())
    failed = [o for o in found if o.status == "failed"]
    assert [o.candidate.name for o in failed] == ["linear alpha=0.6"]
    assert "the loss is nan" in failed[0].error
    assert len(found) == 10


def test_the_sampler_learns_from_the_sweep_and_from_what_failed(journal: Path):
    """Optuna notes parameters of those alone that it proposed; the sweep was proposed again."""
    wanted = plan()
    run_search(wanted, journal, "tiny", IDENTITY, FakeBench())
    known = wanted.learn(open_study(journal, wanted).trials())["linear"]
    alphas = [float(item.values["alpha"]) for item in known]
    assert alphas[:3] == [0.3, 0.6, 0.9]
    assert all(item.figures is not None for item in known)
    near = [abs(one - other) for n, one in enumerate(alphas) for other in alphas[:n]]
    assert min(near) > 0.05  # of a range from 0.1 to 1.2


def test_a_study_of_another_recipe_says_which_key_differs(journal: Path):
    open_study(journal, plan())
    other = {"search": {"num_trials": 12}, "seed": 7}
    with pytest.raises(ConfigError, match=r"search\.num_trials: 10 -> 12") as caught:
        open_study(journal, plan(), identity=other)
    assert "'tiny'" in str(caught.value)


def test_a_worker_does_not_begin_a_study(journal: Path):
    with pytest.raises(ToolkitError, match="there is no study"):
        open_study(journal, plan(), begin=False)
    assert not journal.exists()


def test_a_line_cut_short_by_a_kill_is_dropped(journal: Path):
    open_study(journal, plan())
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "trial_id')
    study = open_study(journal, plan())
    assert len(study.trials()) == 10
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_dead_and_living_workers():
    assert not is_surely_dead(worker_identity())
    host, space, _, began = worker_identity().split("|")
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    assert is_surely_dead(f"{host}|{space}|{child.pid}|{began}")
    assert is_surely_dead(f"{host}|{space}|{os.getpid()}|1.00")  # a number given again
    assert not is_surely_dead(f"elsewhere|{space}|{child.pid}|{began}")


def test_a_clock_that_is_set_kills_nobody(monkeypatch: pytest.MonkeyPatch):
    me, began = worker_identity(), psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: began + 1.0)
    assert not is_surely_dead(me)


def other_meaning() -> MergeSpace:
    """A user's `linear.yaml`, whose alpha is the share of the general model."""
    alpha = {"search": {"name": "alpha", "grid": [0.9]}}
    weights = {"general": alpha, "specialist": {"search": "1 - alpha"}}
    models = [{"model": name, "parameters": {"weight": w}} for name, w in weights.items()]
    return read_space("linear", {"merge_method": "linear", "models": models}, "own/linear.yaml")


def test_a_file_s_merge_is_not_taken_for_the_point_of_its_name(journal: Path):
    wanted = plan(spaces=[other_meaning()], sampler="grid")
    outcomes = run_search(wanted, journal, "tiny", IDENTITY, FakeBench())
    assert [outcome.candidate.name for outcome in outcomes][-1] == "linear alpha=0.9 of linear.yaml"
    alphas = alphas_by_name(outcome.candidate for outcome in outcomes)
    assert "linear alpha=0.9 of linear.yaml" not in alphas
    point = next(one for one in outcomes if one.candidate.key == sweep_point(0.9).key)
    points = plain_points([replace(one, status="complete") for one in outcomes], wanted.fixed)
    assert set(points) == {0.0, 0.3, 0.6, 0.9, 1.0}
    assert points[0.9] is point.losses


def test_what_another_worker_holds_of_the_general_model_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker, "_POLL_SECONDS", 0.05)
    wanted = plan()
    summary(tmp_path / "alone")
    alone = open_study(tmp_path / "alone", wanted, begin=False).trials()
    study = open_study(tmp_path / "shared", wanted)
    general = study.claim()
    assert general is not None
    study.note(general, worker="elsewhere|x|1|1.00")
    bench = FakeBench()
    other = open_study(tmp_path / "shared", wanted, begin=False, stale_seconds=0.3)
    Worker(wanted, other, bench).work()
    # The specialist, then the general model of the silent worker, then the specialist again.
    assert bench.merged[:3] == [1.0, 0.0, 1.0]
    for trial, expected in zip(other.trials()[:5], alone[:5], strict=True):
        assert trial.values == expected.values
        kept, wanted_values = (one.user_attrs["outcome"] for one in (trial, expected))
        assert kept["beyond"] == wanted_values["beyond"]


def test_damaged_scores_of_a_study_are_named(journal: Path):
    wanted = plan()
    study = open_study(journal, wanted)
    trial = study.claim()
    assert trial is not None
    study.note(trial, losses={"filings": "00000000:AAAA"})
    study.put_back(trial)
    with pytest.raises(
        DamagedScoresError, match=r"scores\.jsonl: candidate 0: .*search\.study_name"
    ):
        Worker(wanted, study, FakeBench()).work()


def test_helpers_are_ended_where_one_cannot_be_started(journal: Path):
    begun: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def remembered(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        begun.append(start(command, **settings))
        return begun[-1]

    commands = [["sleep", "60"], ["/no/such/program"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", remembered)
        patch.setattr(start, "wait", lambda process, timeout=None: ended(process, timeout))
        with pytest.raises(FileNotFoundError):
            run_search(plan(), journal, "tiny", IDENTITY, FakeBench(), helpers=commands)
    assert begun[0].poll() is not None


def ended(process: subprocess.Popen[bytes], timeout: float | None) -> None:
    """At once, in place of ten seconds of patience."""
    if timeout is not None:
        raise subprocess.TimeoutExpired("", timeout)
    while process.poll() is None:
        time.sleep(0.01)


def test_a_silent_worker_of_another_machine_loses_its_candidate(journal: Path):
    study = open_study(journal, plan())
    trial = study.claim()
    assert trial is not None
    study.note(trial, worker="elsewhere|x|1|1.00", beat=1)
    other = open_study(journal, plan(), begin=False, stale_seconds=0.2)
    assert other.requeue_lost() == []
    time.sleep(0.15)
    study.note(trial, beat=2)  # a sign of life
    assert other.requeue_lost() == []
    time.sleep(0.15)
    assert other.requeue_lost() == []
    time.sleep(0.15)
    assert other.requeue_lost() == [0]
    again = other.claim()
    assert again is not None
    assert again.number == 0  # the same place, so that its order and parameters stay
    study.finish(again, [1.0, 1.0])
    study.finish(trial, [2.0, 2.0])  # the silent one comes back: the first answer stands
    assert study.trials()[0].values == [1.0, 1.0]


class SlowBench(FakeBench):
    def apply(self, config: Any) -> None:
        super().apply(config)
        time.sleep(0.2)


def work(place: Any) -> None:
    wanted = plan()
    Worker(wanted, open_study(place, wanted, begin=False), SlowBench()).work()


def kill_in_the_middle(place: Any) -> None:
    """Three workers; one is killed with a candidate in hand, and the others finish it."""
    wanted = plan()
    study = open_study(place, wanted)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(place,)) for _ in range(3)]
    for process in processes:
        process.start()
    victim = processes[0]
    deadline = time.monotonic() + 60

    def in_hand() -> list[int]:
        return [
            trial.number
            for trial in study.trials()
            if trial.state == TrialState.RUNNING
            and f"|{victim.pid}|" in trial.user_attrs.get("worker", "")
        ]

    while not in_hand():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    for process in processes[1:]:
        process.join(60)
        assert process.exitcode == 0
    assert study.is_finished()
    outcomes = Worker(wanted, study, FakeBench()).outcomes()
    study.close()
    assert sorted(outcomes) == list(range(10))
    assert all(outcome.status in {"complete", "dropped"} for outcome in outcomes.values())


def test_a_killed_workers_candidate_goes_back_to_the_queue(journal: Path):
    kill_in_the_middle(journal)


def test_a_journal_that_goes_away_is_said_and_nothing_is_lost(journal: Path):
    wanted = plan()
    away = journal.with_name("away")

    class Losing(FakeBench):
        def apply(self, config: Any) -> None:
            super().apply(config)
            if len(self.merged) == 4:
                journal.rename(away)

    with pytest.raises(ToolkitError, match="went away in mid-study") as caught:
        run_search(wanted, journal, "tiny", IDENTITY, Losing())
    assert "it continues" in str(caught.value)
    assert not journal.exists()  # not begun anew, empty
    away.rename(journal)
    bench = FakeBench()
    assert len(run_search(plan(), journal, "tiny", IDENTITY, bench)) == 10
    assert len(bench.merged) == 7  # three were kept, the fourth was in hand


def test_a_replaced_journal_is_not_written_to(journal: Path):
    journal.write_text("{}\n")
    lock = JournalLock(journal)
    lock.acquire()
    lock.release()
    journal.unlink()
    journal.write_text("")
    with pytest.raises(FileNotFoundError, match="was replaced"):
        lock.acquire()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://me:s@cret@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("mysql+pymysql://me@host/db?passwd=secret", "mysql+pymysql://me@host/db"),
    ],
)
def test_no_password_is_spoken(url: str, words: str):
    assert spoken(url) == words
    assert spoken(f"cannot reach '{url}' now") == f"cannot reach '{words}' now"


def test_passwords_are_not_spoken():
    with pytest.raises(ConfigError, match="no storage that Optuna knows"):
        open_study("nosuch://me:secret@host/db", plan())


def test_scores_in_full_are_kept(tmp_path: Path):
    wanted = plan()
    found = run_search(wanted, tmp_path / "j", "tiny", IDENTITY, FakeBench())
    outcome = next(item for item in found if item.status == "dropped")
    bench = FakeBench()
    full = Scorer(bench, tmp_path / "c.json").score(
        outcome, wanted.objective, part="search", known=outcome.losses
    )
    assert wanted.objective.is_whole(full)
    again = FakeBench()
    kept = Scorer(again, tmp_path / "c.json").score(outcome, wanted.objective, part="search")
    assert again.merged == []
    assert all((kept[name] == full[name]).all() for name in full)


@pytest.mark.parametrize("damage", ["a digit", "cut", "no sum", "not JSON"])
def test_a_damaged_journal_is_put_aside_and_scored_again(journal: Path, capsys, damage: str):
    first = summary(journal)
    lines = journal.read_text().split("\n")
    place = next(n for n, line in enumerate(lines) if '"losses"' in line)
    line = lines[place]
    if damage == "a digit":
        middle = line.index(":", line.index('"losses"') + 12) + 20
        other = "A" if line[middle] != "A" else "B"
        lines[place] = line[:middle] + other + line[middle + 1 :]
    else:
        cut = {"cut": line[: len(line) // 2], "no sum": line[: line.rindex(',"sum"')] + "}"}
        lines[place] = cut.get(damage, "nonsense")
    journal.write_text("\n".join(lines))
    bench = FakeBench()
    assert summary(journal, bench) == first
    assert bench.merged  # nothing of it was believed
    assert journal.with_name("scores.jsonl.1").is_file()
    assert "is not as it was written" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["a digit", "not a number", "text", "cut", "a list"])
def test_damaged_scores_in_full_are_scored_again(tmp_path: Path, capsys, damage: str):
    wanted, log = plan(), tmp_path / "c.json"
    found = run_search(wanted, tmp_path / "j", "tiny", IDENTITY, FakeBench())
    full = Scorer(FakeBench(), log).score(found[0], wanted.objective, part="test")
    (known,) = json.loads(log.read_text()).values()
    name, packed = next(iter(known.items()))
    changed = {
        "a digit": packed[:-3] + ("A" if packed[-3] != "A" else "B") + packed[-2:],
        "not a number": pack(np.full(len(full[name]), np.nan)),
        "text": "0.5, 0.6",
    }
    text = log.read_text().replace(packed, changed.get(damage, packed))
    log.write_text({"cut": text[: len(text) // 2], "a list": "[1]"}.get(damage, text))
    bench = FakeBench()
    again = Scorer(bench, log).score(found[0], wanted.objective, part="test")
    assert bench.merged
    assert all((again[name] == full[name]).all() for name in full)
    assert "scored again" in capsys.readouterr().out


# A real server, of Debian's packages.

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


class Server:
    """PostgreSQL on a socket of its own; it refuses to run as root, so another user runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = BINARIES[-1].parent
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.run(str(self.bin / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "me")

    def run(self, *words: str) -> None:
        done = subprocess.run(
            [*self.as_user, *words], capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def control(self, action: str) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = str(self.folder / "log")
        words = ["-D", str(self.folder / "data"), "-w", "-m", "immediate"]
        if action == "start":
            words = ["-D", str(self.folder / "data"), "-w", "-l", log, "-o", options]
        self.run(str(self.bin / "pg_ctl"), action, *words)

    @property
    def url(self) -> str:
        return f"postgresql://me@/postgres?host={self.folder}"


@pytest.fixture
def server() -> Iterator[Server]:
    if not BINARIES:
        pytest.skip("no PostgreSQL here (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no runuser here")
    # Not tmp_path: the server's user must reach it, and a socket's path must be short.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pgXXXXXX"], text=True).strip())  # noqa: S108, S607
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    running = Server(folder)
    running.control("start")
    try:
        yield running
    finally:
        subprocess.run(
            [*running.as_user, str(running.bin / "pg_ctl"), "stop", "-mi", f"-D{folder / 'data'}"],
            capture_output=True,
            check=False,
        )
        shutil.rmtree(folder, ignore_errors=True)


def test_a_study_on_postgresql(server: Server):
    kill_in_the_middle(server.url)
    with pytest.raises(ConfigError, match=r"seed: 7 -> 8"):
        open_study(server.url, plan(), identity={**IDENTITY, "seed": 8})


def test_a_server_that_goes_away(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.search.study._PATIENCE_SECONDS", 1.0)

    class Losing(FakeBench):
        def apply(self, config: Any) -> None:
            super().apply(config)
            if len(self.merged) == 4:
                server.control("stop")

    with pytest.raises(ToolkitError, match="went away in mid-study") as caught:
        run_search(plan(), server.url, "tiny", IDENTITY, Losing())
    assert not re.search(r"Traceback|sqlalche", str(caught.value))
    server.control("start")
    bench = FakeBench()
    assert len(run_search(plan(), server.url, "tiny", IDENTITY, bench)) == 10
    assert len(bench.merged) == 7
