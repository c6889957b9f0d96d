"""Compiled once for all tests of this folder: generating code is what takes the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from loka_compile.inspect.compiled import CompiledGraph
from loka_compile.spec.decision import KEEP, Candidate, Decision, Score
from loka_compile.spec.plan import Plan


class Net(nn.Module):
    """Two linears that are sites of their own name, and a batched product."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 48)
        self.b = nn.Linear(48, 16)

    def forward(self, x):
        tokens = self.a(x).relu().view(-1, 3, 16)
        gram = tokens @ tokens.transpose(1, 2)
        return self.b(tokens.flatten(1)).sum(1) + gram.flatten(1).sum(1)


@dataclass
class Case:
    """model and x; plan: int8 for the linears, `b` kept; compiled: run in inference, then in training."""

    model: nn.Module
    x: torch.Tensor
    plan: Plan
    compiled: Any


REJECTED = (
    (Candidate("bf16", "aten"), "0.50x, wanted 1.05x (200 us against 100)"),
    (Candidate("fp16", "emulated"), "emulation has no speed"),
    (Candidate("bf16", "emulated"), "emulation has no speed"),
)
TOO_INACCURATE = "no candidate within budget; int8_rowwise/aten: MERE 0.3, budget 0.2"


def scored(decision: Decision, source: str) -> Decision:
    """With numbers: 100 us before, 40 us after."""
    scores = {KEEP: Score(time_us=100.0, time_source=source)}
    if decision.lowered:
        scores[str(decision.chosen)] = Score(0.0213, 33.21, 0.00001, 40.0, source)
    reason = "fastest within budget, 2.50x" if decision.lowered else TOO_INACCURATE
    return replace(decision, reason=reason, scores=scores, rejected=REJECTED)


def plan_of(plan: Plan, source: str, **changes: Decision) -> Plan:
    return replace(plan, decisions={k: scored(d, source) for k, d in {**plan.decisions, **changes}.items()})


@pytest.fixture(scope="module")
def clean():
    """Nothing compiled before the first fixture; a reset between two would make loka forget the first."""
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def case(clean, plan_for):
    model, x = Net(), torch.randn(8, 32)
    plan = plan_for("int8_rowwise", model, x, only=lambda site: site.op != "bmm" and site.fqn == "a")
    plan = plan_of(plan, "measured on this CPU")
    compiled = torch.compile(model, backend="loka", options={"plan": plan})
    with torch.no_grad():
        compiled(x)
    compiled(x).sum().backward()
    return Case(model, x, plan, compiled)


@pytest.fixture(scope="module")
def on_h100(clean, plan_for):
    """The same for an H100 in FP8, in inference: `a` goes to aten, which has no batched kernel for the other."""
    model, x = Net(), torch.randn(8, 32)
    plan = plan_for("fp8_rowwise", model, x, target="h100")
    forward = {key: decision for key, decision in plan.decisions.items() if decision.site.role == "output"}
    del forward["b#0:output"]
    plan = plan_of(replace(plan, decisions=forward, origin="profile [0123]"), "modelled: roofline h100")
    compiled = torch.compile(model, backend="loka", options={"plan": plan})
    with torch.no_grad():
        compiled(x)
    return Case(model, x, plan, compiled)


@pytest.fixture
def doctored():
    """doctored(graph, edit): a compiled graph whose generated code went through `edit`."""

    def doctor(graph: CompiledGraph, edit: Callable[[str], str]) -> CompiledGraph:
        codes = [edit(artifact.source_code) for artifact in graph.artifacts]
        kwargs = [artifact.fx_kwargs for artifact in graph.artifacts]
        assert "".join(codes) != "".join(artifact.source_code for artifact in graph.artifacts), "the edit found nothing"
        return replace(
            graph, artifacts=[SimpleNamespace(source_code=c, fx_kwargs=k) for c, k in zip(codes, kwargs, strict=True)]
        )

    return doctor
