"""The default: Q under the assumption that the campaigns bear out, and bounds without any where they bear out neither.

Whatever a source does, of the users of a campaign at least tagged + true - all and at most the lesser of tagged and
true are both (Duncan and Davis, "An alternative to ecological correlation", 1953). Over all campaigns that bounds Q.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from examples.audience.quality import simplex
from examples.audience.quality.assumption import assumption
from examples.audience.quality.campaigns import Campaigns, resampled
from examples.audience.quality.errors import error_regression
from examples.audience.quality.methods import constrained_regression
from examples.audience.quality.result import Quality
from loka_compile.sampling.intervals import BOOTSTRAP, Array, Bootstrap, Estimate, interval


def fitted(data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP) -> Quality:
    """Q by the method whose assumption explains the campaigns better; `assumption` says which and how well."""
    which = assumption(data)
    method = constrained_regression if which.holds == "tags" else error_regression
    found = replace(method(data, bootstrap), assumption=which)
    if not which.fits:
        found = widened(found, data, bootstrap)
    if not which.fits or not which.told_apart:
        found = replace(found, flags=(str(which), *found.flags))
    return found


def widened(found: Quality, data: Campaigns, bootstrap: Bootstrap) -> Quality:
    """The same with the intervals of the bounds, and values within them."""
    assert found.q is not None and found.q_draws is not None  # whatever is fitted gives them
    noise = np.sqrt(data.reports * (1 - data.reports) * (1 / data.sizes - 1 / data.users)[:, None])
    mixes, less, more = data.mixes[:, :, None], data.reports - noise, data.reports + noise
    least, most = np.maximum(mixes + less[:, None] - 1, 0), np.minimum(mixes, more[:, None])  # [C, T, L]
    weights = resampled(data.sizes, bootstrap)
    ends = [np.tensordot(weights, each, 1) for each in (least, most)]  # [1 + resamples, T, L]
    users = np.maximum(weights @ data.mixes, 1e-300)
    low, high = (np.clip(each / users[:, :, None], 0, 1) for each in ends)
    low, high = interval(low, bootstrap)[0], interval(high, bootstrap)[1]

    tagged = np.maximum(users[:, 1:].sum(1), 1e-300)
    right = [np.minimum(np.trace(each[:, 1:], axis1=1, axis2=2) / tagged, 1) for each in ends]
    accuracy = interval(right[0], bootstrap)[0], interval(right[1], bootstrap)[1]
    by_chance = (users[:, 1:] * (weights @ data.reports)).sum(1)[0] / tagged[0]
    scores = found.scores | {
        "accuracy": _within(found.scores["accuracy"].value, *accuracy),
        "lift": _within(found.scores["lift"].value, *(end / by_chance for end in accuracy)),
        "bits": _within(found.scores["bits"].value, 0, np.log2(found.q.shape[1])),
    }
    q = simplex.project(np.clip(found.q, low, high))
    return replace(found, scores=scores, q=q, low=low, high=high, q_draws=np.concatenate([q[None], found.q_draws[1:]]))


def _within(value: float, low: Array | float, high: Array | float) -> Estimate:
    return Estimate(float(np.clip(value, low, high)), float(low), float(high))
