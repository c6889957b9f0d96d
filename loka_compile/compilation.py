"""One graph on its way to code: its plan is settled, raced and compiled.

A graph that learns online comes here again and again, with what its calls have told; any other once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from loka_compile import compat
from loka_compile.dispatch.progress import progress
from loka_compile.inspect.compiled import CompiledGraph
from loka_compile.inspect.traced import trace
from loka_compile.inspect.versions import source_fingerprint
from loka_compile.passes import Pipeline
from loka_compile.passes.forms import Forms, Trials
from loka_compile.passes.stages import Stages
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.trial import planning
from loka_compile.trial.budget import Trial
from loka_compile.trial.eager import eager_or_compiled
from loka_compile.trial.floor import floor_of
from loka_compile.trial.race import Built, Raced, never_slower, simplified_or_written

Asked = tuple[str | None, dict[str, Any]]
"""The `mode` and `options` of the user's torch.compile call."""


@dataclass(frozen=True, eq=False)
class Compilation:
    """forms: of the graph. trials: of these, on the inputs it came with; None if its plan is learned from its calls,
    `online`, as each compilation then has inputs of its own. written: places of the inputs that it writes."""

    forms: Forms
    trials: Trials | None
    written: Collection[int]
    device: str
    pipeline: Pipeline
    chosen: Options
    asked: Asked
    online: bool

    def make(
        self,
        given: Options,
        inputs: Sequence[Any],
        demoted: Mapping[str, str] = MappingProxyType({}),
        settled: Callable[[Plan], Plan] = lambda plan: plan,
        tangents: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[Callable[..., Any], CompiledGraph]:
        """What is called, and its record.

        given: options, with the plan or profile to go by. demoted: by site, why it must not be lowered. settled: what
        becomes of the plan that won. tangents: gradients of the graph's outputs that were seen.
        """
        began = time.perf_counter()
        of_asked, trial = self.trials or self.forms.trials_on(inputs, self.written)
        final, changes = self.forms.last.gm, self.forms.changes
        with progress():
            bench = planning.Bench(trial, self._lower, self.device, tangents)
            plans = planning.settle(given, bench, demoted, self.online)
            raced = self._never_slower(plans, inputs, trial)
            if self.forms.is_simpler:
                raced, reason = self._simpler_or_as_asked(raced, inputs, of_asked)
                final, changes = self.forms.undone(reason) if reason else (final, changes)
            ran = self._eager_or_compiled(raced, inputs)
        plan = settled(raced.plan)
        if ran.built is not raced.built:
            if final is not self.forms.asked_for.gm:
                final, changes = self.forms.undone(ran.plan.raced)
            plan = replace(ran.plan, origin=plan.origin)
        graph = self.record(final, inputs, self.stages_of(plan), changes)
        call, graph.artifacts = ran.built
        graph.said = (ran.eager,) if ran.eager else ()
        graph.seconds = time.perf_counter() - began
        trace(graph)
        return call, graph

    def unplanned(self, inputs: Sequence[Any]) -> CompiledGraph:
        """The record of a graph that has no plan yet."""
        plan = Plan(self.chosen.target, {}, origin="nothing yet")
        stages = Stages(self.pipeline, plan, self.device)
        return self.record(self.forms.last.gm, inputs, stages, self.forms.changes)

    def record(self, gm: fx.GraphModule, inputs: Sequence[Any], stages: Stages, changes: Any) -> CompiledGraph:
        return CompiledGraph.of(gm, inputs, self.chosen, stages, self.asked, changes)

    def stages_of(self, plan: Plan) -> Stages:
        return Stages(self.pipeline, plan, self.device, pinned=self.chosen.plan is not None)

    def _lower(self, plan: Plan, graph: fx.Graph) -> None:
        self.stages_of(plan).joint(graph)

    def _build(self, gm: fx.GraphModule, inputs: Sequence[Any], plan: Plan) -> Built:
        """Hand a form of the graph to AOTAutograd and Inductor, our passes in their two hooks."""
        stages, chosen = self.stages_of(plan), self.chosen
        return compat.compile_inductor(
            compat.copy_dynamo_graph(gm),
            inputs,
            joint=stages.joint,
            post_grad=stages.post_grad,
            uuid=f"{source_fingerprint()}-{plan.fingerprint}-{chosen.fingerprint}",
            patches={**compat.faster_norms(), **compat.mode_patches(chosen.mode), **chosen.inductor},
        )

    def _never_slower(self, plans: Sequence[Plan], inputs: Sequence[Any], trial: Trial) -> Raced:
        build, floor = partial(self._build, self.forms.last.gm, inputs), floor_of(trial, inputs)
        return never_slower(plans, build, inputs, self.chosen, self.device, self.written, floor, self.online)

    def _simpler_or_as_asked(self, raced: Raced, inputs: Sequence[Any], of_asked: Trial) -> tuple[Raced, str]:
        """The faster of the two forms, and why what exact algebra did is undone; empty if it is not."""
        asked_for, last = self.forms.asked_for.gm, self.forms.last.gm
        build, floor = partial(self._build, asked_for, inputs), floor_of(of_asked, inputs)
        code = asked_for.code + last.code
        raced, ratio = simplified_or_written(raced, build, code, inputs, self.chosen, self.device, self.written, floor)
        slower = f"what it did was slower than the graph as written: {ratio:.2f}x its speed, measured here"
        return raced, slower if ratio < 1 else ""

    def _eager_or_compiled(self, raced: Raced, inputs: Sequence[Any]) -> Raced:
        of = self.forms.asked_for
        return eager_or_compiled(raced, of.gm, of.reading, inputs, self.chosen, self.device, self.written)
