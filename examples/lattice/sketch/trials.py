"""The trials of a search, in memory or in a file: of what settings they are, which are done, and which is next."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError, OperationalError

from examples.lattice.data import DataError
from examples.lattice.files import alone, worker, workers
from examples.lattice.sketch.proposals import DONE, NUMBER, RAISED, VALUES, is_interrupted, is_outdated, latest, propose
from examples.lattice.sketch.terms import PLAIN, Between, Bounds, Space, choices_of, distributions, told_of

SETTINGS = "settings"  # an attribute of the study
NOTHING = "not said"
WORKER = "worker"  # an attribute of a trial
PATIENCE = 0.2  # seconds between two looks at what others do


@dataclass(frozen=True)
class Trials:
    """alone: while no other thread or process looks for work. worker: who this is; workers: who is there."""

    study: optuna.Study
    space: Space
    bounds: Bounds
    seed: int
    alone: Callable[[], AbstractContextManager[object]]
    worker: str
    workers: Callable[[], set[str]]

    def last(self) -> list[FrozenTrial]:
        """The last trial of each proposal."""
        return latest(self.study.get_trials(deepcopy=False))

    def done(self) -> list[FrozenTrial]:
        """Those that count: neither interrupted nor refused by bounds that were tighter."""
        return [trial for trial in self.last() if self._counts(trial)]

    def _counts(self, trial: FrozenTrial) -> bool:
        return trial.state in DONE and not is_outdated(trial, self.bounds)

    def take(self, count: int, stopped: threading.Event) -> optuna.Trial | None:
        """The next trial, until `count` are done. Waits while those under way may yet leave one."""
        while not stopped.is_set():
            with self.alone():
                self._give_up_what_is_left()
                last = self.last()
                done = sum(self._counts(trial) for trial in last)
                running = sum(trial.state == TrialState.RUNNING for trial in last)
                if done >= count:
                    return None
                if done + running < count:
                    return self._start(last)
            stopped.wait(PATIENCE)
        return None

    def _start(self, last: list[FrozenTrial]) -> optuna.Trial:
        if not any(trial.state == TrialState.WAITING for trial in last):  # else one was stopped between the two lines
            number, values = self._next(last)
            self.study.enqueue_trial(values, user_attrs={NUMBER: number, VALUES: values, WORKER: self.worker})
        trial = self.study.ask(distributions(self.space))
        trial.set_user_attr(WORKER, self.worker)
        return trial

    def _give_up_what_is_left(self) -> None:
        """Trials of processes that are gone are interrupted ones."""
        there = self.workers()  # first: who leaves after this has ended its trials, or they are seen next time
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs[WORKER] not in there:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _next(self, last: list[FrozenTrial]) -> tuple[int, dict[str, object]]:
        """A proposal's number and its values: the first that must be tried again, or a new one."""
        for trial in last:
            if is_interrupted(trial) or is_outdated(trial, self.bounds):
                return trial.user_attrs[NUMBER], trial.user_attrs[VALUES]  # it may have been stopped before it had all
        number = last[-1].user_attrs[NUMBER] + 1 if last else 0
        return number, propose(last, self.space, self.bounds, self.seed, number)

    def run(self, trial: optuna.Trial, objective: Callable[[optuna.Trial], float]) -> None:
        """The objective's score is the trial's."""
        try:
            value = objective(trial)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except BaseException as error:
            if isinstance(error, Exception):
                trial.set_user_attr(RAISED, repr(error)[:500])
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            self.study.tell(trial, value)


@contextmanager
def opened(storage: Path | None, said: Mapping[str, Any], space: Space, bounds: Bounds, seed: int) -> Iterator[Trials]:
    """The trials of a file, or of memory alone. Threads and processes with one file share the work. A file that is
    there must be of the same space and of what is `said`."""
    if storage is None:
        lock = threading.Lock()
        yield Trials(_study(optuna.storages.InMemoryStorage()), space, bounds, seed, lambda: lock, "", lambda: {""})
        return
    for name, of in space.items():
        for choice in choices_of(of):
            if not isinstance(told_of(choice), PLAIN):
                raise ValueError(f"{name}: {choice!r} cannot be kept in {storage}: expected a value that JSON can say")
    own = partial(alone, storage.with_name(f"{storage.name}.lock"))
    with ExitStack() as stack:
        with own():  # two that make one file at a time would each find the other's half
            kept = _file(storage)
            stack.callback(kept.engine.dispose)
            study = _study(kept)
            _check(study, storage, {**said, "space": {name: _written(of) for name, of in space.items()}})
            name = stack.enter_context(worker(storage))
        yield Trials(study, space, bounds, seed, own, name, partial(workers, storage))


def _file(storage: Path) -> optuna.storages.RDBStorage:
    try:
        # Others write between our reads: wait for them longer than SQLite's five seconds.
        return optuna.storages.RDBStorage(f"sqlite:///{storage}", engine_kwargs={"connect_args": {"timeout": 60}})
    except OperationalError:  # it cannot be opened or written, whatever it holds
        raise
    except DatabaseError as error:
        raise DataError(
            f"{storage} is damaged, or no file of trials ({error.orig}): give another file, or delete this one"
        ) from error


def _check(study: optuna.Study, storage: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings with a new study, and refuses one of others."""
    kept = study.user_attrs.get(SETTINGS)
    if kept is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(SETTINGS, settings)
        return
    if kept is None:
        raise DataError(
            f"{storage} holds trials that do not say what they were made of: give another file, or delete this one"
        )
    there, here = _flat(kept), _flat(settings)
    differ = "; ".join(
        f"{name} is {there.get(name, NOTHING)} there, {here.get(name, NOTHING)} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    )
    if differ:
        raise DataError(f"{storage} holds trials of other settings ({differ}): give another file, or delete this one")


def _written(of: Between | tuple[object, ...]) -> object:
    return list(of) if isinstance(of, tuple) else asdict(of)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """By dotted name each setting, written."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{before}{name}."))
        else:
            found[before + name] = json.dumps(value)
    return found


def _study(storage: optuna.storages.BaseStorage) -> optuna.Study:
    return optuna.create_study(
        study_name="sketch",
        direction="maximize",
        storage=storage,
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(0),  # never asked: all values come from proposals
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
