"""Hyper-parameters by a search that knows what a model costs: the best AUC / FLOPs^0.003 within two bounds.

What a trial costs is known before it is trained: a model that would answer too slowly is not trained at all. What is
trained reports its AUC as it goes, and is pruned when its score falls behind the median of those before it. Optuna
(extra `lattice`) proposes trials, in parallel if asked for, and keeps them in a file, from which a search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

EXPONENT = 0.003
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
Values = Mapping[str, object]
Report = Callable[[int, float], None]
"""Called by training with a step and the AUC so far; leaves the training where it is pruned."""


@dataclass(frozen=True)
class Between:
    """Numbers from low to high; `log` spaces proposals evenly in the logarithm, `whole` takes integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low <= high, and both positive with log; got {self}")


Space = Mapping[str, Between | tuple[object, ...]]
"""By hyper-parameter a range, or the values it can have."""


@dataclass(frozen=True)
class Cost:
    """flops of a sample, seconds of an answer: counted, modelled or measured, but before training."""

    flops: float
    seconds: float


@dataclass(frozen=True)
class Bounds:
    """quality: the least AUC; latency: the most seconds."""

    quality: float
    latency: float


@dataclass(frozen=True)
class Found:
    """The best trial within the bounds, how many were tried, and how many of these were trained to the end."""

    values: dict[str, object]
    auc: float
    cost: Cost
    score: float
    tried: int
    trained: int


class NothingFits(Exception):
    """No trial was within the bounds; the message says how near they came."""


def score(auc: float, flops: float) -> float:
    """AUC / FLOPs^0.003, the paper's law: twice the FLOPs must bring 0.2 % of AUC."""
    return auc / flops**EXPONENT


def search(
    cost: Callable[[Values], Cost],
    quality: Callable[[Values, Report], float],
    space: Space,
    bounds: Bounds,
    *,
    trials: int,
    storage: Path | None = None,
    seed: int = 0,
    jobs: int = 1,
) -> Found:
    """The best of `trials` trials, those in `storage` included."""
    study = optuna.create_study(
        study_name="sketch",
        direction="maximize",
        storage=f"sqlite:///{storage}" if storage else None,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=jobs > 1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that is gone
        study.tell(trial.number, state=TrialState.FAIL)

    def objective(trial: optuna.Trial) -> float:
        values = {name: _propose(trial, name, of) for name, of in space.items()}
        costs = cost(values)
        trial.set_user_attr("cost", [costs.flops, costs.seconds])
        trial.set_constraint("latency", costs.seconds - bounds.latency)
        if costs.seconds > bounds.latency:
            raise optuna.TrialPruned(f"{costs.seconds:.3g} s an answer, at most {bounds.latency:.3g} s")

        def report(step: int, auc: float) -> None:
            trial.report(score(auc, costs.flops), step)
            if math.isnan(auc) or trial.should_prune():
                raise optuna.TrialPruned(f"AUC {auc:.4f} after step {step}")

        auc = quality(values, report)
        if math.isnan(auc):
            raise optuna.TrialPruned("its AUC is nan")
        trial.set_user_attr("auc", auc)
        trial.set_constraint("quality", bounds.quality - auc)
        return score(auc, costs.flops)

    left = trials - len(study.get_trials(deepcopy=False, states=DONE))
    if left > 0:
        study.optimize(objective, n_trials=left, n_jobs=jobs)
    return _best(study, bounds)


def _best(study: optuna.Study, bounds: Bounds) -> Found:
    tried = study.get_trials(states=DONE)
    trained = [trial for trial in tried if trial.state == TrialState.COMPLETE]
    within = [trial for trial in trained if max(trial.constraints.values()) <= 0]
    if not within:
        nearest = max((trial.user_attrs["auc"] for trial in trained), default=float("nan"))
        raise NothingFits(
            f"none of {len(tried)} trials has an AUC of {bounds.quality} within {bounds.latency:.3g} s; "
            f"{len(trained)} were quick enough and trained, the best to {nearest:.4f}"
        )
    best = max(within, key=lambda trial: (trial.value, -trial.number))
    auc, costs = best.user_attrs["auc"], Cost(*best.user_attrs["cost"])
    return Found(dict(best.params), auc, costs, score(auc, costs.flops), len(tried), len(trained))


def _propose(trial: optuna.Trial, name: str, of: Between | tuple[object, ...]) -> object:
    if isinstance(of, tuple):
        return trial.suggest_categorical(name, of)
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
    return trial.suggest_float(name, of.low, of.high, log=of.log)
