"""Dispatch: from a profile and a target to a plan.

    feasible = candidates that a provider can run, with MERE <= max_mere and SQNR >= min_sqnr_db
    choice   = of all sites together, the assignment of least time (cut.py); casts that sites share are paid once,
               and a site is lowered only if that is worth min_speedup

LoKA Dispatch (papers.md 1.4) chooses site by site, which loses where a cast is shared. Every candidate that is not
chosen leaves with its reasons. Where sizes depend on the batch, the choice is made for ranges of it (ranges.py).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loka_compile.dispatch import roofline
from loka_compile.dispatch.cost import Cast, Cost, Form
from loka_compile.dispatch.judge import FOREIGN, FREE, Judged, judge_all, pick, problem, ride_of
from loka_compile.dispatch.pin import pins
from loka_compile.dispatch.ranges import batch_of, ranges
from loka_compile.kernels.providers import EMULATED, PROVIDERS
from loka_compile.probe.profile import Profile, ProfileError
from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import TARGETS


def dispatch(profile: Profile, target: str | None = None, options: Options | None = None) -> Plan:
    """Decide every site of a profile. Budgets and recipes come from `options`; so does the target, unless given.

    Raises ProfileError if the profile's rows cannot speak for its production traffic (Options.min_source_quality).
    """
    options = options or Options()
    options = options if target is None else replace(options, target=target)
    hardware = TARGETS[options.target]
    asked = [(known, Sizes(*known.observed)) for known in profile.sites.values()]
    judged = dict(zip(profile.sites, judge_all(asked, hardware, options), strict=True))
    together = _Together(judged, pick(problem(judged, options)))
    decisions = {key: _decision(key, together, options) for key in judged}
    batch = batch_of(profile)
    if batch is not None and options.min_speedup:
        over = ranges(profile, batch, hardware, options)
        decisions |= {key: replace(decisions[key], ranges=own) for key, own in over.items()}
    return Plan(hardware.name, decisions, origin=_origin(profile, options), pins=pins(hardware))


def _origin(profile: Profile, options: Options) -> str:
    """The profile, and what is to be said of its rows. Raises ProfileError where these surely cannot speak for
    production."""
    origin = f"profile {profile.fingerprint[:12]}"
    if profile.source is None:
        return origin
    found = profile.source.assess(options.min_source_quality)
    if found is None or found.verdict == "accept":
        return origin
    if found.verdict == "refuse":
        raise ProfileError(
            f"the profile's rows cannot speak for production: {found.reason}. Calibrate on rows chosen by "
            "loka.stratified_sample, weigh them by sampling.source_quality.rake, or lower min_source_quality"
        )
    return f"{origin}, FLAGGED: its {profile.source.rows:,} rows may not speak for production: {found.reason}"


# ---------------------------------------------------------------- all together


@dataclass(frozen=True)
class _Together:
    """All sites and what was picked for each."""

    judged: Mapping[str, Judged]
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
        return cost.kernel_us + sum(self.cast_us(cast) / len(self.users[cast.form]) for cast in cost.casts)

    def cast_us(self, cast: Cast) -> float:
        ride = ride_of(self.judged, cast)
        return ride.us if ride is not None and self.picks[ride.site] in ride.choices else cast.us

    def riding(self, key: str) -> list[str]:
        """The sites in whose epilogues a site's casts are made for nothing."""
        return [cast.made_by for cast in self.casts(key) if cast.us and not self.cast_us(cast)]

    def partners(self, key: str) -> list[str]:
        """The sites that a site shares a cast with."""
        paid = [cast for cast in self.casts(key) if self.cast_us(cast)]
        return list(dict.fromkeys(k for cast in paid for k in self.users[cast.form] if k != key))


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
    beaten |= {c: f"{reason}; {judged.padded[c]}" for c, reason in beaten.items() if c in judged.padded}
    rejected = tuple({**judged.rejected, **beaten}.items())
    reason = _why_kept(judged, beaten, scores, options) if pick == KEPT else _why(key, together)
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
    site = judged.site
    if site.epilogue and roofline.fuses(together.picks[key], site) and roofline.takes_epilogue(site):
        speed += f", the {site.epilogue} behind it in its epilogue"
    for made_by in together.riding(key):
        speed += f", its cast rides in the epilogue of {made_by}"
    return "; ".join(filter(None, (speed, judged.padded.get(together.picks[key], ""), warned)))


def _why_not(
    judged: Judged, candidate: Candidate, pick: Candidate, scores: Mapping[str, Score], options: Options
) -> str:
    """Why a feasible candidate was not chosen."""
    us, best_us = scores[str(candidate)].time_us, scores[str(pick)].time_us
    if us is None or best_us is None:
        return f"numerics only, as against {pick}"
    if not judged.keep_us:
        return f"{_us(us)} us, and the GEMM as it is takes less than can be timed"
    speed = judged.keep_us / us
    if speed < options.min_speedup:
        return f"{_times(speed)}, wanted {options.min_speedup:g}x ({_us(us)} us against {_us(judged.keep_us)})"
    if us < best_us and scores[str(candidate)].noise > scores[str(pick)].noise:
        return f"{speed:.2f}x, but noisier than {pick}, and this site takes little of the time"
    if us < best_us <= us * FOREIGN and not PROVIDERS[candidate.provider].native:
        return f"{us:.0f} us against {best_us:.0f} by {pick}: another library has to win by {FOREIGN - 1:.0%}"
    if us < best_us:
        return f"{us:.0f} us; {pick} is faster when the casts it shares with other sites are counted"
    return f"slower than {pick}: {us:.0f} us against {best_us:.0f}"


def _times(speed: float) -> str:
    """`0.85x`, and `0.004x` where two digits behind the point would say nothing."""
    return f"{speed:.2f}x" if speed >= 0.095 else f"{speed:.1g}x"


def _us(us: float) -> str:
    return f"{us:.0f}" if us >= 9.5 else f"{us:.2g}"


def _why_kept(judged: Judged, beaten: Mapping[Candidate, str], scores: Mapping[str, Score], options: Options) -> str:
    """The nearest miss in words: the fastest kernel, where any may run; else why none may."""
    real = {c: reason for c, reason in {**judged.rejected, **beaten}.items() if c.provider != EMULATED}
    if not real:
        return "no recipe was allowed"
    if len(set(real.values())) == 1:
        return next(iter(real.values()))
    timed = {c: us for c in beaten if c in real and (us := scores[str(c)].time_us) is not None}
    if timed:
        fastest = min(timed, key=timed.__getitem__)
        return f"no kernel is fast enough; the fastest is {fastest}: {beaten[fastest]}"
    first = next(iter(real))
    budget = options.error_budget
    if not any(budget.holds(judged.errors[c].mere, judged.errors[c].sqnr_db) for c in real):
        return f"no recipe is within the error budget; {first}: {real[first]}"
    return f"no kernel may run; {first}: {real[first]}"
