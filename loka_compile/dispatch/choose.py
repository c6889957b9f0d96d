"""Dispatch: from a profile and a target to a plan. The whole way is `dispatch`, one line a stage.

    candidates   recipes by providers, and how each would run at the site   candidates.py
    errors       how exact each is there, from the profile                  errors.py
    costs        what each takes, from a clock that measures or models      prices.py
    choice       of all sites together, the assignment of least time        together.py, cut.py
    ranges       the same at other batches                                  ranges.py
    plan         the choices with their reasons                             reasons.py

Each stage is a function of those before it, and none is gone back to. LoKA Dispatch (arXiv 2605.10886) chooses site by
site, which loses where a cast is shared.
"""

from __future__ import annotations

from dataclasses import replace

from loka_compile.dispatch.candidates import fits_of
from loka_compile.dispatch.errors import screen
from loka_compile.dispatch.pin import pins
from loka_compile.dispatch.prices import clock_of, price
from loka_compile.dispatch.ranges import batch_of, ranges
from loka_compile.dispatch.reasons import decision
from loka_compile.dispatch.together import choose
from loka_compile.probe.profile import Profile, ProfileError
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.target import TARGETS


def dispatch(profile: Profile, target: str | None = None, options: Options | None = None) -> Plan:
    """Decide every site of a profile. Budgets and recipes come from `options`; so does the target, unless given.

    Raises ProfileError if the profile's rows cannot speak for its production traffic (Options.min_source_quality).
    """
    options = options or Options()
    options = options if target is None else replace(options, target=target)
    hardware, origin = TARGETS[options.target], _origin(profile, options)
    clock, batch = clock_of(hardware), batch_of(profile) if options.min_speedup else None

    sites = profile.sites
    fits = {key: fits_of(known.site, hardware, options) for key, known in sites.items()}
    screened = {key: screen(known, fits[key], options) for key, known in sites.items()}
    priced = price(screened, clock, options)
    together = choose(priced, options.min_speedup)
    over = ranges(priced, batch, clock, options) if batch is not None else {}
    decisions = {key: decision(key, together, over.get(key, ()), options) for key in sites}
    return Plan(hardware.name, decisions, origin=origin, pins=pins(hardware))


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
