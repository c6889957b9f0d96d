"""The pipeline bound to one plan: the two functions that go into Inductor's hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import fx

from loka_compile.dispatch import timing
from loka_compile.dispatch.pin import check_model
from loka_compile.graph.sites import annotate
from loka_compile.passes import GraphPass, PassResult, Pipeline
from loka_compile.passes.base import Context, run
from loka_compile.spec.plan import Plan
from loka_compile.spec.target import TARGETS

Watch = Callable[[str, fx.Graph, Callable[[], PassResult]], None]
"""Called with a pass's name, the graph, and a function that runs the pass on it. A record compares the graph before and
after."""


@dataclass(frozen=True)
class Stages:
    """The two functions that Inductor calls, on the joint graph and after partitioning.

    pinned: the user gave the plan, so `joint` raises PlanError for a graph the plan was not made for.
    """

    pipeline: Pipeline
    plan: Plan
    device: str
    pinned: bool = False

    def joint(self, graph: fx.Graph, watch: Watch | None = None) -> None:
        if self.pinned:
            check_model(self.plan, [gemm.site for gemm in annotate(graph)])
        self._run(self.pipeline.joint, graph, watch)

    def post_grad(self, graph: fx.Graph, watch: Watch | None = None) -> None:
        self._run(self.pipeline.post_grad, graph, watch)

    def _run(self, passes: tuple[GraphPass, ...], graph: fx.Graph, watch: Watch | None) -> None:
        context = Context(self.plan, self.device)
        if self.device == "cpu" and TARGETS[self.plan.target].measured:
            context = replace(context, by_onednn=timing.float_mm_pays)
        for each in passes:
            if watch is None:
                run(each, graph, context)
            else:
                watch(each.name, graph, partial(run, each, graph, context))
