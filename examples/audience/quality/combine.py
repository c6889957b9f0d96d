"""What several sources together say of a user: the posterior of the true category, given one tag a source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from examples.audience.quality.result import bayes
from loka_compile.sampling.intervals import Array


def combined(sources: Sequence[Array], tags: ArrayLike, base: ArrayLike, temper: float = 1.0) -> Array:
    """P(category | tags) for every user, [N, K], by Bayes with sources that err independently given the truth.

    sources: P of Q, each [K + 1, K]; tags [N, P]: of every user and source, 0 is none; base [K]: shares of the true
    categories. P(c | a_1 .. a_P) is proportional to P(c) prod_p (Q_p[a_p, c] / P(c)) ** temper. Sources that copy each
    other count as one where `temper` is 1 / P, and as independent where it is 1.
    """
    tag, prior = np.asarray(tags), np.asarray(base, float)
    if tag.ndim != 2 or tag.shape[1] != len(sources):
        raise ValueError(f"tags must be [users, {len(sources)}], one column a source; got {tag.shape}")
    if not 0 < temper <= 1:
        raise ValueError(f"temper must be in (0, 1], got {temper}")
    if prior.ndim != 1 or (prior < 0).any() or not np.isclose(prior.sum(), 1):
        raise ValueError(f"base must be shares of all categories that sum to 1; got {prior.tolist()}")
    with np.errstate(divide="ignore"):
        logs = np.log(prior)[None] + np.zeros((len(tag), 1))
        for column, q in zip(tag.T, sources, strict=True):
            if q.shape != (len(prior) + 1, len(prior)):
                raise ValueError(f"a source's Q must be [{len(prior) + 1}, {len(prior)}]; got {q.shape}")
            if column.min(initial=0) < 0 or column.max(initial=0) >= len(q):
                raise ValueError(f"tags must be 0 to {len(q) - 1}; got {column.min()} to {column.max()}")
            logs = logs + temper * (np.log(q) - np.log(np.maximum(prior, 1e-300)))[column]
    highest = logs.max(1, keepdims=True)
    certain = np.isfinite(highest)  # sources that rule out every category together: the base is all one can say
    weights = np.where(certain, np.exp(logs - np.where(certain, highest, 0)), prior)
    return weights / weights.sum(1, keepdims=True)


def raked(errors: Array, mix: Array, users: Array, margins: Sequence[Array], rounds: int = 30) -> Array:
    """P(category | tags) of every combination of several sources' tags in an audience, [B, combinations, K].

    errors [B, tags of all sources, K]: P(tag | category), one source below the other; mix [B, K]: the audience's users
    by category; users [B, combinations]: by tags; margins: by source, which combinations have each of its tags,
    [combinations, tags]. Sources that err independently, raked (Deming and Stephan 1940) to each source's errors and
    to how many users have the tags together, which shows what they copy from each other.
    """
    wanted, ends = errors * mix[:, None], np.cumsum([0, *(margin.shape[1] for margin in margins)])
    joint = np.repeat(mix[:, None], users.shape[1], axis=1)
    for _ in range(rounds):
        for margin, first, last in zip(margins, ends[:-1], ends[1:], strict=True):
            joint = joint * (margin @ (wanted[:, first:last] / np.maximum(margin.T @ joint, 1e-12)))
        joint = joint * (users / np.maximum(joint.sum(2), 1e-12))[:, :, None]
    return bayes(joint, np.ones_like(mix))
