"""A plan made up, without a model: small, for tests of what a report makes of any plan."""

from __future__ import annotations

from loka_compile.spec.decision import KEEP, Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from tests.spec.test_plan import site

CHOSEN = Candidate("int8_rowwise", "aten")


def plan_with(key: str = "fc#0:output", reason: str = "fastest within budget", **chosen: float | None) -> Plan:
    """One site that is lowered, another that is kept. chosen: of the first one's score."""
    score = Score(**{"mere": 0.02, "sqnr_db": 30.0, "time_us": 40.0, "time_source": "measured here", **chosen})
    kept = Score(time_us=100.0, time_source="measured here")
    decisions = {
        key: Decision(site(key), CHOSEN, reason, {KEEP: kept, str(CHOSEN): score}),
        "last#0:output": Decision(site("last#0:output"), Candidate(KEEP), "small", {KEEP: kept}),
    }
    return Plan("cpu", decisions)
