"""A study: the queue of candidates that workers share, and what became of each."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
import psutil
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from toolkit.errors import ConfigError, ToolkitError
from toolkit.search.storage import (
    DamagedJournalError,
    Place,
    is_lost,
    open_storage,
    spoken,
    storage_errors,
)
from toolkit.stage import changed_keys

Result = TypeVar("Result")
_UNCLAIMED_SECONDS = 10.0  # between taking a candidate and signing for it lie milliseconds
_CLOCK_SECONDS = 60.0  # that a clock may be set by, where starts are known as times of day only
_PATIENCE_SECONDS = 20.0  # a database that is restarted is waited for


def start_of(pid: int) -> float:
    """When a process began, by a clock that nobody sets; `psutil` alone knows of it where there is
    no `/proc`, as a time of day.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    # The 22nd field of all, in clock ticks since the machine was started. psutil makes a time of
    # day of it, which moves with the system's clock. A name in brackets may hold spaces.
    with contextlib.suppress(OSError):
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float(psutil.Process(pid).create_time())


def worker_identity() -> str:
    """Names this process among all of all machines; a number given again does not repeat it."""
    namespace_link = "/proc/self/ns/pid"
    # Containers may give two processes one number on one host: the namespace tells them apart.
    inside = str(Path(namespace_link).readlink()) if Path(namespace_link).exists() else ""
    return f"{socket.gethostname()}|{inside}|{os.getpid()}|{start_of(os.getpid()):.2f}"


def is_surely_dead(worker: str) -> bool:
    """Whether a worker was a process of this machine that has ended."""
    own_parts, worker_parts = worker_identity().split("|"), worker.split("|")
    if len(worker_parts) != 4 or worker_parts[:2] != own_parts[:2]:
        return False
    try:
        other_process = psutil.Process(int(worker_parts[2]))
        tolerance = 0.01 if Path("/proc/self/stat").exists() else _CLOCK_SECONDS
        is_same_process = abs(start_of(other_process.pid) - float(worker_parts[3])) <= tolerance
        # A number may have been given again since; and a killed child stays, as a zombie, until its
        # parent asks for it.
        return not is_same_process or other_process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pack(losses: NDArray[np.float64]) -> str:
    """Numbers as text that gives back every bit, with their sum in front."""
    data = np.asarray(losses, dtype="<f8").tobytes()
    return f"{zlib.crc32(data):08x}:{base64.b64encode(data).decode()}"


def unpack(text: str) -> NDArray[np.float64]:
    """
    Raises:
        DamagedScoresError: it is not what `pack` wrote, or holds what is no finite number.
    """
    digits, _, packed = str(text).partition(":")
    try:
        data = base64.b64decode(packed, validate=True)
        losses = np.frombuffer(data, dtype="<f8")
        is_good = int(digits, 16) == zlib.crc32(data) and bool(np.isfinite(losses).all())
    except ValueError:
        is_good = False
    if not is_good:
        raise DamagedScoresError("a packed row of losses is damaged")
    return losses


class DamagedScoresError(ToolkitError):
    """Scores that are not as they were written."""


OUTCOME = "outcome"
"""What became of a candidate is kept as one attribute: a journal waits for the disk with each."""


def attributes_of(trial: FrozenTrial) -> dict[str, Any]:
    """What is kept with a candidate, its outcome among it; in studies of earlier versions each part
    of the outcome stands by itself."""
    return {**trial.user_attrs, **trial.user_attrs.get(OUTCOME, {})}


@dataclass
class _Watch:
    beat: Any
    since: float


def read_identity(place: Place, name: str) -> dict[str, Any] | None:
    """What the results of a study depend on, as it was begun; None where there is none yet.

    Raises:
        ConfigError: the storage's URL cannot be used.
        ToolkitError: the storage cannot be read.
    """
    if isinstance(place, Path) and not place.is_file():
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = open_storage(place, begin=False)
    except ConfigError:
        raise  # waiting does not mend it
    except ToolkitError:
        return None  # nothing is there; whoever opens it to work says so
    try:
        with storage_errors(place, "cannot be opened"):
            for study in storage.get_all_studies():
                if study.study_name == name:
                    identity = study.user_attrs.get("identity")
                    return dict(identity) if identity is not None else None
    except DamagedJournalError:
        return None  # whoever opens it to work puts it aside
    finally:
        if (engine := getattr(storage, "engine", None)) is not None:
            storage.remove_session()
            engine.dispose()
    return None


class Study:
    """Opens a study, or begins it.

    Args:
        place: of the storage.
        name: of the study.
        identity: whatever its results depend on, as plain values.
        sampler: that proposes candidates.
        begin: whether to begin it where there is none.
        stale_seconds: after which a silent worker has lost its candidate.

    Raises:
        ConfigError: the study there was begun with another identity; names what differs.
        ToolkitError: there is none and it is not to be begun, or the storage cannot be reached.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        identity: Mapping[str, Any],
        sampler: optuna.samplers.BaseSampler,
        *,
        begin: bool,
        stale_seconds: float = 300.0,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.place = place
        self.me = worker_identity()
        self._stale_seconds = stale_seconds
        self._watched: dict[int, _Watch] = {}
        self._current: int | None = None
        self._opened = open_storage(place, begin=begin)
        try:
            self._study = self._open(name, dict(identity), sampler, begin)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        name: str,
        identity: dict[str, Any],
        sampler: optuna.samplers.BaseSampler,
        begin: bool,
    ) -> optuna.Study:
        place, storage = self.place, self._opened
        with storage_errors(place, "cannot be opened"):
            study_names = [other.study_name for other in storage.get_all_studies()]
            if name not in study_names and not begin:
                raise ToolkitError(
                    f"{spoken(place)}: holds no study {name!r} yet; `toolkit merge choose` begins "
                    "it, and workers join it while that runs."
                )
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                sampler=sampler,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            known_identity = study.user_attrs.get("identity")
            if known_identity is None:
                if not begin:
                    raise ToolkitError(
                        f"{spoken(place)}: the study {name!r} is only being begun; try again."
                    )
                study.set_user_attr("identity", identity)
                known_identity = identity
        if changes := changed_keys(known_identity, identity):
            raise ConfigError(
                f"{spoken(place)}: the study {name!r} was begun under another recipe:\n  "
                + "\n  ".join(map(str, changes))
                + "\nPut the former values back, or give the new study a name: search.study_name."
            )
        return study

    def close(self) -> None:
        """Give a database's connections back; without effect on what it holds."""
        if (engine := getattr(self._opened, "engine", None)) is not None:
            self._opened.remove_session()
            engine.dispose()

    def fill(self, queue: Sequence[Mapping[str, Any]]) -> None:
        """Queue candidates, each with attributes and maybe with parameters given; those that are
        there from before are not queued twice."""

        def act() -> None:
            num_queued = len(self.trials())
            for entry in queue[num_queued:]:
                self._study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        user_attrs=dict(entry["attributes"]),
                        system_attrs={"fixed_params": dict(entry["parameters"])}
                        if entry["parameters"] is not None
                        else {},
                    )
                )
            # Last: workers take nothing before, as the queue may still be growing or be left half
            # filled.
            self._study.set_user_attr("size", len(queue))

        self.patiently(act)

    @property
    def size(self) -> int | None:
        """How many candidates there are in all; None while they are being queued."""
        size = self.patiently(lambda: self._study.user_attrs.get("size"))
        return None if size is None else int(size)

    def trials(self) -> list[FrozenTrial]:
        """All candidates, in order."""
        found: list[FrozenTrial] = self.patiently(lambda: self._study.get_trials(deepcopy=False))
        return found

    def claim(self) -> optuna.Trial | None:
        """Take the next candidate of the queue, or None where none waits."""
        size = self.size
        if size is None:
            return None

        def act() -> optuna.Trial | None:
            # Looked at first: asked where none waits, Optuna makes up a candidate of its own.
            waiting_trials = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting_trials:
                return None
            trial = self._study.ask()
            if trial.number >= size:  # another worker was quicker, so Optuna made one up
                self._study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                return None
            trial.set_user_attr("worker", self.me)
            return trial

        trial = self.patiently(act)
        self._current = None if trial is None else trial._trial_id
        return trial

    def note(self, trial: optuna.Trial, **attributes: Any) -> None:
        """Keep something with a candidate."""

        def act() -> None:
            for name, value in attributes.items():
                self._study._storage.set_trial_user_attr(trial._trial_id, name, value)

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.patiently(act)

    def finish(self, trial: optuna.Trial, values: Sequence[float] | None) -> None:
        """Put a candidate down as done, or as failed where there are no values."""
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        # A worker that was taken for dead may find its candidate finished by another one.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.patiently(
                lambda: self._study._storage.set_trial_state_values(trial._trial_id, state, values)
            )
        self._current = None

    def is_finished(self) -> bool:
        size = self.size
        num_done = sum(trial.state.is_finished() for trial in self.trials()[:size])
        return size is not None and num_done >= size

    def requeue_lost(self) -> list[int]:
        """Give candidates of dead workers back to the queue, under their own numbers.

        A process of this machine is looked up; of another one the sign of life that it renews
        must have stood still for long, by this machine's clock alone.
        """
        returned_numbers = []
        for trial in self.trials():
            if trial.state != TrialState.RUNNING or trial._trial_id == self._current:
                self._watched.pop(trial._trial_id, None)
                continue
            if self._is_lost(trial):
                self.put_back(trial)
                returned_numbers.append(trial.number)
        return returned_numbers

    def _is_lost(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker", "")
        # Its own, and not the one in hand: an error left it behind.
        if worker == self.me or (worker and is_surely_dead(worker)):
            return True
        life_sign = (worker, trial.user_attrs.get("beat"))
        now = time.monotonic()
        watch = self._watched.setdefault(trial._trial_id, _Watch(life_sign, now))
        if watch.beat != life_sign:
            watch.beat, watch.since = life_sign, now
        wait = self._stale_seconds if worker else min(_UNCLAIMED_SECONDS, self._stale_seconds)
        return now - watch.since > wait

    def put_back(self, trial: FrozenTrial | optuna.Trial) -> None:
        """Give a candidate back to the queue, under its own number."""

        def act() -> None:
            storage = self._study._storage
            # Unsigned first: killed between the two, this leaves a candidate that nobody signed
            # for, which is given back again after a short wait.
            storage.set_trial_user_attr(trial._trial_id, "worker", "")
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.patiently(act)
        self._watched.pop(trial._trial_id, None)
        if trial._trial_id == self._current:
            self._current = None

    @contextlib.contextmanager
    def alive(self, trial: optuna.Trial) -> Iterator[None]:
        """Renew a candidate's sign of life from beside while the block runs."""
        # From a thread, as scoring one set may take longer than a silence that counts as death.
        has_ended = threading.Event()

        def beat() -> None:
            number = 0
            while not has_ended.wait(self._stale_seconds / 5.0):
                number += 1
                # What is wrong with the storage is said where its answer is needed.
                with contextlib.suppress(Exception):
                    storage = self._study._storage
                    storage.set_trial_user_attr(trial._trial_id, "beat", number)

        beat_thread = threading.Thread(target=beat, daemon=True)
        beat_thread.start()
        try:
            yield
        finally:
            has_ended.set()
            beat_thread.join()

    def patiently(self, act: Callable[[], Result]) -> Result:
        """Do something with the storage, waiting a while for one that is away."""
        # A file that is gone does not come back by itself; a database may be restarting.
        last = time.monotonic() + (0.0 if isinstance(self.place, Path) else _PATIENCE_SECONDS)
        while True:
            try:
                with storage_errors(self.place):
                    return act()
            except ToolkitError as error:
                is_storage_lost = error.__cause__ is not None and is_lost(error.__cause__)
                if not is_storage_lost or time.monotonic() >= last:
                    raise
                time.sleep(1.0)
