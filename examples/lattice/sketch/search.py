"""Hyper-parameters by a search that knows what a model costs: the best AUC / FLOPs^0.003 within two bounds.

What a trial costs is known before it is trained: a model that would answer too slowly is not trained at all. What is
trained reports its AUC as it goes, and is pruned when its score falls behind the median of those before it. Optuna
(extra `lattice`) proposes trials, in parallel if asked for, and keeps them in a file, from which a search goes on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from examples.lattice.sketch.proposals import AUC, COST, REFUSED, cost_of
from examples.lattice.sketch.terms import EXPONENT, Between, Bounds, Cost, Report, Space, Values, score, values_of
from examples.lattice.sketch.trials import Trials, opened

__all__ = [
    "EXPONENT", "Between", "Bounds", "Cost", "Found", "NothingFits", "Report", "Space", "Values", "score", "search",
]  # fmt: skip


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


def search(
    cost: Callable[[Values], Cost],
    quality: Callable[[Values, Report], float],
    space: Space,
    bounds: Bounds,
    *,
    trials: int,
    storage: Path | None = None,
    said: Mapping[str, Any] | None = None,
    seed: int = 0,
    jobs: int = 1,
) -> Found:
    """The best of `trials` trials, those in `storage` included; where more are there, of them all.

    said: what cost and quality depend on beside the values (data, rows, seed, target, ...), as JSON can say it. It is
    kept in `storage` with the space, and trials of anything else are refused with a DataError. Bounds may change from
    one search to the next: each judges all trials by its own, and trains what tighter ones had refused as too slow,
    which until then does not count.

    Proposals hang on the seed and the trials before, so a search that was stopped goes on as if it had not been: what
    was interrupted is tried again. Values whose training raised an error are not, and do not count. With several jobs
    proposals also hang on which trial ends first.
    """
    if trials < 1 or jobs < 1:
        raise ValueError(f"expected one trial or more and one job or more, got trials={trials} and jobs={jobs}")

    def objective(trial: optuna.Trial) -> float:
        values = values_of(space, trial.params)
        costs = cost(values)
        trial.set_user_attr(COST, [costs.flops, costs.seconds])
        if bounds.over(costs) > 0:
            trial.set_user_attr(REFUSED, True)
            raise optuna.TrialPruned(f"{costs.seconds:.3g} s an answer, at most {bounds.latency:.3g} s")

        def report(step: int, auc: float) -> None:
            trial.report(score(auc, costs.flops), step)
            if not math.isfinite(auc) or trial.should_prune():
                raise optuna.TrialPruned(f"AUC {auc:.4f} after step {step}")

        auc = quality(values, report)
        if not math.isfinite(auc):
            raise optuna.TrialPruned(f"its AUC is {auc}")
        trial.set_user_attr(AUC, auc)
        return score(auc, costs.flops)

    with opened(storage, said or {}, space, bounds, seed) as found:
        _work(found, objective, trials, jobs)
        return _best(found, bounds)


def _work(found: Trials, objective: Callable[[optuna.Trial], float], trials: int, jobs: int) -> None:
    """Runs trials until enough are done; an error in one ends them all."""
    stopped = threading.Event()

    def work() -> None:
        while (trial := found.take(trials, stopped)) is not None:
            found.run(trial, objective)

    if jobs == 1:  # in this thread, where an interrupt arrives
        work()
        return
    with ThreadPoolExecutor(jobs) as pool:
        try:
            ended, _ = wait([pool.submit(work) for _ in range(jobs)], return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
        for each in ended:
            each.result()


def _best(found: Trials, bounds: Bounds) -> Found:
    """Judged by these bounds, from the cost and the AUC that are kept with each trial."""
    tried = found.done()
    trained = [trial for trial in tried if trial.state == TrialState.COMPLETE]
    quick = [trial for trial in trained if bounds.over(cost_of(trial)) <= 0]
    within = [trial for trial in quick if trial.user_attrs[AUC] >= bounds.quality]
    if not within:
        nearest = max((trial.user_attrs[AUC] for trial in quick), default=float("nan"))
        raise NothingFits(
            f"none of {len(tried)} trials has an AUC of {bounds.quality} within {bounds.latency:.3g} s; "
            f"{len(quick)} were quick enough and trained, the best to {nearest:.4f}"
        )
    best = max(within, key=lambda trial: trial.value)  # of equal ones the first
    auc, costs = best.user_attrs[AUC], cost_of(best)
    values = values_of(found.space, best.params)
    return Found(values, auc, costs, score(auc, costs.flops), len(tried), len(trained))
