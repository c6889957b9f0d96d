"""What a report says is what loka's records, plan and explanation say; and the schema describes it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loka_compile.passes import PIPELINE
from loka_compile.passes.adapt.mods import MODS
from loka_compile.report import document
from loka_compile.report.stages import purposes
from loka_compile.report.texts import number
from loka_compile.spec.decision import KEEP
from tests.report.conftest import EVIL
from tests.report.made_up import large


def text(report, place):
    return report["strings"][place]


def snapshot(report, graph, name):
    return next(each for each in report["graphs"][graph]["snapshots"] if each["name"] == name)


def test_the_schema_holds(report, valid):
    assert valid(report) == []
    assert valid(large(20, 200)) == []


def test_the_schema_refuses_what_is_no_report(report, valid):
    site = report["sites"][0]
    assert valid({**report, "version": 2})
    assert valid({**report, "sites": [{**site, "outcome": "lost"}]})
    assert valid({**report, "sites": [{key: site[key] for key in site if key != "candidates"}]})


def test_it_is_json_without_what_json_has_not(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert number(float("inf")) == "inf" and number(float("nan")) == "nan" and number(1 / 3) == 0.333333


def test_sites_are_those_of_explain(report, case):
    rows = case.explanation.rows
    assert [(s["key"], s["outcome"], s["runs_as"]) for s in report["sites"]] == [
        (r.key, r.outcome, r.runs_as) for r in rows
    ]
    assert report["verdict"]["lowered"] == sum(row.lowered for row in rows if row.outcome != "absent") > 0
    assert report["verdict"]["graphs"] == {"graph_0": "inference", "graph_1": "training"}


def test_a_site_has_every_candidate_of_its_decision(report, case):
    for site in report["sites"]:
        decision = case.plan.decisions[site["key"]]
        names = {text(report, row[0]) for row in site["candidates"]}
        assert names == {KEEP, str(decision.chosen), *decision.scores, *(str(c) for c, _ in decision.rejected)}
        said = {text(report, row[0]): text(report, row[5]) for row in site["candidates"] if row[5] >= 0}
        assert said == {str(candidate): reason for candidate, reason in decision.rejected}
        [chosen] = [text(report, row[0]) for row in site["candidates"] if row[6]]
        assert chosen == str(decision.chosen)


def test_every_refusal_and_rewrite_of_a_pass_is_there(report, case):
    records = case.records
    told = [
        (stage["graph"], stage["kind"], stage["name"], [text(report, refusal[2]) for refusal in stage["refusals"]])
        for stage in report["stages"]
    ]
    assert told == [(r.name, s.graph, s.name, [x.reason for x in s.rejects]) for r in records for s in r.stages]
    assert [len(stage["rewrites"]) for stage in report["stages"]] == [
        len(s.rewrites) for r in records for s in r.stages
    ]
    kept = next(site for site in report["sites"] if EVIL in site["key"] and site["role"] == "output")
    reasons = {reject.reason for r in records for s in r.stages for reject in s.rejects if reject.site == kept["key"]}
    assert {text(report, refusal[3]) for refusal in kept["refusals"]} == reasons != set()


def test_diffs_are_those_of_the_records(report, case):
    stages = [stage for record in case.records for stage in record.stages]
    assert [stage["diff"] for stage in report["stages"]] == [stage.diff for stage in stages]
    assert any(stage["added"] for stage in report["stages"])


def test_snapshots_are_the_graphs_before_and_after(report, case):
    for at, record in enumerate(case.records):
        before, after = snapshot(report, at, "before"), snapshot(report, at, "after")
        code = {"before": record.before, "after": record.after}
        for each in (before, after):
            ops = [n for n, t in zip(each["names"], each["target"], strict=True) if text(report, t) not in ("output",)]
            assert ops and all(name in code[each["name"]] for name in ops)
            assert all(source < place for place, inputs in enumerate(each["inputs"]) for source in inputs)
        targets = {text(report, target) for target in before["target"]}
        assert "aten.addmm" in targets and not any(target.startswith("loka.") for target in targets)
        phases = {text(report, phase) for phase in after["phase"]}
        assert phases == ({"forward", "backward"} if record.training else {""})


def test_a_node_knows_the_pass_that_made_it_and_from_what(report):
    after = snapshot(report, 0, "after")
    [first, *_] = [i for i, t in enumerate(after["target"]) if text(report, t) == "loka.frozen_int_mm"]
    assert text(report, after["made"][first]) == "lower"
    assert text(report, after["module"][first]) == "blocks.0.up"
    assert text(report, after["site"][first]) == "blocks.0.up#0:output"
    origins = [text(report, each) for each in after["origins"][first]]
    before = snapshot(report, 0, "before")
    assert {text(report, before["target"][before["names"].index(name)]) for name in origins} >= {"aten.addmm"}
    [relu, *_] = [i for i, t in enumerate(after["target"]) if text(report, t) == "aten.relu"]
    assert text(report, after["made"][relu]) == "" and [text(report, o) for o in after["origins"][relu]] == ["relu"]


def test_a_node_knows_its_line_and_its_kernel(report):
    after, graph = snapshot(report, 0, "after"), report["graphs"][0]
    relu = next(i for i, t in enumerate(after["target"]) if text(report, t) == "aten.relu")
    line, _, code = text(report, after["line"][relu]).partition("\t")
    assert line.startswith("report/conftest.py:") and "self.up(self.norm(x)).relu()" in code
    mm = next(i for i, t in enumerate(after["target"]) if text(report, t) == "loka.frozen_int_mm")
    [kernel] = after["kernels"][mm]
    assert kernel >= 0 and graph["kernels"][kernel][:2] == ["loka.frozen_int_mm", "library"]
    [fused] = after["kernels"][relu]
    assert fused < 0 and "relu" in graph["kernels"][~fused][0] and "extern" in graph["kernels"][~fused][3]


def test_modules_have_their_class(report):
    assert snapshot(report, 0, "before")["classes"]["blocks.0"] == "Block"


def test_a_plan_alone(case, valid):
    made = document.of_plan(case.plan, "plan.json")
    assert valid(made) == [] and made["kind"] == "plan" and made["graphs"] == []
    assert {site["outcome"] for site in made["sites"]} == {"planned", "kept"}


def test_a_profile_alone(profile, valid):
    made = document.of_profile(profile, "a profile")
    assert valid(made) == [] and len(made["sites"]) == len(profile.sites)
    site, known = made["sites"][0], next(iter(profile.sites.values()))
    assert site["operands"]["lhs"]["amax"] == pytest.approx(known.lhs.amax, rel=1e-5)
    errors = {text(made, row[0]): row[1] for row in site["candidates"]}
    assert errors == {name: number(known.error(name).mere) for name in known.scores}


def test_nothing_to_report_is_an_error():
    with pytest.raises(ValueError, match="expected what torch"):
        document.of_compiled(lambda x: x)


def test_every_pass_says_what_it_is_for():
    said = purposes()
    assert {*PIPELINE.names, *MODS, "compskip", "windowed_attention"} == set(said)
    assert all(len(words) > 20 and not words.startswith(f"{name}:") for name, words in said.items())


def test_a_race_run_elsewhere_is_no_race_here(case):
    plan = replace(case.plan, raced="2.00x the unplanned graph's speed, measured here")
    [raced] = document.of_plan(plan, "plan.json")["verdict"]["raced"]
    assert raced == f"{plan.raced}; that was where the plan was made"
