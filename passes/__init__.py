"""The pipeline: which pass runs on which graph, in which order. base.py says what a pass is.

    canonicalize   Dynamo's graph: one spelling for what can be written in many ways
    (adapt)        Dynamo's graph: changes of the model that the options ask for (adapt/adapting.py)
    simplify       Dynamo's graph: exact algebra, and the operators of raising.WHOLE
    raising        Dynamo's graph: norms become operators that AOTAutograd leaves whole
    joint          ATen operators: the inference graph, or forward and backward in one graph
    post_grad      ATen operators: the inference graph, or the forward and the backward after partitioning

A stage is a folder whose __init__.py lists its passes in order. To add a pass, write its file and extend that list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loka_compile.passes import joint, post_grad, raising, simplify
from loka_compile.passes.base import Context, DynamoPass, GraphPass, Pass, PassResult, Reject, Rewrite
from loka_compile.passes.simplify.canonicalize import Canonicalize

__all__ = ["PIPELINE", "Context", "Pass", "PassResult", "Pipeline", "Reject", "Rewrite"]


@dataclass(frozen=True)
class Pipeline:
    canonicalize: tuple[DynamoPass, ...]
    simplify: tuple[DynamoPass, ...]
    raising: tuple[DynamoPass, ...]
    joint: tuple[GraphPass, ...]
    post_grad: tuple[GraphPass, ...]

    @property
    def stages(self) -> tuple[tuple[Pass[Any], ...], ...]:
        return self.canonicalize, self.simplify, self.raising, self.joint, self.post_grad

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for stage in self.stages for p in stage)

    def select(self, enabled: Mapping[str, bool]) -> Pipeline:
        """The pipeline without the passes that `enabled` maps to False."""
        on = lambda passes: tuple(p for p in passes if enabled.get(p.name, True))  # noqa: E731
        return Pipeline(*map(on, self.stages))

    def writing(self, adapting: tuple[DynamoPass, ...]) -> tuple[DynamoPass, ...]:
        """The passes that make the model the user asked for. `simplify` and later stages only make it faster."""
        return *self.canonicalize, *adapting


PIPELINE = Pipeline(
    canonicalize=(Canonicalize(),),
    simplify=(*simplify.PASSES, *raising.WHOLE),
    raising=raising.PASSES,
    joint=joint.PASSES,
    post_grad=post_grad.PASSES,
)
