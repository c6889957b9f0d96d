"""The pipeline: which pass runs on which graph, in order. One file a pass; see base.py for what a pass is.

    canonicalize   the Dynamo graph: one form for what can be written in many
    (adapt)        what the options ask for: adapt/adapting.py
    simplify       the Dynamo graph: exact algebra, and what a kernel of ours does whole
    raising        the Dynamo graph: what AOTAutograd is to leave whole
    joint          the inference graph, or forward and backward in one, in ATen operators
    post_grad      the inference graph, or the forward and the backward graph after partitioning

A stage is a folder. Its __init__.py lists its passes in order; to add one, write its file and put it in that list.
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
        """Without the passes that are switched off by name."""
        on = lambda passes: tuple(p for p in passes if enabled.get(p.name, True))  # noqa: E731
        return Pipeline(*map(on, self.stages))

    def writing(self, adapting: tuple[DynamoPass, ...]) -> tuple[DynamoPass, ...]:
        """What makes the graph that is asked for, in order, on the Dynamo graph; what simplifies it comes after."""
        return *self.canonicalize, *adapting


PIPELINE = Pipeline(
    canonicalize=(Canonicalize(),),
    simplify=(*simplify.PASSES, *raising.WHOLE),
    raising=raising.PASSES,
    joint=joint.PASSES,
    post_grad=post_grad.PASSES,
)
