"""The trials of a search, in memory or in a file: which are done, and which is next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from examples.lattice.sketch.proposals import DONE, NUMBER, RAISED, is_interrupted, latest, propose
from examples.lattice.sketch.terms import Bounds, Space, distributions

PATIENCE = 0.2  # seconds between two looks at what others do


@dataclass(frozen=True)
class Trials:
    """alone: while nobody else looks for work."""

    study: optuna.Study
    space: Space
    bounds: Bounds
    seed: int
    alone: Callable[[], AbstractContextManager[object]]

    def last(self) -> list[FrozenTrial]:
        """The last trial of each proposal."""
        return latest(self.study.get_trials(deepcopy=False))

    def done(self) -> list[FrozenTrial]:
        return [trial for trial in self.last() if trial.state in DONE]

    def take(self, count: int, stopped: threading.Event) -> optuna.Trial | None:
        """The next trial, until `count` are done. Waits while those under way may yet leave one."""
        while not stopped.is_set():
            with self.alone():
                last = self.last()
                done = sum(trial.state in DONE for trial in last)
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
            self.study.enqueue_trial(values, user_attrs={NUMBER: number})
        return self.study.ask(distributions(self.space))

    def _next(self, last: list[FrozenTrial]) -> tuple[int, dict[str, object]]:
        """A proposal's number and its values: the first that was interrupted, or a new one."""
        for trial in last:
            if is_interrupted(trial):
                return trial.user_attrs[NUMBER], trial.params
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
def opened(storage: Path | None, space: Space, bounds: Bounds, seed: int) -> Iterator[Trials]:
    lock = threading.Lock()
    study = optuna.create_study(
        study_name="sketch",
        direction="maximize",
        storage=f"sqlite:///{storage}" if storage else None,
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(0),  # never asked: all values come from proposals
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that is gone
        study.tell(trial.number, state=TrialState.FAIL)
    yield Trials(study, space, bounds, seed, lambda: lock)
