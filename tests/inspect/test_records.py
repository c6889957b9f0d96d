"""Records: the code before and after, a diff a pass, and whether the kernels are in the generated code."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import loka_compile as loka
from loka_compile.inspect.compiled import graphs_of
from loka_compile.inspect.records import missing_kernels, rebuild
from loka_compile.passes import PIPELINE
from tests.helpers import INT_MM


@pytest.fixture(scope="module")
def told(case):
    """The record of the inference graph and of the training graph."""
    return loka.records(case.compiled)


def test_one_record_a_graph_in_the_order_of_compilation(told):
    assert [(record.name, record.training) for record in told] == [("graph_0", False), ("graph_1", True)]


def test_stages_say_which_pass_ran_on_which_graph(told):
    on = lambda graph, passes: [(each.name, graph) for each in passes]  # noqa: E731
    joint, post_grad = PIPELINE.joint, PIPELINE.post_grad
    inference, training = ([(s.name, s.graph) for s in record.stages] for record in told)
    skipped = on("dynamo", [p for p in (*PIPELINE.simplify, *PIPELINE.raising) if "cpu" not in p.runs_on])
    assert [stage for stage in inference if stage in skipped] == [s for s in training if s in skipped] == skipped
    inference, training = ([stage for stage in stages if stage not in skipped] for stages in (inference, training))
    assert inference == on("inference", joint) + on("inference", post_grad)
    assert training == on("joint", joint) + on("forward", post_grad) + on("backward", post_grad)


def test_code_before_and_after(told):
    inference, training = told
    assert "torch.ops.aten.addmm.default" in inference.before and "torch.ops.loka" not in inference.before
    assert "torch.ops.loka.frozen_int_mm.default" in inference.after
    assert "# forward\n" in training.after and "# backward\n" in training.after
    op = INT_MM if "." in INT_MM else f"aten.{INT_MM}"
    assert f"torch.ops.{op}.default" in training.after.partition("# backward\n")[2]


def test_each_pass_has_a_diff(told):
    stages = {stage.name: stage for stage in told[0].stages}
    precision, lower = stages["precision"], stages["lower"]
    assert stages["fuse"].diff == ""  # on a CPU nothing is fused
    assert precision.before == told[0].before
    assert "loka.scaled_gemm" in precision.after and "loka.scaled_gemm" in lower.before
    for stage, gone, come in (
        (precision, "aten.addmm", "loka.scaled_gemm"),
        (lower, "loka.scaled_gemm", "loka.frozen_int_mm"),
    ):
        lines = stage.diff.splitlines()
        assert lines[:2] == [f"--- before {stage.name}", f"+++ after {stage.name}"]
        assert any(line.startswith("-") and gone in line for line in lines)
        assert any(line.startswith("+") and come in line for line in lines)
    assert replace(precision, after=precision.before).diff == ""


def test_rewrites_and_rejects_cover_every_site(told):
    for record, rewritten in zip(told, (["a#0:output"], ["a#0:output", "a#0:grad_weight"]), strict=True):
        precision = next(stage for stage in record.stages if stage.name == "precision")
        assert [rewrite.site for rewrite in precision.rewrites] == rewritten
        assert {r.site for r in (*precision.rewrites, *precision.rejects)} == {site.key for site in record.sites}
        assert sorted(record.kernels) == sorted(rewritten)
        assert all(reject.reason for reject in precision.rejects)


def test_sites_are_those_before_any_pass(told):
    assert [site.key for site in told[0].sites] == ["a#0:output", "self#0:output", "b#0:output"]
    assert {site.key for site in told[0].sites} < {site.key for site in told[1].sites}


def test_the_planned_kernels_are_in_the_generated_code(told, case):
    assert told[0].kernels == {"a#0:output": "loka.frozen_int_mm"}
    assert told[1].kernels == {"a#0:output": INT_MM, "a#0:grad_weight": INT_MM}
    assert [record.missing for record in told] == [(), ()]
    assert INT_MM in graphs_of(case.compiled)[1].source_code


def test_told_twice_it_is_the_same(told, case):
    assert loka.records(case.compiled) == told


def test_the_telling_leaves_the_model_and_torch_as_they_were(case):
    weights = copy.deepcopy(case.model.state_dict())
    with torch.no_grad():
        before = case.compiled(case.x)
        loka.records(case.compiled)
        assert torch.is_grad_enabled() is False
        assert torch.equal(case.compiled(case.x), before)
    assert all(torch.equal(weights[name], value) for name, value in case.model.state_dict().items())
    assert len(graphs_of(case.compiled)) == 2  # nothing was compiled again


def test_a_kernel_that_the_code_lacks_is_missing(case, doctored):
    graph = doctored(
        graphs_of(case.compiled)[0], lambda code: code.replace("loka.frozen_int_mm", "loka.something_else")
    )
    assert rebuild(graph, "graph_0").missing == ("loka.frozen_int_mm",)


def test_one_call_too_few_is_missing(case, doctored):
    call = f"torch.ops.{INT_MM}.default(" if "." in INT_MM else f"extern_kernels.{INT_MM}("
    graph = doctored(graphs_of(case.compiled)[1], lambda code: code.replace(call, "other(", 1))
    assert rebuild(graph, "graph_1").missing == (INT_MM,)


def test_a_backward_that_is_not_compiled_yet_is_pending_not_missing(case):
    graph = graphs_of(case.compiled)[1]
    forward = replace(graph, artifacts=[a for a in graph.artifacts if not a.fx_kwargs["is_backward"]])
    record = rebuild(forward, "graph_1")
    assert (record.missing, record.pending) == ((), ("a#0:grad_weight",))


@pytest.mark.parametrize(
    "code",
    [
        "extern_kernels._int_mm(a, b, out=c)",
        "c = torch.ops.aten._int_mm.default(a, b)",
        "AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__int_mm_out(c, a, b));",
        "aoti_torch_cuda__int_mm_out(c, a, b);",
    ],
)
def test_calls_of_an_aten_kernel(code):
    assert missing_kernels({"a": "_int_mm"}, code) == []
    assert missing_kernels({"a": "_int_mm", "b": "_int_mm"}, code) == ["_int_mm"]
    assert missing_kernels({"a": "mm"}, code) == ["mm"]


@pytest.mark.parametrize(
    "code",
    [
        "buf = torch.ops.loka.frozen_gemm.default(a)",
        "torch.ops.loka.frozen_gemm.out(a, out=buf)",
        'aoti_torch_call_dispatcher("loka::frozen_gemm", "out", dispatch_vars.data())',
        'aoti_torch_call_dispatcher("loka::frozen_gemm", "", dispatch_vars.data())',
        'findSchemaOrThrow("loka::frozen_gemm", "");',
    ],
)
def test_calls_of_a_loka_kernel(code):
    assert missing_kernels({"a": "loka.frozen_gemm"}, code) == []


def test_a_kernel_named_in_a_comment_or_in_an_assertion_is_not_called():
    code = (
        '# Source Nodes: [_int_mm], Original ATen: [aten._int_mm]\nassert_size(b, "torch.ops.loka.frozen_gemm.default")'
    )
    assert missing_kernels({"a": "_int_mm", "b": "loka.frozen_gemm"}, code) == ["_int_mm", "loka.frozen_gemm"]


@pytest.mark.parametrize("ask", [loka.records, loka.plan, loka.explain])
def test_without_a_compiled_graph_there_is_a_clear_error(ask, case):
    with pytest.raises(ValueError, match="call the compiled model once"):
        ask(torch.compile(torch.nn.Linear(3, 3), backend="loka"))
    with pytest.raises(ValueError, match=r"torch\.compile"):
        ask(case.model)
