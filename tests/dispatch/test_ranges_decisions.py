"""Decisions with ranges: which candidate at how many rows, in the file, and compiled for the batch that comes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

import loka_compile as loka
from loka_compile.spec.decision import KEPT, Decision, Range
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan, parse_plan
from tests.dispatch.test_ranges import BF16, INT8, S, profiled

RANGED = Decision(
    profiled(26 * S).site,
    INT8,
    "fastest",
    ranges=(Range(0, KEPT), Range(100, BF16), Range(900, INT8)),
    rejected=((BF16, "slower"),),
)


@pytest.mark.parametrize(
    ("rows", "chosen", "bounds"),
    [
        (1, KEPT, (0, 100)),
        (99, KEPT, (0, 100)),
        (100, BF16, (100, 900)),
        (899, BF16, (100, 900)),
        (900, INT8, (900, None)),
    ],
)
def test_a_decision_at_some_rows(rows, chosen, bounds):
    decision = RANGED.at(rows)
    assert decision.chosen == chosen and RANGED.bounds(rows) == bounds and decision.ranges == RANGED.ranges
    assert all(candidate != chosen for candidate, _ in decision.rejected)
    assert RANGED.at(950) is RANGED


def test_rows_of_a_graphs_site():
    static = replace(RANGED.site, M=sympy.Integer(52))
    assert RANGED.rows(RANGED.site) == 26 * S and RANGED.rows(static) == 52
    attention = replace(RANGED.site, M=S, N=S)
    assert replace(RANGED, site=attention).rows(attention) == S**2


def test_a_lost_race_counts_where_it_was_run_and_noise_everywhere():
    assert RANGED.lost("slower").ranges == (Range(0, KEPT), Range(100, BF16), Range(900, KEPT))
    assert RANGED.at(100).lost("slower").ranges == (Range(0, KEPT), Range(900, INT8))
    assert replace(RANGED, ranges=(Range(0, KEPT), Range(9, INT8))).lost("slower").ranges == ()
    assert RANGED.demoted("noise").ranges == () and RANGED.demoted("noise").recipes == ()
    assert RANGED.recipes == ("int8_rowwise", "bf16")


def test_ranges_are_part_of_the_file():
    plan = Plan("cpu", {"fc#0:output": RANGED})
    assert parse_plan(plan.to_json()).decisions["fc#0:output"].ranges == RANGED.ranges
    assert plan.fingerprint != Plan("cpu", {"fc#0:output": replace(RANGED, ranges=())}).fingerprint
    with pytest.raises(loka.PlanError, match="ranges ascend from 0 rows"):
        parse_plan(plan.to_json().replace('"0": "keep"', '"1": "keep"'))


# ---------------------------------------------------------------- compiled


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))


@pytest.fixture
def crossing(times_of_rows, fresh_dynamo, op_by_op):
    """The model's second layer crosses over at 118 rows."""
    return Options(recipes=("int8_rowwise",), race=False, max_output_error=math.inf)


def any_batch(rows, seed=0):
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    torch._dynamo.mark_dynamic(x, 0)
    return x


def choices(compiled):
    return [[record.plan.find(site).chosen for site in record.sites] for record in loka.records(compiled)]


def test_the_other_side_of_a_crossover_is_compiled_once(model, crossing):
    with torch.no_grad(), loka.probe(model) as probe:
        model(torch.randn(300, 64))
    compiled = torch.compile(model, backend="loka", options={**crossing.as_dict(), "profile": probe.profile})
    with torch.no_grad():
        for rows, graphs in ((300, 1), (118, 1), (4000, 1), (117, 2), (7, 2), (118, 2), (2, 2)):
            compiled(any_batch(rows))
            assert len(loka.records(compiled)) == graphs, rows
    assert choices(compiled) == [[INT8, INT8], [KEPT, KEPT]]
    text = str(loka.explain(compiled))
    assert "by batch: s" in text and "< 118: keep; s" in text and ">= 118: int8_rowwise/aten" in text


def test_a_saved_plan_chooses_by_the_batch_it_meets(model, crossing, tmp_path):
    """Also in a graph that was made for one batch, where nothing is to be guarded."""
    look = torch.compile(model, backend="loka", options={**crossing.as_dict(), "measure_calls": 0})
    with torch.no_grad():
        look(any_batch(300))
        loka.plan(look).save(tmp_path / "plan.json")
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="loka", options={"plan": tmp_path / "plan.json"}, dynamic=False)
        for rows in (16, 300):
            compiled(torch.randn(rows, 64))
    assert choices(compiled) == [[KEPT, KEPT], [INT8, INT8]]


def test_online_a_session_follows_the_batch(model, crossing, monkeypatch, tmp_path):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    compiled = torch.compile(model, backend="loka", options=crossing.as_dict())
    with torch.no_grad():
        for rows in (300, 200, 400, 500, 20, 300, 30):
            compiled(any_batch(rows))
    assert choices(compiled) == [[INT8, INT8], [KEPT, KEPT]]


def test_training_has_ranges_of_its_own_for_every_role(model, crossing):
    with loka.probe(model) as probe:
        model(any_batch(300)).sum().backward()
    compiled = torch.compile(model, backend="loka", options={**crossing.as_dict(), "profile": probe.profile})
    compiled(any_batch(300)).sum().backward()
    (record,) = loka.records(compiled)
    found = {site.role: record.plan.find(site).ranges for site in record.sites}
    assert found["output"] == (Range(0, KEPT), Range(118, INT8))
    assert set(found) == {"output", "grad_input", "grad_weight"}
