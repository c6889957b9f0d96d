"""What a search tries next: it hangs on the seed, the proposal's number and the trials before, and on nothing else, so
that a search that was stopped and goes on proposes what one that never stopped would have.

Every trial is of a proposal. One whose trial was interrupted, or refused by tighter bounds than today's, is tried
again; of its trials the last counts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from examples.lattice.sketch.terms import Bounds, Cost, Space, distributions

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
NUMBER = "proposal"  # a trial's attributes
VALUES = "values"
RAISED = "raised"
REFUSED = "refused"
COST = "cost"
AUC = "auc"
logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)  # says of each proposal that a study is new


def latest(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The last trial of each proposal, in the order of the proposals."""
    found = {trial.user_attrs[NUMBER]: trial for trial in trials}
    return [found[number] for number in sorted(found)]


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether it must be tried again. A training that raised an error would raise it again."""
    return trial.state == TrialState.FAIL and RAISED not in trial.user_attrs


def is_outdated(trial: FrozenTrial, bounds: Bounds) -> bool:
    """Whether it was refused as too slow by tighter bounds than these, and must be tried again."""
    return REFUSED in trial.user_attrs and trial.state in DONE and bounds.over(cost_of(trial)) <= 0


def cost_of(trial: FrozenTrial) -> Cost:
    """What a trial that is done was found to cost."""
    return Cost(*trial.user_attrs[COST])


def propose(trials: Iterable[FrozenTrial], space: Space, bounds: Bounds, seed: int, number: int) -> dict[str, object]:
    """Values to try next to these trials, by a TPE whose random numbers are this proposal's own."""
    own = random.Random(f"{seed}, {number}").getrandbits(32)
    sampler = optuna.samplers.TPESampler(seed=own, constant_liar=True)  # no values that are under way
    study = optuna.create_study(direction="maximize", sampler=sampler)
    known = [each for each in trials if each.state in (*DONE, TrialState.RUNNING) and not is_outdated(each, bounds)]
    study.add_trials([_judged(each, bounds) for each in known])
    return study.ask(distributions(space)).params


def _judged(trial: FrozenTrial, bounds: Bounds) -> FrozenTrial:
    """A trial and by how much it is out of these bounds."""
    constraints = {}
    if COST in trial.user_attrs:  # else it runs, and has not come so far
        constraints["latency"] = bounds.over(cost_of(trial))
    if AUC in trial.user_attrs:
        constraints["quality"] = bounds.quality - trial.user_attrs[AUC]
    return optuna.trial.create_trial(
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        constraints=constraints,
    )
