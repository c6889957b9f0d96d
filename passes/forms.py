"""The forms of one Dynamo graph: as the user asked for it, and as exact algebra makes it, which is what is compiled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.passes import Pipeline
from loka_compile.passes.adapt.adapting import adapting
from loka_compile.passes.base import Context
from loka_compile.passes.dynamo import Change, Read, rewritten
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.trial import planning
from loka_compile.trial.budget import Trial

Trials = tuple[Trial, Trial]
"""Of the form that was asked for, and of the last."""


@dataclass(frozen=True, eq=False)
class Forms:
    """asked_for: with what options change of the model, by `adapted`; it is the graph that runs in eager. last: what
    `simplified` and `raised` make of that."""

    asked_for: Read
    last: Read
    adapted: tuple[Change, ...]
    simplified: tuple[Change, ...]
    raised: tuple[Change, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """All that made the last form."""
        return *self.adapted, *self.simplified, *self.raised

    @property
    def is_simpler(self) -> bool:
        return _did(self.simplified)

    def undone(self, reason: str) -> tuple[fx.GraphModule, tuple[Change, ...]]:
        """The form that was asked for, with exact algebra taken back for this reason."""
        return self.asked_for.gm, (*self.adapted, *(change.undone(reason) for change in self.simplified))

    def trials_on(self, inputs: Sequence[Any], written: Collection[int]) -> Trials:
        """Trials of both forms. written: places of the inputs that they write."""
        return Trial(self.asked_for.gm, inputs, written), Trial(self.last.gm, inputs, written)


def forms_of(
    came: Read, inputs: Sequence[Any], pipeline: Pipeline, chosen: Options, device: str, training: bool
) -> tuple[Forms, Trials]:
    """Run the passes on a Dynamo graph: those that make the model the user asked for, then those that only make it
    faster. training: the graph will have a backward. Returns trials on these inputs too."""
    context = Context(Plan(chosen.target, {}), device, training)
    asked_for, adapted = rewritten(came, pipeline.writing(adapting(chosen, compat.is_whole(came.gm))), context)
    of_asked = Trial(asked_for.gm, inputs, came.reading.written_inputs())
    simpler, simplified, trial = simplify(asked_for, of_asked, pipeline, chosen, context)
    last, raised = rewritten(simpler, pipeline.raising, context)
    trial = trial.of(last.gm) if _did(raised) else trial
    return Forms(asked_for, last, adapted, simplified, raised), (of_asked, trial)


def simplify(
    asked_for: Read, trial: Trial, pipeline: Pipeline, chosen: Options, context: Context
) -> tuple[Read, tuple[Change, ...], Trial]:
    """The graph after the passes of exact algebra, what they changed, and a trial of the result.

    A pass is undone where it costs the plan that was given a GEMM that the plan lowers, or the profile that was given a
    GEMM that the profile knows. trial: of the graph as it was asked for.
    """
    given = chosen.plan or chosen.profile
    target, graph = given.target if isinstance(given, Plan) else chosen.target, asked_for
    changes: list[Change] = []
    context = replace(context, plan=Plan(target, {}))
    for each in pipeline.simplify:
        simpler, made = rewritten(graph, (each,), context)
        if _did(made):
            after = trial.of(simpler.gm)
            if given is not None and (reason := planning.lost(given, trial, after)):
                simpler, made = graph, tuple(change.undone(f"undone, as {reason}") for change in made)
            else:
                trial = after
        graph = simpler
        changes += made
    return graph, tuple(changes), trial


def _did(changes: Sequence[Change]) -> bool:
    return any(change.result.rewrites for change in changes)
