"""explain: the table says what is in the generated code, not what was hoped for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sympy
import torch
from rich.console import Console

import loka_compile as loka
from loka_compile.dispatch.steady import ON_A_BUSY_MACHINE
from loka_compile.inspect import explain as module
from loka_compile.inspect.compiled import graphs_of
from loka_compile.inspect.explain import explain_plan
from loka_compile.inspect.explanation import Explanation, _number, _us, text
from loka_compile.inspect.row import Row
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from tests.helpers import INT_MM

ROWS = sympy.Symbol("s77", integer=True, positive=True)
SIZES = [[*map(sympy.Integer, (1, 8, 48, 32))], [sympy.Integer(1), ROWS, sympy.Integer(48), sympy.Integer(32)]]


@pytest.fixture(scope="module")
def explained(case):
    return loka.explain(case.compiled)


@pytest.fixture(scope="module")
def h100(on_h100):
    return loka.explain(on_h100.compiled)


def rows_of(explanation: Explanation, key: str) -> list[Row]:
    return [row for row in explanation.rows if row.key == key]


def explain_graphs(monkeypatch, *graphs) -> Explanation:
    monkeypatch.setattr(module, "graphs_of", lambda compiled: list(graphs))
    return loka.explain(None)


def test_a_lowered_site(explained):
    inference, training = rows_of(explained, "a#0:output")
    assert (inference.runs_as, inference.graphs) == ("loka.frozen_int_mm", ("graph_0",))
    assert (training.runs_as, training.graphs) == (INT_MM, ("graph_1",))
    assert inference.lowered and inference.role == "output"
    assert (inference.recipe, inference.provider) == ("int8_rowwise", "aten")
    assert (inference.mere, inference.sqnr_db, inference.median_rel) == (0.0213, 33.21, 0.00001)
    assert (inference.time_before_us, inference.time_after_us, inference.speedup) == (100.0, 40.0, 2.5)
    assert inference.time_source == "measured on this CPU"
    assert inference.shape == "(8, 32) @ (32, 48)"
    assert inference.reason == "fastest within budget, 2.50x"
    assert ("bf16/aten", "0.50x, wanted 1.05x (200 us against 100)") in inference.rejected


def test_why_is_one_call(explained):
    said = explained.why("a#0:output")
    assert "fastest within budget" in said and "bf16/aten: 0.50x, wanted 1.05x" in said and "b#0" not in said
    assert explained.why("a").startswith("  a#0:output") and "b#0" not in explained.why("a")
    with pytest.raises(ValueError, match="no site 'a#1:output'; the nearest: a#0:output"):
        explained.why("a#1:output")


def test_a_kept_site_is_one_row_for_all_graphs(explained):
    [row] = rows_of(explained, "b#0:output")
    assert (row.recipe, row.runs_as, row.outcome, row.lowered) == ("keep", "", "kept", False)
    assert row.graphs == ("graph_0", "graph_1")
    assert row.mere is None and row.reason.startswith("no candidate within budget")
    assert row.speedup == 1.0


def test_every_site_of_every_graph_has_a_row(explained, case):
    for record in loka.records(case.compiled):
        keys = [row.key for row in explained.rows if record.name in row.graphs]
        assert keys == [site.key for site in record.sites]
    assert explained.graphs == {"graph_0": "inference", "graph_1": "training"}
    assert explained.warnings == ()


def test_a_missing_kernel_is_said_loudly(case, doctored, monkeypatch):
    graph = doctored(graphs_of(case.compiled)[0], lambda code: code.replace("loka.frozen_int_mm", "aten.mm"))
    explanation = explain_graphs(monkeypatch, graph)
    [row] = rows_of(explanation, "a#0:output")
    assert (row.outcome, row.lowered, row.runs_as) == ("missing", False, "")
    assert "not in the generated code" in row.reason
    text = str(explanation)
    warning = next(line for line in text.splitlines() if line.startswith("!! NOT LOWERED"))
    assert "a#0:output" in text and text.index(warning) < text.index("SQNR")
    assert "graph_0 (inference): 3 sites, 0 lowered, GEMM time 300 -> 300 µs (1.00x)" in text


def test_a_backward_to_come_is_no_alarm(case, monkeypatch):
    graph = graphs_of(case.compiled)[1]
    forward = replace(graph, artifacts=[a for a in graph.artifacts if not a.fx_kwargs["is_backward"]])
    explanation = explain_graphs(monkeypatch, forward)
    assert [row.outcome for row in rows_of(explanation, "a#0:grad_weight")] == ["pending"]
    assert explanation.warnings == ()


def with_plan(graph, plan: Plan):
    return replace(graph, stages=replace(graph.stages, plan=plan))


def test_a_site_the_plan_does_not_know(case, monkeypatch):
    decisions = {key: decision for key, decision in case.plan.decisions.items() if key != "a#0:output"}
    graph = with_plan(graphs_of(case.compiled)[0], replace(case.plan, decisions=decisions))
    [row] = rows_of(explain_graphs(monkeypatch, graph), "a#0:output")
    assert (row.outcome, row.recipe, row.reason) == ("kept", "keep", "the plan has no decision for this site")
    assert row.shape == "(8, 32) @ (32, 48)" and row.time_before_us is None


def test_sites_of_the_plan_that_no_graph_has(case, monkeypatch):
    explanation = explain_graphs(monkeypatch, graphs_of(case.compiled)[0])
    [row] = rows_of(explanation, "a#0:grad_weight")
    assert (row.outcome, row.graphs, row.reason) == ("absent", (), "not in any graph compiled so far")
    assert row not in explanation.found
    table, _, details = str(explanation).partition("why, and what was rejected")
    assert "a#0:grad_weight" not in table and "a#0:grad_weight" in details


def test_another_gemm_of_the_same_name(case, monkeypatch):
    decision = case.plan.decisions["a#0:output"]
    other = replace(decision, site=replace(decision.site, N=decision.site.N * 2))
    graph = with_plan(graphs_of(case.compiled)[0], replace(case.plan, decisions={"a#0:output": other}))
    found, absent = rows_of(explain_graphs(monkeypatch, graph), "a#0:output")
    assert (found.outcome, absent.outcome) == ("kept", "absent")
    assert absent.reason == "the graph has another GEMM of this name: (8, 32) @ (32, 48) in float32"


def test_a_pass_that_refuses_says_why(case, monkeypatch):
    from loka_compile.passes.joint import precision

    monkeypatch.setattr(precision, "check", lambda gemm, decision, context: "it is Tuesday")
    explanation = explain_graphs(monkeypatch, graphs_of(case.compiled)[0])
    [row] = rows_of(explanation, "a#0:output")
    assert (row.outcome, row.recipe) == ("refused", "int8_rowwise")
    assert row.reason.startswith("it is Tuesday") and row.time_after_us is row.speedup is None
    assert "REFUSED" in str(explanation)


def test_without_the_precision_pass(case, monkeypatch):
    graph = graphs_of(case.compiled)[0]
    pipeline = graph.stages.pipeline.select({"precision": False})
    explanation = explain_graphs(monkeypatch, replace(graph, stages=replace(graph.stages, pipeline=pipeline)))
    [row] = rows_of(explanation, "a#0:output")
    assert row.outcome == "refused" and "`precision` is off" in row.reason


def test_a_gpu_plan_on_a_cpu(h100):
    linear, product, unplanned = h100.rows
    assert (linear.runs_as, linear.provider) == ("loka.frozen_gemm", "aten")
    assert (product.runs_as, product.provider) == ("loka.scaled_gemm", "aten")
    assert unplanned.reason == "the plan has no decision for this site"
    [emulated] = [warning for warning in h100.warnings if warning.startswith("EMULATED")]
    assert emulated.startswith("EMULATED: 1 sites of graph_0 compute the numerics of fp8_rowwise in float32")
    assert "the plan is for h100, this is a cpu: the times are not of this machine" in h100.warnings
    text = str(h100)
    assert text.index("!! EMULATED") < text.index("SQNR dB")
    assert "modelled: roofline h100" in text and "(2 sites have times)" in text


def test_times_of_another_batch_size_are_pointed_out(case, monkeypatch):
    decision = case.plan.decisions["a#0:output"]
    timed = replace(decision, site=replace(decision.site, M=decision.site.M * 512))
    graph = with_plan(graphs_of(case.compiled)[0], replace(case.plan, decisions={"a#0:output": timed}))
    explanation = explain_graphs(monkeypatch, graph)
    [warning] = explanation.warnings
    assert "(8, 32) @ (32, 48), timed at (4096, 32) @ (32, 48)" in warning
    [row] = rows_of(explanation, "a#0:output")  # nor do they stand in the table as if they were of this size
    assert (row.time_before_us, row.time_after_us, row.speedup) == (None, None, None)
    assert row.timed_elsewhere == "timed at (4096, 32) @ (32, 48): 100.0 µs -> 40.0 µs"
    assert row.timed_elsewhere in explanation.why("a#0:output")
    assert "3 sites, 1 lowered\n" in str(explanation)  # and no total of times that are of another size


def test_a_graph_for_any_batch_says_at_which_one_it_was_timed():
    fixed, any_rows = (Site("a#0:output", "mm", "output", *sizes, torch.float32) for sizes in SIZES)
    timed = Row("a#0:output", "output", "", "bf16", "aten", "", "lowered", 0.1, 30.0, 0.1, 100.0, 40.0, "here", "fast")
    row = module._timed(timed, any_rows, fixed)
    assert (row.speedup, row.timed_elsewhere) == (2.5, "timed at (8, 32) @ (32, 48)")
    assert module._timed(timed, any_rows, any_rows) == module._timed(timed, fixed, fixed) == timed


def test_times_of_a_busy_machine_are_pointed_out(case, monkeypatch):
    decision = case.plan.decisions["a#0:output"]
    scores = {name: replace(score, time_source=ON_A_BUSY_MACHINE) for name, score in decision.scores.items()}
    graph = with_plan(graphs_of(case.compiled)[0], case.plan.with_decision(replace(decision, scores=scores)))
    explanation = explain_graphs(monkeypatch, graph)
    [note] = [note for note in explanation.notes if "busy machine" in note]
    assert "1 sites" in note and "a#0:output" in note and "b#0:output" not in note


def test_a_race_that_a_given_plan_tells_of_was_elsewhere(case, monkeypatch):
    graph = with_plan(graphs_of(case.compiled)[0], replace(case.plan, raced="2.00x the unplanned graph's speed"))
    assert "graph_0: raced where the plan was made, 2.00x" in str(explain_graphs(monkeypatch, graph))
    made = replace(graph, stages=replace(graph.stages, pinned=False))
    assert "graph_0: raced, 2.00x" in str(explain_graphs(monkeypatch, made))


def test_one_session_speaks_once_for_all_its_graphs(case, monkeypatch):
    """It counts the calls of all of them together."""

    class Session:
        def status(self) -> str:
            return "online: 3 calls"

    first, second = graphs_of(case.compiled)
    one, other = Session(), Session()
    graphs = [replace(graph, status=each.status) for graph, each in ((first, one), (second, one), (first, other))]
    notes = [note for note in explain_graphs(monkeypatch, *graphs).notes if "online" in note]
    assert notes == ["graph_0, graph_1 together: online: 3 calls", "graph_2: online: 3 calls"]


# ---------------------------------------------------------------- printing


def test_the_text_is_aligned_and_fits(explained, h100):
    for explanation in (explained, h100):
        lines = str(explanation).splitlines()
        assert max(map(len, lines)) <= 160
        rule = next(index for index, line in enumerate(lines) if set(line) == {"-", " "})
        header, first = lines[rule - 1], lines[rule + 1]
        assert header.startswith("site ") and header.endswith(" x")
        assert first.startswith("a#0:output ") and header.index("choice") == first.index(explanation.rows[0].recipe)


def test_the_text_groups_what_is_the_same(explained):
    text = str(explained)
    assert "refused at all 8 sites" in text
    assert text.count("not fp16/emulated, bf16/emulated: emulation has no speed") == text.count("emulation has") == 1
    assert "self#0:output, b#0:output, " in text
    assert "graph_1 (training): 8 sites, 2 lowered" in text and "; called with x (8, 32)" in text


def test_long_names_give_way_to_the_numbers(explained):
    long = replace(explained.rows[0], key="model." + "layers.0." * 20 + "linear#0:output", shape="(" * 60)
    said = text(replace(explained, rows=(long,)))
    assert max(map(len, said.splitlines())) <= 160
    assert "…" in said and "#0:output" in said and "0.0213" in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.0000"), (0.00001, "<0.0001"), (0.0213, "0.0213"), (float("inf"), "inf"), (3.0, "3.0000")],
)
def test_errors_are_readable(value, shown):
    assert _number(value, 4) == shown


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (3.14, "3.1"), (99.96, "100"), (12345.6, "12,346")])
def test_times_are_readable(value, shown):
    assert _us(value) == shown


def test_rich_shows_the_same(h100):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(h100)
    text = console.export_text()
    assert "plan from profile [0123]" in text  # not taken for markup
    for shown in ("loka.frozen_gemm", "0.0213", "EMULATED", "why, and what was rejected"):
        assert shown in text


def test_json_says_everything(explained, case):
    body = json.loads(explained.to_json())
    assert (body["target"], body["origin"]) == ("cpu", "by hand")
    assert (body["sites"], body["lowered_sites"]) == (len(explained.found), 3)
    first = body["rows"][0]
    assert first["lowered"] is True and first["speedup"] == 2.5 and first["runs_as"] == "loka.frozen_int_mm"
    assert first["rejected"][0] == ["bf16/aten", "0.50x, wanted 1.05x (200 us against 100)"]
    endless = replace(explained, rows=(replace(explained.rows[0], sqnr_db=float("inf"), mere=float("nan")),))
    assert json.loads(endless.to_json())["rows"][0]["sqnr_db"] == "inf"


def test_a_plan_alone(case):
    explanation = explain_plan(case.plan)
    assert {row.outcome for row in explanation.rows} == {"planned", "kept"}
    text = str(explanation)
    assert "runs as" not in text and "a#0:grad_weight" in text
    assert f"plan: {len(case.plan.decisions)} sites, 2 to lower" in text
    assert "no GEMM was found" in str(explain_plan(Plan("cpu", {})))


def test_telling_is_repeatable(explained, case):
    assert loka.explain(case.compiled) == explained
    assert isinstance(loka.records(case.compiled)[0].sites[0], Site)
    assert isinstance(case.compiled, torch.nn.Module)
