"""Every refusal reaches explain: at a GEMM in its row, elsewhere as a note, a pass that was skipped once for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

import loka_compile as loka
from loka_compile.inspect.notes import _left, refusals_of, skipped
from loka_compile.inspect.records import records
from loka_compile.passes import PIPELINE, Context, PassResult
from loka_compile.passes.base import rejected, run
from loka_compile.passes.post_grad.thin import Thin
from loka_compile.spec.plan import Plan


@pytest.fixture
def told(case):
    return records(case.compiled)


@pytest.fixture
def record(told):
    """The inference record, with a refusal of fuse at its first GEMM, and one at a node that is no GEMM."""
    (first, *_), stages = told[0].sites, list(told[0].stages)
    at = next(place for place, stage in enumerate(stages) if stage.name == "fuse")
    results = rejected(first.key, "N = 17"), replace(rejected("norm.1", "read by add_3"), node="norm_quantize_2")
    stages[at] = replace(stages[at], rejects=tuple(replace(each, pass_name="fuse") for each in results))
    return replace(told[0], stages=tuple(stages))


def test_a_refusal_at_a_gemm_is_in_its_row(record):
    first, second, *_ = record.sites
    assert list(refusals_of(first, record))[-1] == "fuse: N = 17"
    assert not any("fuse" in text for text in refusals_of(second, record))


def test_any_other_refusal_is_a_note(record):
    assert list(_left(record)) == ["fuse: norm.1 (norm_quantize_2) not: read by add_3"]


def test_the_runner_says_what_it_skipped_and_files_refusals_under_the_pass():
    graph = fx.symbolic_trace(lambda x: x.relu()).graph
    (reject,) = run(Thin(), graph, Context(Plan("cpu", {}), "cpu")).rejects
    assert (reject.pass_name, reject.site, reject.node) == ("thin", "", "") and "cpu" in reject.reason

    class Refusing(Thin):
        def __call__(self, graph, context):
            return PassResult(rejects=(rejected(next(iter(graph.nodes)), "because"),))

    (reject,) = run(Refusing(), graph, Context(Plan("cpu", {}), "cuda")).rejects
    assert (reject.pass_name, reject.site, reject.node, reject.reason) == ("thin", "self", "x", "because")


def test_skipped_passes_are_said_once(told):
    (line,) = skipped(told)
    names = line.partition(":")[0].split(", ")
    assert sorted(names) == sorted(p.name for stage in PIPELINE.stages for p in stage if p.runs_on == ("cuda",))


@pytest.mark.usefixtures("fresh_dynamo")
def test_explain_shows_it(op_by_op):
    compiled = torch.compile(torch.nn.Linear(8, 8), backend="loka", options={"race": False, "recipes": ()})
    with torch.no_grad():
        compiled(torch.randn(4, 8))
    assert sum("raise_norms" in note for note in loka.explain(compiled).notes) == 1
