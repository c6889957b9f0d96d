"""Dispatch: from a profile and a target to a plan. Per site the fastest candidate within the error budget.

    feasible = candidates that a provider can run, with MERE <= max_mere, SQNR >= min_sqnr_db, speed-up >= min_speedup
    choice   = the fastest feasible one, else keep the GEMM as it is

LoKA Dispatch (papers.md 1.4). Every candidate that is not chosen leaves with its reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loka_compile.dispatch import roofline, timing
from loka_compile.dispatch.pin import pins
from loka_compile.dispatch.plan import KEEP, KEPT, Candidate, Decision, Plan, Score
from loka_compile.dispatch.providers import PROVIDERS, emulated, reasons_against
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.options import Options
from loka_compile.probe.profile import Profile, SiteProfile
from loka_compile.recipes import RECIPES
from loka_compile.target import TARGETS, Target


def dispatch(profile: Profile, target: str | None = None, options: Options | None = None) -> Plan:
    """Decide every site of a profile. Budgets and recipes come from `options`; so does the target, unless given."""
    options = options or Options()
    options = options if target is None else replace(options, target=target)
    hardware = TARGETS[options.target]
    decisions = {key: decide(site, hardware, options) for key, site in profile.sites.items()}
    return Plan(hardware.name, decisions, origin=f"profile {profile.fingerprint[:12]}", pins=pins(hardware))


def decide(profiled: SiteProfile, target: Target, options: Options) -> Decision:
    site, sizes = profiled.site, Sizes(*profiled.observed)
    source = "measured on this CPU" if target.measured else f"modelled: roofline {target}"
    if 0 in (sizes.batch, sizes.M, sizes.N, sizes.K):
        return Decision(site, KEPT, "the GEMM is empty")
    keep_us = timing.keep_us(site, sizes) if target.measured else roofline.keep_us(site, sizes, target)
    scores = {KEEP: Score(time_us=keep_us, time_source=source)}
    rejected: list[tuple[Candidate, str]] = []
    feasible: list[tuple[float, Candidate]] = []
    for candidate in candidates(options):
        score = _errors(profiled, candidate.recipe)
        reasons = list(_reasons(site, candidate, score, target, options))
        if not reasons:
            time_us = _time(site, sizes, candidate, target, keep_us)
            score = Score(score.mere, score.sqnr_db, score.median_rel, time_us, source if time_us else "")
            reasons = list(_too_slow(keep_us, time_us, options))
        scores[str(candidate)] = score
        if reasons:
            rejected.append((candidate, "; ".join(reasons)))
        else:
            feasible.append((score.time_us or float("inf"), candidate))
    if not feasible:
        return Decision(site, KEPT, _why_kept(rejected, scores), scores, tuple(rejected))
    feasible.sort(key=lambda pair: pair[0])
    best_us, best = feasible[0]
    rejected += [(c, _slower(us, best, best_us)) for us, c in feasible[1:]]
    speed = f"{keep_us / best_us:.2f}x" if best_us < float("inf") else "numerics only"
    return Decision(site, best, f"fastest within budget, {speed}", scores, tuple(rejected))


def candidates(options: Options) -> Iterator[Candidate]:
    """Recipes by providers. Emulation shows numerics and has no speed: it competes only where speed is no matter."""
    for recipe in options.recipes:
        for provider in PROVIDERS:
            if provider != emulated.NAME or options.min_speedup == 0:
                yield Candidate(recipe, provider)


def _errors(profiled: SiteProfile, recipe: str) -> Score:
    """The worse of real and drawn operands; infinite if the profile never scored the recipe."""
    error = profiled.error(recipe)
    if error is None:
        return Score(mere=float("inf"), sqnr_db=float("-inf"), median_rel=float("inf"))
    return Score(error.mere, error.sqnr_db, error.median_rel)


def _reasons(site: Site, candidate: Candidate, score: Score, target: Target, options: Options) -> Iterator[str]:
    """Why a candidate is out before anyone times it."""
    recipe = RECIPES[candidate.recipe]
    if recipe.dtype == site.dtype or (recipe.scaling == "none" and site.dtype.itemsize <= recipe.itemsize):
        yield f"the operands are {str(site.dtype).removeprefix('torch.')} already"
    yield from reasons_against(candidate.provider, site, recipe, target)
    if score.mere == float("inf") and score.sqnr_db == float("-inf"):
        yield "not scored, or not finite, on the profile's operands"
    elif score.mere > options.max_mere:
        yield f"MERE {score.mere:.3g}, budget {options.max_mere:g}"
    if score.sqnr_db < options.min_sqnr_db and score.mere < float("inf"):
        yield f"SQNR {score.sqnr_db:.1f} dB, budget {options.min_sqnr_db:g}"


def _time(site: Site, sizes: Sizes, candidate: Candidate, target: Target, keep_us: float) -> float | None:
    recipe = RECIPES[candidate.recipe]
    if target.measured:
        return timing.recipe_us(site, sizes, recipe, candidate.provider, beat_us=keep_us)
    if candidate.provider == emulated.NAME:
        return None
    return roofline.recipe_us(site, sizes, recipe, target)


def _too_slow(keep_us: float, time_us: float | None, options: Options) -> Iterator[str]:
    if time_us is not None and keep_us / time_us < options.min_speedup:
        yield f"{keep_us / time_us:.2f}x, wanted {options.min_speedup:g}x ({time_us:.0f} us against {keep_us:.0f})"


def _slower(time_us: float, best: Candidate, best_us: float) -> str:
    if time_us == float("inf"):
        return f"numerics only, as against {best}"
    return f"slower than {best}: {time_us:.0f} us against {best_us:.0f}"


def _why_kept(rejected: list[tuple[Candidate, str]], scores: dict[str, Score]) -> str:
    """The nearest miss in words: of real kernels the fastest that was timed, else the first."""
    real = [(c, reason) for c, reason in rejected if c.provider != emulated.NAME]
    if not real:
        return "no recipe was allowed"
    if len({reason for _, reason in real}) == 1:
        return real[0][1]
    candidate, reason = min(real, key=lambda pair: scores[str(pair[0])].time_us or float("inf"))
    return f"no candidate within budget; {candidate}: {reason}"


