"""Decisions: what was picked for a site, why, and why every other candidate was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loka_compile.dispatch.cost import FREE
from loka_compile.dispatch.prices import Priced
from loka_compile.dispatch.together import FOREIGN, Together
from loka_compile.kernels.providers import EMULATED, PROVIDERS
from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Range, Score
from loka_compile.spec.error_budget import ErrorBudget
from loka_compile.spec.options import Options


def decision(key: str, together: Together, ranges: tuple[Range, ...], options: Options) -> Decision:
    """A plan's decision for one site. ranges: its choices by rows, where they depend on the batch."""
    site, pick = together.sites[key], together.picks[key]
    if site.empty:
        return Decision(site.site, KEPT, "the GEMM is empty", ranges=ranges)
    scores = {KEEP: Score(time_us=site.keep_us, time_source=site.source)}
    for candidate, score in site.screened.errors.items():
        cost = site.costs.get(candidate, FREE)
        if cost is not FREE:
            us = together.shared_us(cost) if candidate == pick else cost.alone_us
            score = replace(score, time_us=us, time_source=site.source)
        scores[str(candidate)] = score
    beaten = {c: _why_not(site, c, pick, scores, options.min_speedup) for c in site.costs if c != pick}
    rejected = tuple({**site.rejected, **beaten}.items())
    reason = _why_kept(site, beaten, scores, options.error_budget) if pick == KEPT else _why(key, together)
    return Decision(site.site, pick, reason, scores, rejected, ranges)


def _why(key: str, together: Together) -> str:
    site, pick, partners = together.sites[key], together.picks[key], together.partners(key)
    cost, fit = site.costs[pick], site.screened.fits[pick]
    warned = site.screened.unsafe.get(pick.recipe, "")
    if cost is FREE:
        return "; ".join(filter(None, ("fastest within budget, numerics only", warned)))
    speed = f"fastest within budget, {site.keep_us / together.shared_us(cost):.2f}x"
    if partners:
        speed += f", its cast shared with {', '.join(partners)} ({site.keep_us / cost.alone_us:.2f}x alone)"
    if site.site.epilogue and fit.takes_epilogue:
        speed += f", the {site.site.epilogue} behind it in its epilogue"
    for made_by in together.riding(key):
        speed += f", its cast rides in the epilogue of {made_by}"
    return "; ".join(filter(None, (speed, fit.padding, warned)))


def _why_not(
    site: Priced, candidate: Candidate, pick: Candidate, scores: Mapping[str, Score], min_speedup: float
) -> str:
    """Why a feasible candidate was not chosen; if it runs on padded operands, that too."""
    padding = site.screened.fits[candidate].padding
    return "; ".join(filter(None, (_beaten(site, candidate, pick, scores, min_speedup), padding)))


def _beaten(
    site: Priced, candidate: Candidate, pick: Candidate, scores: Mapping[str, Score], min_speedup: float
) -> str:
    us, best_us = scores[str(candidate)].time_us, scores[str(pick)].time_us
    if us is None or best_us is None:
        return f"numerics only, as against {pick}"
    if not site.keep_us:
        return f"{_us(us)} us, and the GEMM as it is takes less than can be timed"
    speed = site.keep_us / us
    if speed < min_speedup:
        return f"{_times(speed)}, wanted {min_speedup:g}x ({_us(us)} us against {_us(site.keep_us)})"
    if us < best_us and scores[str(candidate)].noise > scores[str(pick)].noise:
        return f"{speed:.2f}x, but noisier than {pick}, and this site takes little of the time"
    if us < best_us <= us * FOREIGN and not PROVIDERS[candidate.provider].native:
        return f"{_us(us)} us against {_us(best_us)} by {pick}: another library has to win by {FOREIGN - 1:.0%}"
    if us < best_us:
        return f"{_us(us)} us; {pick} is faster when the casts it shares with other sites are counted"
    return f"slower than {pick}: {_us(us)} us against {_us(best_us)}"


def _times(speed: float) -> str:
    """`0.85x`, and `0.004x` where two digits behind the point would say nothing."""
    return f"{speed:.2f}x" if speed >= 0.095 else f"{speed:.1g}x"


def _us(us: float) -> str:
    return f"{us:.0f}" if us >= 9.5 else f"{us:.2g}"


def _why_kept(site: Priced, beaten: Mapping[Candidate, str], scores: Mapping[str, Score], budget: ErrorBudget) -> str:
    """The nearest miss in words: the fastest kernel, where any may run; else why none may."""
    real = {c: reason for c, reason in {**site.rejected, **beaten}.items() if c.provider != EMULATED}
    if not real:
        return "no recipe was allowed"
    if len(set(real.values())) == 1:
        return next(iter(real.values()))
    timed = {c: us for c in beaten if c in real and (us := scores[str(c)].time_us) is not None}
    if timed:
        fastest = min(timed, key=timed.__getitem__)
        return f"no kernel is fast enough; the fastest is {fastest}: {beaten[fastest]}"
    first, errors = next(iter(real)), site.screened.errors
    if not any(budget.holds(errors[c].mere, errors[c].sqnr_db) for c in real):
        return f"no recipe is within the error budget; {first}: {real[first]}"
    return f"no kernel may run; {first}: {real[first]}"
