"""Six ways to learn how often a source's tags are right, from what an agency reports per campaign.

The setting is that of "Towards data quality assessment in online advertising" (arXiv 1711.11175), whose equations we
have not seen: the formulations are ours. Shapes as in result.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from examples.audience.quality import model, simplex, spread
from examples.audience.quality.campaigns import Campaigns, resampled
from examples.audience.quality.model import Model
from examples.audience.quality.result import Quality, bounded, prior_of, quality, told_apart, unseen
from loka_compile.sampling.intervals import BOOTSTRAP, Array, Bootstrap, estimates


def marginal_agreement(data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP) -> Quality:
    """1 - total variation between the shares of tags, among the tagged, and the reported shares, over campaigns.

    Sees marginals only: tags that are all wrong, but wrong evenly, agree perfectly.
    """
    weights, tagged = resampled(data.sizes, bootstrap), data.mixes[:, 1:]
    covered = tagged.sum(1)
    distance = np.abs(tagged / np.maximum(covered, 1e-300)[:, None] - data.reports).sum(1) / 2
    agreement = 1 - (weights * covered) @ distance / np.maximum(weights @ covered, 1e-300)
    figures = {"agreement": agreement, "coverage": weights @ covered}
    flags = ("compares marginals only: errors that cancel are invisible",)
    return Quality("marginal_agreement", estimates(figures, bootstrap), unseen(data)[0], flags, draws=figures)


def constrained_regression(
    data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP, *, prior: ArrayLike | None = None, ridge: float = 1e-6
) -> Quality:
    """argmin over Q of mean_k ||reports_k - mixes_k Q||^2 + ridge ||Q - prior||^2, rows on the simplex.

    The mean is weighted by size. prior [K + 1, K]: by default a source that knows nothing, every row the overall
    shares. An under-determined problem is flagged; it is an error where `ridge` is 0.
    """
    weights, q0 = data.sizes / data.sizes.sum(), prior_of(data, prior)
    undetermined, flags = told_apart(data)
    if ridge < 0 or (ridge == 0 and undetermined):
        raise ValueError(flags[0] if flags else f"ridge must not be negative, got {ridge}")
    q = simplex.regression(data.mixes, data.reports, weights, q0, ridge)
    of = model.tags(data)
    drawn = spread.drawn(of, q, alike(of), bootstrap)
    return quality("constrained_regression", data, q, drawn, bootstrap, undetermined, flags)


def expectation_maximisation(
    data: Campaigns,
    bootstrap: Bootstrap = BOOTSTRAP,
    *,
    prior: ArrayLike | None = None,
    tolerance: float = 1e-6,
    iterations: int = 2000,
) -> Quality:
    """The Q under which campaigns with these tags most likely give these reports; starts from `prior`.

    E: each campaign's table of tag by truth, from Q by iterative proportional fitting to its two margins. M: Q from
    the sum of the tables. The log-likelihood is its leading term for large campaigns, -KL(table | tags times Q): it
    never falls, and is concave in Q, so there is one optimum. Unlike the regression it knows the reports' variances.
    As the tables have the reported margins whatever Q is, Q is right in the campaigns together also where errors hold.
    """
    weights, q0 = data.sizes / data.sizes.sum(), np.maximum(prior_of(data, prior), 1e-12)
    undetermined, flags = told_apart(data)
    q0 /= q0.sum(1, keepdims=True)
    q, trace, moving = simplex.likeliest(data.mixes, data.reports, weights, q0, tolerance, iterations)
    if moving:
        flags += (f"the fit still moved after {iterations} iterations",)
    likelihood = tuple(float(data.sizes.sum()) * value for value in trace)
    of = model.tags(data)
    drawn = spread.drawn(of, q, np.linalg.inv(of.within(q) * data.sizes.mean()), bootstrap)
    return quality("expectation_maximisation", data, q, drawn, bootstrap, undetermined, flags, likelihood)


def single_tag(
    data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP, *, prior: ArrayLike | None = None, purity: float = 0.95
) -> Quality:
    """Q[a] is the report of the campaigns in which at least `purity` of the users have tag a, pooled by size.

    What the others among them are is unknown, so the report p Q[a] + (1 - p) others leaves Q[a, c] anywhere from
    (report - (1 - p)) / p to report / p (Horowitz and Manski 1995). One half of the draws is about either end, so that
    intervals hold Q wherever it is between them (Imbens and Manski 2004).
    """
    if not 0.5 < purity <= 1:
        raise ValueError(f"purity must be in (0.5, 1], got {purity}")
    q0, dedicated = prior_of(data, prior), (data.mixes >= purity - 1e-12).astype(float)  # [C, K + 1]
    weighted = (data.sizes[:, None] * dedicated).T
    mass = weighted.sum(1, keepdims=True)
    there, users = mass > 0, np.where(mass > 0, mass, 1)
    q = np.where(there, weighted @ data.reports / users, q0)
    pure = np.where(there, (weighted * data.mixes.T).sum(1, keepdims=True) / users, 1)
    of = replace(model.tags(data), design=dedicated)
    drawn = spread.drawn(of, q, alike(of), bootstrap)
    drawn.q[::2] -= 1 - pure
    missing = np.flatnonzero(mass == 0).tolist()
    flags = (f"no campaign of its own for tags {missing}: their rows are the prior",) if missing else ()
    if pure.min() < 1:
        flags += (f"up to {1 - pure.min():.1%} of the users counted for a tag have others, which moves the scores too",)
    return quality("single_tag", data, q, replace(drawn, q=drawn.q / pure), bootstrap, missing, flags)


def holdout(
    tags: ArrayLike,
    truth: ArrayLike,
    categories: int,
    bootstrap: Bootstrap = BOOTSTRAP,
    *,
    prior: ArrayLike | None = None,
) -> Quality:
    """Q from users whose true category is known, such as a panel that logs in.

    tags [N]: 0..K, where 0 is none and a claims category a - 1; truth [N]: 0..K - 1. A tag that no
    such user has keeps the prior (by default the overall shares) and the widest interval. Draws are of the posterior
    under Jeffreys' prior, half a user a cell: its intervals hold as often as they say also where few or none are in a
    cell (Brown, Cai and DasGupta 2001), while users drawn again never fall into an empty one.
    """
    tag, true = np.asarray(tags), np.asarray(truth)
    if tag.ndim != 1 or tag.shape != true.shape or len(tag) == 0:
        raise ValueError(f"tags and truth must be [N] with N >= 1; got {tag.shape} and {true.shape}")
    if tag.min() < 0 or tag.max() > categories or true.min() < 0 or true.max() >= categories:
        raise ValueError(f"of {categories} categories tags are 0 to {categories} and truths 0 to {categories - 1}")
    cells = np.bincount(tag * categories + true, minlength=(categories + 1) * categories).astype(float)
    rng = np.random.default_rng(bootstrap.seed)
    drawn = rng.dirichlet(cells + 0.5, size=bootstrap.resamples) * len(tag)
    counts = np.concatenate([cells[None], drawn]).reshape(-1, categories + 1, categories)
    users = counts.sum(2)
    overall = counts.sum(1, keepdims=True) / len(tag)
    q0 = np.broadcast_to(overall if prior is None else np.asarray(prior, float), counts.shape)
    q = np.where(users[:, :, None] > 0, counts / np.where(users > 0, users, 1)[:, :, None], q0)
    missing = np.flatnonzero(users[0] == 0).tolist()
    flags = (f"no user with a known truth has one of the tags {missing}: their rows are the prior",) if missing else ()
    figures = simplex.tag_scores(users / len(tag), overall[:, 0], q)
    return bounded("holdout", figures, q, bootstrap, missing, flags, rank=categories + 1 - len(missing))


def alike(of: Model) -> Array:
    """The precision of responses for a fit by least squares, which takes all users and shares as equally sure."""
    free = of.response.shape[1] - 1
    return np.eye(free) * (of.sizes / of.sizes.mean())[:, None, None]
