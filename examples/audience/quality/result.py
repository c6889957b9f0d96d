"""What one method says of a source, and what is common to the methods: priors, flags for what campaigns leave open.

Shapes: C campaigns, K categories, tags 0..K where 0 is untagged and tag a claims category a - 1; Q is [K + 1, K],
Q[a, c] = P(true category c | tag a). Where the data say nothing about a row of Q the prior speaks, a flag says so, and
the interval is as wide as can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from examples.audience.quality import model, simplex
from examples.audience.quality.assumption import MAX_SCATTER, Assumption
from examples.audience.quality.campaigns import Campaigns, resampled
from examples.audience.quality.model import Holds
from examples.audience.quality.spread import Drawn
from loka_compile.sampling.intervals import Array, Bootstrap, Estimate, estimates, interval

RANK_TOLERANCE = 1e-3
"""Singular values of the tag mixes below this part of the largest are 0: there noise of 0.1 % would decide Q."""


@dataclass(frozen=True, eq=False)
class Quality:
    """What one method says of a source.

    scores: `accuracy`, share of the tagged users whose tag is right; `lift`, accuracy over that of the same tags dealt
    at random; `coverage`, share of users with a tag; `bits`, mutual information of tag and truth; or `agreement`.
    q, low, high: [K + 1, K] in the campaigns together, or None. rank: of the tag mixes, below K + 1 the campaigns
    cannot tell all tags apart; where errors hold of the true mixes, below K for categories. holds: what is taken to be
    the same in all campaigns; assumption: how well they bear that out, None if nobody looked; sure: whether they do.
    errors: P(tag | category), [K + 1, K], where errors hold.
    scatter: squared error of the fit over what chance allows. flags: reasons for doubt, none if all is well.
    log_likelihood: by iteration, of expectation-maximisation. draws: score -> [1 + resamples], what the intervals are
    made of; resamples of equal number of two sources drew the same campaigns.
    """

    method: str
    scores: dict[str, Estimate]
    rank: int
    flags: tuple[str, ...] = ()
    q: Array | None = None
    low: Array | None = None
    high: Array | None = None
    scatter: float | None = None
    log_likelihood: tuple[float, ...] = ()
    draws: Mapping[str, Array] = field(default_factory=dict)
    q_draws: Array | None = None
    holds: Holds = "tags"
    assumption: Assumption | None = None
    errors: Array | None = None
    errors_draws: Array | None = None

    @property
    def sure(self) -> bool:
        return self.assumption is None or self.assumption.fits

    def chance(self, category: int, counts: ArrayLike | None = None) -> Array:
        """P(category | tag) by resample, [1 + resamples, K + 1]; first the estimate itself.

        counts [K + 1]: users of an audience by tag. Where errors hold, a tag is right there as often as its mix of
        categories makes it, the one that most likely gives these tags; without counts, as often as in the campaigns.
        Of a tag that the campaigns leave open every other resample says the least and the most that it can be.
        """
        if self.q is None or self.q_draws is None or self.low is None or self.high is None:
            raise ValueError(f"{self.method} gives no Q: use a method that does, constrained_regression for one")
        if not isinstance(category, Integral) or not 0 <= category < self.q.shape[1]:
            raise ValueError(
                f"category must be 0 to {self.q.shape[1] - 1}, its place among the names; got {category!r}"
            )
        low, high, found = self.low[:, category], self.high[:, category], self.q_draws[:, :, category].copy()
        if counts is not None and self.errors_draws is not None:
            users = np.broadcast_to(np.asarray(counts, float), (len(found), len(low)))
            found = bayes(self.errors_draws, simplex.likeliest_mix(users, self.errors_draws))[:, :, category]
        unknown = ((low == 0) & (high == 1)) | (not self.sure)
        found[1::2, unknown], found[2::2, unknown] = low[unknown], high[unknown]
        return found


def bayes(errors: Array, base: Array) -> Array:
    """P(category | tag), [..., T, L], from errors [..., T, L], P(tag | category), and base [..., L], the categories'
    shares or numbers."""
    joint = errors * base[..., None, :]
    total = joint.sum(-1, keepdims=True)
    even = base[..., None, :] / base.sum(-1)[..., None, None]  # of a tag that nobody has nothing is known
    return np.where(total > 1e-12, joint / np.where(total > 1e-12, total, 1), even)


def quality(
    method: str,
    data: Campaigns,
    q: Array,
    drawn: Drawn,
    bootstrap: Bootstrap,
    undetermined: Sequence[int],
    flags: tuple[str, ...],
    trace: tuple[float, ...] = (),
) -> Quality:
    """What q [K + 1, K], fitted to `data`, and what may be in its place say of the source."""
    weights, stack = resampled(data.sizes, bootstrap), np.concatenate([q[None], drawn.q])
    figures = simplex.tag_scores(weights @ data.mixes, weights @ data.reports, simplex.project(stack))
    scatter = scatter_of(model.tags(data), q)
    if scatter > MAX_SCATTER:
        flags += (f"reports scatter {scatter:,.1f} times more than chance allows: Q differs between campaigns",)
    blind = [tag for tag in np.flatnonzero(drawn.blind).tolist() if tag not in undetermined]
    if blind:
        flags += (f"one campaign alone decides a part of tags {blind}: nothing shows how far off their rows are",)
    best = simplex.tag_scores(weights @ data.mixes, weights @ data.reports, np.ones_like(stack))
    unknown = sorted({*undetermined, *blind})
    found = bounded(method, figures, stack, bootstrap, unknown, flags, unseen(data)[0], float(best["lift"][0]))
    return replace(found, scatter=scatter, log_likelihood=trace)


def scatter_of(of: model.Model, q: Array) -> float:
    """Squared error of the response over what chance allows."""
    errors = of.sizes @ ((of.response - of.design @ q)[:, :-1] ** 2).sum(1)
    return float(errors / (of.sizes @ np.trace(of.covariance(q), axis1=1, axis2=2)))


def bounded(
    method: str,
    figures: dict[str, Array],
    q: Array,
    bootstrap: Bootstrap,
    undetermined: Sequence[int],
    flags: tuple[str, ...],
    rank: int,
    best_lift: float = float("inf"),
) -> Quality:
    """Intervals from the resamples; tags whose row of Q is undetermined get the widest, and so do the scores.

    q [1 + resamples, K + 1, K] may leave the simplex. Intervals are cut to [0, 1] first here, as a draw moved into the
    simplex says less of what chance does.
    """
    scores = estimates(figures, bootstrap)
    low, high = (np.clip(end, 0, 1) for end in interval(q, bootstrap))
    low[undetermined], high[undetermined] = 0, 1
    widest = {"accuracy": 1.0, "lift": best_lift, "bits": float(np.log2(q.shape[2]))}
    for name in widest if any(undetermined) else ["bits"] if undetermined else []:  # tag 0 counts for bits alone
        scores[name] = Estimate(scores[name].value, 0.0, max(widest[name], scores[name].value))
    return Quality(method, scores, rank, flags, q[0], low, high, draws=figures, q_draws=simplex.project(q))


def prior_of(data: Campaigns, prior: ArrayLike | None) -> Array:
    shape = data.mixes.shape[1], data.reports.shape[1]
    if prior is None:
        return np.tile(data.sizes @ data.reports / data.sizes.sum(), (shape[0], 1))
    q0 = np.asarray(prior, float)
    if q0.shape != shape or not np.allclose(q0, simplex.project(q0), atol=1e-6):
        raise ValueError(f"prior must be {list(shape)} with rows that are shares of 1; got {q0.tolist()}")
    return q0


def unseen(data: Campaigns) -> tuple[int, list[int]]:
    """Rank of the tag mixes, and the tags that move along directions the campaigns do not show."""
    rank, directions = simplex.unseen_directions(data.mixes, data.sizes / data.sizes.sum(), RANK_TOLERANCE)
    part = (directions**2).sum(0)
    return rank, np.flatnonzero(part > 0.01 * part.max()).tolist()


def told_apart(data: Campaigns) -> tuple[list[int], tuple[str, ...]]:
    """The tags whose rows of Q the campaigns leave open, and the flag that says so."""
    rank, undetermined = unseen(data)
    reason = (
        f"under-determined: the campaigns' tag mixes have rank {rank} of {data.mixes.shape[1]} and cannot tell tags "
        f"{undetermined} apart; add campaigns with other mixes"
    )
    return undetermined, (reason,) if undetermined else ()
