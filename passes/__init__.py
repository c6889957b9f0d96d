"""The pipeline: which pass runs on which graph, in order. One file a pass; see base.py for what a pass is.

canonicalize   the Dynamo graph: one form for what can be written in many
(adapt)        what the options ask for: adapting.py
simplify       the Dynamo graph: exact algebra, and what a kernel of ours does whole
raising        the Dynamo graph: what AOTAutograd is to leave whole
joint          the inference graph, or forward and backward in one, in ATen operators
post_grad      the inference graph, or the forward and the backward graph after partitioning
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loka_compile.passes.base import Context, DynamoPass, GraphPass, Pass, PassResult, Reject, Rewrite
from loka_compile.passes.joint.fold_dropout import FoldDropout
from loka_compile.passes.joint.precision import Precision
from loka_compile.passes.joint.share import Share
from loka_compile.passes.post_grad.fuse import Fuse
from loka_compile.passes.post_grad.fuse_backward import FuseBackward
from loka_compile.passes.post_grad.fuse_cast import FuseCast
from loka_compile.passes.post_grad.lower import Lower
from loka_compile.passes.post_grad.thin import Thin
from loka_compile.passes.raising.raise_fm import RaiseFm
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.raising.raise_pffn import RaisePffn
from loka_compile.passes.simplify.batch import Batch
from loka_compile.passes.simplify.canonicalize import Canonicalize
from loka_compile.passes.simplify.hoist import Hoist
from loka_compile.passes.simplify.merge import Merge
from loka_compile.passes.simplify.mix_tokens import MixTokens
from loka_compile.passes.simplify.reassociate import Reassociate

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
    simplify=(Hoist(), Merge(), Batch(), Reassociate(), MixTokens(), RaiseGdpa(), RaisePffn(), RaiseFm()),
    raising=(RaiseNorms(),),
    joint=(FoldDropout(), Share(), Precision()),
    post_grad=(Fuse(), FuseBackward(), FuseCast(), Thin(), Lower()),
)
