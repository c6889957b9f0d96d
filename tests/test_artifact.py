"""FP8 that silently did not happen: the planned kernels are in the code that Inductor generated, or a record says so.

The evidence is the artifact (`CompiledGraph.source_code`), never what a pass believes it did.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.inspect.compiled import graphs_of
from loka_compile.inspect.records import missing_kernels
from tests.helpers import INT_MM

FROZEN = {"int8_rowwise": "loka.frozen_int_mm", "bf16": "loka.frozen_mm"}
TRAINED = {"int8_rowwise": INT_MM, "bf16": "mm[bfloat16]", "fp8_blockwise": "loka.scaled_gemm"}
RECIPES = ["int8_rowwise", "bf16", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise"]


class Model(nn.Module):
    """Two linears whose six GEMMs of a training step are all there, as the input wants a gradient too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 48)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module", params=RECIPES)
def compiled(request, plan_for):
    """(recipe, plan, inference code, training code), all really generated."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Model(), torch.randn(16, 32, requires_grad=True)
    plan = plan_for(request.param, model, x)
    runs = [torch.compile(model, backend="loka", options={"plan": plan, "max_mere": 0.2 + 0.1 * i}) for i in (0, 1)]
    with torch.no_grad():
        runs[0](x)
    runs[1](x).square().sum().backward()
    yield request.param, plan, *runs
    torch._dynamo.reset()


def calls(kernel, code):
    """The calls of an operator, as they are written in Inductor's wrapper code."""
    kernel = kernel.removesuffix("[bfloat16]")
    return re.findall(rf"(?:extern_kernels|torch\.ops(?:\.aten)?)\.{re.escape(kernel)}(?:\.default|\.out)?\(", code)


def count(kernel, code):
    return len(calls(kernel, code))


def test_every_planned_kernel_of_an_inference_graph_is_in_its_code(compiled):
    recipe, _, run, _ = compiled
    (record,) = loka.records(run)
    kernel = FROZEN.get(recipe, "loka.frozen_gemm")
    assert record.kernels == {"first#0:output": kernel, "second#0:output": kernel}
    assert record.missing == ()
    (graph,) = graphs_of(run)
    assert count(kernel, graph.source_code) == 2
    assert count("mm", graph.source_code) == count("addmm", graph.source_code) == 0  # nothing was left as it was


def test_every_planned_kernel_of_a_training_step_is_in_its_code(compiled):
    recipe, plan, _, run = compiled
    (record,) = loka.records(run)
    kernel = TRAINED.get(recipe, "_scaled_mm")
    assert len(plan.decisions) == 6
    assert record.kernels == dict.fromkeys(plan.decisions, kernel)
    assert record.missing == ()
    (graph,) = graphs_of(run)
    assert count(kernel, graph.source_code) == 6
    assert count("addmm", graph.source_code) == 0
    assert recipe == "bf16" or count("mm", graph.source_code) == 0


def test_operands_have_the_planned_format_in_the_generated_code(compiled):
    recipe, _, _, run = compiled
    (graph,) = graphs_of(run)
    wanted = {
        "int8_rowwise": ["torch.int8"],
        "bf16": ["torch.bfloat16"],
        "fp8_tensorwise": ["torch.float8_e4m3fn", "torch.float8_e5m2"],  # gradients want range more than precision
    }.get(recipe, ["torch.float8_e4m3fn"])
    assert all(name in graph.source_code for name in wanted)


def test_the_check_notices_a_kernel_that_is_not_there(compiled):
    _, _, run, trained = compiled
    for each in (run, trained):
        (record,), (graph,) = loka.records(each), graphs_of(each)
        (kernel,) = set(record.kernels.values())
        code = graph.source_code
        call = calls(kernel, code)[0]
        assert missing_kernels(record.kernels, code) == []
        assert missing_kernels(record.kernels, code.replace(call, "fallback(")) == [kernel]
        assert missing_kernels(record.kernels, code.replace(call, "fallback(", 1)) == [kernel]  # even of one
        assert missing_kernels(record.kernels, code.replace(call, f"# {call}", 1)) == [kernel]  # or a comment
        assert missing_kernels(record.kernels, "") == [kernel]


def test_a_16_bit_product_that_stayed_float32_is_noticed(compiled):
    """Its call looks the same: what it writes to tells."""
    recipe, _, _, trained = compiled
    if recipe == "bf16":
        (record,), (graph,) = loka.records(trained), graphs_of(trained)
        wide = graph.source_code.replace("torch.bfloat16)", "torch.float32)", 3)
        assert missing_kernels(record.kernels, wide) == ["mm[bfloat16]"]


def test_a_doctored_artifact_shows_in_the_record(compiled):
    _, _, run, _ = compiled
    (graph,) = graphs_of(run)
    (artifact,) = graph.artifacts
    honest = artifact.source_code
    (kernel,) = set(loka.records(run)[0].kernels.values())
    try:
        artifact.source_code = honest.replace(kernel, "aten.mm")
        assert loka.records(run)[0].missing == (kernel,)
    finally:
        artifact.source_code = honest
    assert loka.records(run)[0].missing == ()


def test_a_pass_that_is_switched_off_promises_nothing(plan_for, fresh_dynamo):
    model, x = Model(), torch.randn(16, 32)
    plan = plan_for("int8_rowwise", model, x)
    with torch.no_grad():
        run = torch.compile(model, backend="loka", options={"plan": plan, "passes": {"precision": False}})
        out = run(x)
        torch.testing.assert_close(out, model(x))
    (record,) = loka.records(run)
    assert record.kernels == {} and record.missing == () and "_int_mm" not in graphs_of(run)[0].source_code


def test_the_record_tells_what_the_passes_did(compiled):
    _, plan, run, trained = compiled
    (inference,), (training,) = loka.records(run), loka.records(trained)
    assert inference.training is False and training.training is True
    for record in (inference, training):
        assert "addmm" in record.before and "addmm" not in record.after
        assert {stage.name for stage in record.stages if stage.diff} == {"precision", "lower"}  # all else idles
        assert record.plan == plan
    assert {site.key for site in training.sites} == set(plan.decisions)


def test_a_plan_for_another_target_says_that_it_is_emulated(plan_for, fresh_dynamo):
    model, x = Model(), torch.randn(16, 32)
    plan = replace(plan_for("fp8_blockwise", model, x, provider="emulated"), target="h100")
    run = torch.compile(model, backend="loka", options={"plan": plan})
    with torch.no_grad():
        run(x)
    (record,) = loka.records(run)
    assert set(record.kernels.values()) == {"loka.frozen_gemm"} and record.missing == ()
    assert all("emulated" in rewrite.did for stage in record.stages for rewrite in stage.rewrites)


@pytest.mark.parametrize("inductor", [{}, {"cpp.use_two_step_variance_threshold": 1024}])
def test_variances_of_long_rows_take_two_passes_on_a_cpu(inductor):
    """Unless Inductor's own setting is asked for."""
    torch._dynamo.reset()
    model, x = nn.LayerNorm(1536), torch.randn(8, 1536)
    run = torch.compile(model, backend="loka", options={"recipes": (), "inductor": inductor, "race": False})
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x))
    (graph,) = graphs_of(run)
    assert ("welford" in graph.source_code) == bool(inductor)
