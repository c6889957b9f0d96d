"""Errors: how exact every candidate is at a site, read from the profile, and which candidates are out before any time
is known.

    feasible = its kernel runs here, MERE <= max_mere and SQNR >= min_sqnr_db over all rows, and in every segment that
               the profile knows
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from loka_compile.dispatch.candidates import Fit
from loka_compile.probe import segments
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.spec.decision import Candidate, Score
from loka_compile.spec.error_budget import ErrorBudget
from loka_compile.spec.options import Options
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

UNKNOWN = Score(mere=float("inf"), sqnr_db=float("-inf"), median_rel=float("inf"))
"""The errors of a recipe that the profile never scored."""


@dataclass(frozen=True)
class Screened:
    """A site before any time is known.

    observed: its sizes in the largest call that was measured. errors: of every candidate. rejected: the reasons against
    those that are out. unsafe: by recipe that is safe over all rows, the segment that it harms most, and how.
    """

    site: Site
    observed: Sizes
    fits: Mapping[Candidate, Fit]
    errors: Mapping[Candidate, Score]
    rejected: Mapping[Candidate, str]
    unsafe: Mapping[str, str]

    @property
    def feasible(self) -> list[Fit]:
        """The candidates that nothing speaks against so far, in order of preference."""
        return [fit for candidate, fit in self.fits.items() if candidate not in self.rejected]


def screen(known: SiteProfile, fits: Iterable[Fit], options: Options) -> Screened:
    """The candidates' errors by the profile, each recipe looked up once."""
    by_candidate = {fit.candidate: fit for fit in fits}
    recipes = dict.fromkeys(candidate.recipe for candidate in by_candidate)
    scores = {recipe: _score(known, recipe) for recipe in recipes}
    harms = {recipe: _harm(known, recipe, score, options.error_budget) for recipe, score in scores.items()}
    unsafe = {recipe: harm for recipe, harm in harms.items() if harm}
    rejected = {}
    for candidate, fit in by_candidate.items():
        reasons = list(fit.against)
        if not fit.whatever_its_error:
            reasons += _missed(scores[candidate.recipe], options.error_budget)
        if options.guard_segments and candidate.recipe in unsafe:
            reasons.append(unsafe[candidate.recipe])
        if reasons:
            rejected[candidate] = "; ".join(reasons)
    errors = {candidate: scores[candidate.recipe] for candidate in by_candidate}
    return Screened(known.site, Sizes(*known.observed), by_candidate, errors, rejected, unsafe)


def _score(known: SiteProfile, recipe: str) -> Score:
    """The worse of the errors on real and on drawn operands."""
    error = known.error(recipe)
    return UNKNOWN if error is None else Score(error.mere, error.sqnr_db, error.median_rel)


def _missed(score: Score, budget: ErrorBudget) -> Iterator[str]:
    if score.mere == float("inf") and score.sqnr_db == float("-inf"):
        yield "no finite error on the profile's operands"
    else:
        yield from budget.missed(score.mere, score.sqnr_db)


def _harm(known: SiteProfile, recipe: str, score: Score, budget: ErrorBudget) -> str:
    """Which segment a recipe harms most that is safe over all rows, and how; "" if none."""
    if not budget.holds(score.mere, score.sqnr_db):
        return ""
    found = segments.unsafe(known.segments, recipe, budget)
    return "" if found is None else f"unsafe for {found[0]}: {found[1]} (all rows: {score.mere:.3g})"
