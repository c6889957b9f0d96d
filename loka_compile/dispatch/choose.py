"""Dispatch: from a profile and a target to a plan.

    feasible = candidates that a provider can run, with MERE <= max_mere and SQNR >= min_sqnr_db
    choice   = of all sites together, the assignment of least time (cut.py); casts that sites share are paid once,
               and a site is lowered only if that is worth min_speedup

LoKA Dispatch (papers.md 1.4) chooses site by site, which loses where a cast is shared. Every candidate that is not
chosen leaves with its reasons.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loka_compile.dispatch import cut, roofline, timing
from loka_compile.dispatch.cost import Cast, Cost, Form
from loka_compile.dispatch.pin import pins
from loka_compile.dispatch.plan import KEEP, KEPT, Candidate, Decision, Plan, Score
from loka_compile.dispatch.providers import PROVIDERS, aten, emulated, reasons_against
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.options import Options
from loka_compile.probe import segments
from loka_compile.probe.profile import Profile, ProfileError, SiteProfile
from loka_compile.recipes import RECIPES
from loka_compile.target import TARGETS, Target

FREE = Cost(0.0)
"""Of emulation, which shows numerics and is never timed."""
TIE = 0.03
"""Share of a kernel's time that is given up for the site's least noisy candidate: less than timing can tell."""
FOREIGN = 1.05
"""What another library's kernel has to win over PyTorch's own by: it costs the graph more than it costs alone. (With
oneDNN taken at any advantage a Wukong took 46.4 ms, without 43.9; 2 cores, Zen 5.)"""
NEVER_TIMED = 1e12
"""Microseconds that let any kernel go before emulation."""


@dataclass
class _Judged:
    """A site before the choice: errors of all candidates, costs of those that may run, reasons against the others."""

    site: Site
    keep_us: float = 0.0
    source: str = ""
    errors: dict[Candidate, Score] = field(default_factory=dict)
    costs: dict[Candidate, Cost] = field(default_factory=dict)
    rejected: dict[Candidate, str] = field(default_factory=dict)
    unsafe: dict[str, str] = field(default_factory=dict)
    """Recipe -> the segment that it harms most, and how, where it is safe over all rows."""
    kept_because: str = ""


def dispatch(profile: Profile, target: str | None = None, options: Options | None = None) -> Plan:
    """Decide every site of a profile. Budgets and recipes come from `options`; so does the target, unless given.

    Raises ProfileError if the profile's rows cannot speak for its production traffic (Options.min_source_quality).
    """
    options = options or Options()
    options = options if target is None else replace(options, target=target)
    hardware = TARGETS[options.target]
    judged = {key: _judge(known, hardware, options) for key, known in profile.sites.items()}
    problem = _problem(judged, options)
    together = _Together(judged, {k: problem.sites[k][index].name for k, index in cut.choose(problem).items()})
    decisions = {key: _decision(key, together, options) for key in judged}
    return Plan(hardware.name, decisions, origin=_origin(profile, options), pins=pins(hardware))


def _origin(profile: Profile, options: Options) -> str:
    """The profile, and what is to be said of its rows. Raises ProfileError where these surely cannot speak for
    production."""
    found = profile.source.assess(options.min_source_quality) if profile.source is not None else None
    origin = f"profile {profile.fingerprint[:12]}"
    if found is None or found.verdict == "accept":
        return origin
    if found.verdict == "refuse":
        raise ProfileError(
            f"the profile's rows cannot speak for production: {found.reason}. Calibrate on rows chosen by "
            "probe.sampling.stratified_sample or weighed by probe.source_quality.rake, or lower min_source_quality"
        )
    return f"{origin}, FLAGGED: its {profile.source.rows:,} rows may not speak for production: {found.reason}"


def candidates(options: Options) -> Iterator[Candidate]:
    """Recipes by providers. Emulation shows numerics and has no speed: it competes only where speed is no matter."""
    for recipe in options.recipes:
        for name, provider in PROVIDERS.items():
            if recipe in provider.SPEAKS and (name != emulated.NAME or options.min_speedup == 0):
                yield Candidate(recipe, name)


# ---------------------------------------------------------------- site by site


def _judge(profiled: SiteProfile, target: Target, options: Options) -> _Judged:
    site, sizes = profiled.site, Sizes(*profiled.observed)
    if 0 in (sizes.batch, sizes.M, sizes.N, sizes.K):
        return _Judged(site, kept_because="the GEMM is empty")
    keep_us = timing.keep_us(site, sizes) if target.measured else roofline.keep_us(site, sizes, target)
    judged = _Judged(site, keep_us, "measured on this CPU" if target.measured else f"modelled: roofline {target}")
    for candidate in candidates(options):
        judged.errors[candidate] = score = _errors(profiled, candidate.recipe)
        reasons = [*_reasons(site, candidate, score, target, options), *_unsafe(judged, profiled, candidate, options)]
        if reasons:
            judged.rejected[candidate] = "; ".join(reasons)
        else:
            judged.costs[candidate] = _cost(site, sizes, candidate, target, keep_us)
    return judged


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


def _unsafe(judged: _Judged, profiled: SiteProfile, candidate: Candidate, options: Options) -> Iterator[str]:
    """A minority that is harmed: by default a reason against, in any case something to say."""
    score = judged.errors[candidate]
    within = score.mere <= options.max_mere and score.sqnr_db >= options.min_sqnr_db
    found = segments.unsafe(profiled.segments, candidate.recipe, options.max_mere, options.min_sqnr_db)
    if within and found is not None:
        segment, error = found
        judged.unsafe[candidate.recipe] = f"unsafe for {segment}: {error} (all rows: {score.mere:.3g})"
        if options.guard_segments:
            yield judged.unsafe[candidate.recipe]


def _cost(site: Site, sizes: Sizes, candidate: Candidate, target: Target, keep_us: float) -> Cost:
    recipe = RECIPES[candidate.recipe]
    if candidate.provider == emulated.NAME:
        return FREE
    if target.measured:
        return timing.cost(site, sizes, recipe, candidate.provider, beat_us=keep_us)
    return roofline.cost(site, sizes, recipe, target)


# ---------------------------------------------------------------- all together


def _problem(judged: Mapping[str, _Judged], options: Options) -> cut.Problem:
    """All that is feasible against keeping, which loses ties. Low-precision times count `min_speedup` times: a margin
    to be won by each group of sites that shares casts. Where speed is no matter, keeping is no choice."""
    forms: dict[Form, float] = {}
    sites: dict[str, Sequence[cut.Choice]] = {}
    margin = options.min_speedup or 1.0
    for key, each in judged.items():
        for cast in (cast for cost in each.costs.values() for cast in cost.casts):
            forms[cast.form] = max(forms.get(cast.form, 0.0), cast.us * margin)
        keep = [] if each.costs and options.min_speedup == 0 else [cut.Choice(KEPT, each.keep_us)]
        sites[key] = [*(_choice(each, candidate, margin) for candidate in each.costs), *keep]
    return cut.Problem(sites, forms)


def _choice(judged: _Judged, candidate: Candidate, margin: float) -> cut.Choice:
    cost, noise = judged.costs[candidate], judged.errors[candidate].noise
    quietest = min(judged.errors[other].noise for other in judged.costs)
    margin *= 1 + TIE * (1 - quietest / noise)
    margin *= 1.0 if candidate.provider == aten.NAME else FOREIGN
    us = NEVER_TIMED if cost is FREE else cost.kernel_us * margin
    return cut.Choice(candidate, us, tuple(cast.form for cast in cost.casts))


@dataclass(frozen=True)
class _Together:
    """All sites and what was picked for each."""

    judged: Mapping[str, _Judged]
    picks: Mapping[str, Candidate]

    def casts(self, key: str) -> Sequence[Cast]:
        """What the pick of a site casts."""
        cost = self.judged[key].costs.get(self.picks[key])
        return cost.casts if cost is not None else ()

    @functools.cached_property
    def users(self) -> Mapping[Form, list[str]]:
        users = defaultdict(list)
        for key in self.picks:
            for cast in self.casts(key):
                users[cast.form].append(key)
        return users

    def shared_us(self, cost: Cost) -> float:
        """A pick's kernel and an equal share of every cast, so that the times of all picks add up."""
        return cost.kernel_us + sum(cast.us / len(self.users[cast.form]) for cast in cost.casts)

    def partners(self, key: str) -> list[str]:
        """The sites that a site shares a cast with."""
        return list(dict.fromkeys(k for cast in self.casts(key) if cast.us for k in self.users[cast.form] if k != key))


# ---------------------------------------------------------------- decisions


def _decision(key: str, together: _Together, options: Options) -> Decision:
    judged, pick = together.judged[key], together.picks[key]
    if judged.kept_because:
        return Decision(judged.site, KEPT, judged.kept_because)
    scores = {KEEP: Score(time_us=judged.keep_us, time_source=judged.source)}
    for candidate, score in judged.errors.items():
        cost = judged.costs.get(candidate, FREE)
        if cost is not FREE:
            us = together.shared_us(cost) if candidate == pick else cost.alone_us
            score = replace(score, time_us=us, time_source=judged.source)
        scores[str(candidate)] = score
    beaten = {c: _why_not(judged, c, pick, scores, options) for c in judged.costs if c != pick}
    rejected = tuple({**judged.rejected, **beaten}.items())
    reason = _why_kept(rejected, scores) if pick == KEPT else _why(key, together)
    return Decision(judged.site, pick, reason, scores, rejected)


def _why(key: str, together: _Together) -> str:
    judged, partners = together.judged[key], together.partners(key)
    cost = judged.costs[together.picks[key]]
    warned = judged.unsafe.get(together.picks[key].recipe, "")
    if cost is FREE:
        return "; ".join(filter(None, ("fastest within budget, numerics only", warned)))
    speed = f"fastest within budget, {judged.keep_us / together.shared_us(cost):.2f}x"
    if partners:
        speed += f", its cast shared with {', '.join(partners)} ({judged.keep_us / cost.alone_us:.2f}x alone)"
    return "; ".join(filter(None, (speed, warned)))


def _why_not(
    judged: _Judged, candidate: Candidate, pick: Candidate, scores: Mapping[str, Score], options: Options
) -> str:
    """Why a feasible candidate was not chosen."""
    us, best_us = scores[str(candidate)].time_us, scores[str(pick)].time_us
    if us is None or best_us is None:
        return f"numerics only, as against {pick}"
    speed = judged.keep_us / us
    if speed < options.min_speedup:
        return f"{speed:.2f}x, wanted {options.min_speedup:g}x ({us:.0f} us against {judged.keep_us:.0f})"
    if us < best_us and scores[str(candidate)].noise > scores[str(pick)].noise:
        return f"{speed:.2f}x, more noise than {pick}, for a time that can hardly be told apart"
    if us < best_us <= us * FOREIGN and candidate.provider != aten.NAME:
        return f"{us:.0f} us against {best_us:.0f} by {pick}: another library has to win by {FOREIGN - 1:.0%}"
    if us < best_us:
        return f"{us:.0f} us, yet {pick} is faster together with the sites that share casts"
    return f"slower than {pick}: {us:.0f} us against {best_us:.0f}"


def _why_kept(rejected: Sequence[tuple[Candidate, str]], scores: Mapping[str, Score]) -> str:
    """The nearest miss in words: of real kernels the fastest that was timed, else the first."""
    real = [(c, reason) for c, reason in rejected if c.provider != emulated.NAME]
    if not real:
        return "no recipe was allowed"
    if len({reason for _, reason in real}) == 1:
        return real[0][1]
    candidate, reason = min(real, key=lambda pair: scores[str(pair[0])].time_us or float("inf"))
    return f"no candidate within budget; {candidate}: {reason}"
