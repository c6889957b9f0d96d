"""Q by how the source errs: P(tag | truth) from the campaigns, where that is what does not change between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from examples.audience.quality import model, simplex, spread
from examples.audience.quality.assumption import MAX_SCATTER
from examples.audience.quality.campaigns import Campaigns, resampled
from examples.audience.quality.methods import alike
from examples.audience.quality.result import RANK_TOLERANCE, Quality, bayes, bounded, scatter_of
from loka_compile.sampling.intervals import BOOTSTRAP, Bootstrap


def error_regression(data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP, *, ridge: float = 1e-6) -> Quality:
    """argmin over E of mean_k ||mixes_k - truth_k E||^2 + ridge ||E - prior||^2, rows on the simplex; Q by Bayes.

    truth_k: the true mix, as likely as the report makes it (model.py). Q is that of the campaigns together. prior: a
    source that knows nothing, every row the overall shares of tags.
    """
    of, weights = model.errors(data), data.sizes / data.sizes.sum()
    prior = np.tile(weights @ of.response, (of.design.shape[1], 1))
    errors = simplex.regression(of.design, of.response, weights, prior, ridge)
    drawn = spread.drawn(of, errors, alike(of), bootstrap)

    flags: tuple[str, ...] = ()
    rank, directions = simplex.unseen_directions(of.design, weights, RANK_TOLERANCE)
    if len(directions):
        flags += (
            f"under-determined: the campaigns' true mixes have rank {rank} of {len(prior)} and cannot tell categories "
            "apart; add campaigns with other mixes",
        )
    elif drawn.blind.any():
        flags += (
            f"one campaign alone shows categories {np.flatnonzero(drawn.blind).tolist()}: nothing shows the error",
        )
    scatter = scatter_of(of, errors)
    if scatter > MAX_SCATTER:
        flags += (f"tags scatter {scatter:,.1f} times more than chance allows: errors differ between campaigns",)

    stack = np.concatenate([errors[None], drawn.q]).transpose(0, 2, 1)  # [1 + resamples, T, L]
    inside = simplex.project(stack.transpose(0, 2, 1)).transpose(0, 2, 1)
    rng = np.random.default_rng((bootstrap.seed, 2))
    base = weights @ data.reports
    doubt = np.einsum("k,kab->ab", weights**2, of.unsure)  # of the shares of all campaigns together
    asked = base + rng.multivariate_normal(np.zeros(len(base)), (doubt + doubt.T) / 2, bootstrap.resamples, "ignore")
    q = bayes(stack, np.concatenate([base[None], np.maximum(asked, 0)]))
    shares = resampled(data.sizes, bootstrap) @ data.reports
    tags = (inside @ shares[:, :, None])[:, :, 0]
    figures = simplex.tag_scores(tags, shares, bayes(inside, shares))
    best = simplex.tag_scores(tags, shares, np.ones_like(q))
    unknown = list(range(q.shape[1])) if flags and (len(directions) or drawn.blind.any()) else []
    found = bounded("error_regression", figures, q, bootstrap, unknown, flags, rank, float(best["lift"][0]))
    return replace(found, scatter=scatter, holds="errors", errors=inside[0], errors_draws=inside)
