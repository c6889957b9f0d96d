"""Judging a site before the choice: errors of every candidate, costs of those that may run, reasons against the others.

feasible = candidates that a provider can run, with MERE <= max_mere and SQNR >= min_sqnr_db, over all rows and for
           every segment that the profile knows
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loka_compile.dispatch import cut, roofline, steady, timing
from loka_compile.dispatch.cost import Cast, Cost
from loka_compile.kernels.providers import EMULATED, PROVIDERS, padded, reasons_against
from loka_compile.probe import segments
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.spec.decision import KEPT, Candidate, Score
from loka_compile.spec.options import Options
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import Target

FREE = Cost(0.0)
"""The cost of emulation, which shows numerics and is never timed."""
TIE = 0.03
"""Share of a kernel's time that is given up for half the noise, among a site's fastest: less than timing can tell."""
FOREIGN = 1.05
"""What another library's kernel has to win over PyTorch's own by: it costs the graph more than it costs alone. (With
oneDNN taken at any advantage a Wukong took 46.4 ms, without 43.9; 2 cores, Zen 5.)"""
SPARE = 0.012
"""Share of the GEMMs' time that may go for less noise, where it buys most of it."""
NEVER_TIMED = 1e12
"""Microseconds that let any kernel go before emulation."""


@dataclass
class Judged:
    """A site before the choice: errors of all candidates, costs of those that may run, reasons against the others."""

    site: Site
    keep_us: float = 0.0
    source: str = ""
    errors: dict[Candidate, Score] = field(default_factory=dict)
    costs: dict[Candidate, Cost] = field(default_factory=dict)
    rejected: dict[Candidate, str] = field(default_factory=dict)
    unsafe: dict[str, str] = field(default_factory=dict)
    """Recipe -> the segment that it harms most, and how, where it is safe over all rows."""
    padded: dict[Candidate, str] = field(default_factory=dict)
    """How, of those that run on padded operands."""
    kept_because: str = ""


def candidates(options: Options) -> Iterator[Candidate]:
    """Recipes by providers. Emulation shows numerics and has no speed: it competes only where speed is no matter."""
    for recipe in options.recipes:
        for name, provider in PROVIDERS.items():
            if recipe in provider.speaks and (name != EMULATED or options.min_speedup == 0):
                yield Candidate(recipe, name)


def judge(profiled: SiteProfile, sizes: Sizes, target: Target, options: Options) -> Judged:
    """All of a site at these sizes; those that were observed, or what they are at another batch."""
    return judge_all([(profiled, sizes)], target, options)[0]


def judge_all(asked: Sequence[tuple[SiteProfile, Sizes]], target: Target, options: Options) -> list[Judged]:
    """Each site at its sizes. What has to be measured for that is measured together."""
    screened = [(_screened(known, sizes, target, options), sizes) for known, sizes in asked]
    if target.measured:
        there = [(judged, sizes) for judged, sizes in screened if not judged.kept_because]
        timed = [(judged.site, sizes, [c for c in _left(judged) if _is_timed(c, target)]) for judged, sizes in there]
        timing.measure_ahead(timed, _margin(options))
    return [_priced(judged, sizes, target, options) for judged, sizes in screened]


def _screened(profiled: SiteProfile, sizes: Sizes, target: Target, options: Options) -> Judged:
    """Errors of all candidates and what speaks against some; the others have no cost yet."""
    judged = Judged(profiled.site, kept_because="the GEMM is empty" if _empty(sizes) else "")
    if judged.kept_because:
        return judged
    for candidate in candidates(options):
        judged.errors[candidate] = score = _errors(profiled, candidate.recipe)
        reasons = [*_reasons(judged.site, candidate, score, target, options)]
        reasons += _unsafe(judged, profiled, candidate, options)
        if reasons:
            judged.rejected[candidate] = "; ".join(reasons)
    return judged


def _priced(judged: Judged, sizes: Sizes, target: Target, options: Options) -> Judged:
    site = judged.site
    if judged.kept_because:
        return judged
    judged.keep_us = timing.keep_us(site, sizes) if target.measured else roofline.keep_us(site, sizes, target)
    judged.source = steady.HERE if target.measured else f"modelled: roofline {target}"
    for candidate in _left(judged):
        recipe, provider = RECIPES[candidate.recipe], candidate.provider
        if lost := timing.lost(site, sizes, recipe, provider) if _is_timed(candidate, target) else "":
            judged.rejected[candidate] = lost
            continue
        judged.costs[candidate] = _cost(site, sizes, candidate, target, judged.keep_us / _margin(options))
        if padding := site.padding(padded(provider, site, recipe, target)):
            judged.padded[candidate] = padding
    if target.measured and timing.was_busy(site, sizes, [c for c in judged.costs if _is_timed(c, target)]):
        judged.source = steady.ON_A_BUSY_MACHINE
    return judged


def _left(judged: Judged) -> list[Candidate]:
    """The candidates that nothing speaks against so far."""
    return [candidate for candidate in judged.errors if candidate not in judged.rejected]


def _is_timed(candidate: Candidate, target: Target) -> bool:
    return target.measured and candidate.provider != EMULATED


def _margin(options: Options) -> float:
    """How many times faster than the GEMM as it is a candidate has to be, to be of interest; where speed is no matter,
    twice as slow is."""
    return options.min_speedup or 0.5


def _empty(sizes: Sizes) -> bool:
    return 0 in (sizes.batch, sizes.M, sizes.N, sizes.K)


def _errors(profiled: SiteProfile, recipe: str) -> Score:
    """The worse of real and drawn operands; infinite if the profile never scored the recipe."""
    error = profiled.error(recipe)
    if error is None:
        return Score(mere=float("inf"), sqnr_db=float("-inf"), median_rel=float("inf"))
    return Score(error.mere, error.sqnr_db, error.median_rel)


def _reasons(site: Site, candidate: Candidate, score: Score, target: Target, options: Options) -> Iterator[str]:
    """Why a candidate is out before anyone times it."""
    if site.decides and not options.lower_choices:
        yield f"its result decides what {site.decides} picks, and a rounded one picks another (lower_choices=False)"
        return
    recipe = RECIPES[candidate.recipe]
    as_it_is = recipe.dtype == site.dtype and roofline.fuses(candidate, site) and site.epilogue
    already = recipe.dtype == site.dtype or (recipe.scaling == "none" and site.dtype.itemsize <= recipe.itemsize)
    if already and not as_it_is:
        yield f"the operands are {str(site.dtype).removeprefix('torch.')} already"
        return
    against = reasons_against(candidate.provider, site, recipe, target)
    yield from against
    provider = PROVIDERS[candidate.provider]
    if not against and (other := provider.same_as(target)):
        yield f"its kernels are those of {other} on this {target.device}, which runs them without it"
    elif options.min_speedup and not against and (why := provider.no_use(site, recipe, target)):
        yield why
    if score.mere == float("inf") and score.sqnr_db == float("-inf"):
        yield "no finite error on the profile's operands"
    else:
        yield from options.error_budget.missed(score.mere, score.sqnr_db)


def _unsafe(judged: Judged, profiled: SiteProfile, candidate: Candidate, options: Options) -> Iterator[str]:
    """A minority that is harmed: by default a reason against, in any case something to say."""
    score = judged.errors[candidate]
    within = options.error_budget.holds(score.mere, score.sqnr_db)
    found = segments.unsafe(profiled.segments, candidate.recipe, options.error_budget)
    if within and found is not None:
        segment, error = found
        judged.unsafe[candidate.recipe] = f"unsafe for {segment}: {error} (all rows: {score.mere:.3g})"
        if options.guard_segments:
            yield judged.unsafe[candidate.recipe]


def _cost(site: Site, sizes: Sizes, candidate: Candidate, target: Target, beat_us: float) -> Cost:
    recipe = RECIPES[candidate.recipe]
    if candidate.provider == EMULATED:
        return FREE
    if target.measured:
        return timing.cost(site, sizes, recipe, candidate.provider, beat_us)
    return roofline.cost(site, sizes, recipe, target, candidate.provider)


def problem(judged: Mapping[str, Judged], options: Options) -> cut.Problem:
    """All that is feasible against keeping, which loses ties. Low-precision times count `min_speedup` times: a margin
    to be won by each group of sites that shares casts. Where speed is no matter, keeping is no choice."""
    forms: dict[Hashable, float] = {}
    rides: dict[Hashable, cut.Ride] = {}
    sites: dict[str, Sequence[cut.Choice]] = {}
    margin = options.min_speedup or 1.0
    for key, each in judged.items():
        for cast in (cast for cost in each.costs.values() for cast in cost.casts):
            forms[cast.form] = max(forms.get(cast.form, 0.0), cast.us * margin)
            if ride := ride_of(judged, cast):
                rides[cast.form] = replace(ride, us=ride.us * margin)
        keep = [] if each.costs and options.min_speedup == 0 else [cut.Choice(KEPT, each.keep_us)]
        sites[key] = [*(_choice(each, candidate, margin) for candidate in each.costs), *keep]
    return cut.Problem(sites, forms, rides)


def ride_of(judged: Mapping[str, Judged], cast: Cast) -> cut.Ride | None:
    """Producer choices that emit this cast in their epilogue, and what the cast costs then.

    The cast rides only if every site that reads the tensor may take this form of it, and if rows are seen whole. One by
    columns takes less where the other site has the tensor by rows.
    """
    if cast.beside_us:
        return _beside(judged, cast)
    maker = judged.get(cast.made_by)
    if maker is None or not (roofline.takes_epilogue(maker.site) or not maker.site.epilogue):
        return None
    readers = [each for each in judged.values() if each.site.lhs.tensor == cast.form[0]]
    all_take_it = all(any(cast.form == c.form for cost in each.costs.values() for c in cost.casts) for each in readers)
    rides = cast.rides and all_take_it and roofline.emits(maker.site)
    fusing = frozenset(candidate for candidate in maker.costs if roofline.fuses(candidate, maker.site))
    return cut.Ride(cast.made_by, fusing, 0.0 if rides else cast.apart_us) if fusing else None


def _beside(judged: Mapping[str, Judged], cast: Cast) -> cut.Ride | None:
    for key, each in judged.items():
        choices = frozenset(c for c, cost in each.costs.items() if cast.by_rows in [its.form for its in cost.casts])
        if choices:
            return cut.Ride(key, choices, cast.beside_us)
    return None


def _choice(judged: Judged, candidate: Candidate, margin: float) -> cut.Choice:
    cost, noise = judged.costs[candidate], judged.errors[candidate].noise
    timed = {other: its.alone_us for other, its in judged.costs.items() if its is not FREE} or {candidate: 0.0}
    near = [other for other, us in timed.items() if us <= min(timed.values()) * (1 + TIE)]
    quietest = min(judged.errors[other].noise for other in near)
    margin *= 1 + TIE * min(1.0, max(0.0, math.log2(noise / quietest)))
    margin *= 1.0 if PROVIDERS[candidate.provider].native else FOREIGN
    us = NEVER_TIMED if cost is FREE else cost.kernel_us * margin
    return cut.Choice(candidate, us, tuple(cast.form for cast in cost.casts), noise)


def pick(choices: cut.Problem) -> dict[str, Candidate]:
    """The fastest choices of all sites together; then the changes that remove most noise for SPARE of the time.

    Only between one lowered form and another: what keeping a site really costs, a graph's other fusions decide. (With
    sites kept for their noise a Wukong lost a fifth of its speed.)
    """
    fastest = cut.choose(choices)
    allowed = {key: _alternatives(choices.sites[key], index) for key, index in fastest.items()}
    sites = {key: [choices.sites[key][i] for i in its] for key, its in allowed.items()}
    lowered = cut.Problem(sites, choices.forms, choices.rides)
    points = cut.frontier(lowered)
    affordable = [point for point in points if point.us <= points[0].us * (1 + SPARE)]
    return {key: lowered.sites[key][index].name for key, index in affordable[-1].picks.items()}  # type: ignore[misc]


def _alternatives(choices: Sequence[cut.Choice], fastest: int) -> list[int]:
    """The fastest choice, and if it is a kernel, the other kernels."""
    others = [i for i, c in enumerate(choices) if c.name != KEPT and c.us < NEVER_TIMED and i != fastest]
    return [fastest, *(others if choices[fastest].name != KEPT else [])]
