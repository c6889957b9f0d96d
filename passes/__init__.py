"""The pipeline: which pass runs on which graph, in order. One file a pass; see base.py for what a pass is.

    joint       the inference graph, or forward and backward in one, in ATen operators
    post_grad   the inference graph, or the forward and the backward graph after partitioning
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loka_compile.passes.base import Context, Pass, PassResult, Reject, Rewrite
from loka_compile.passes.lower import Lower
from loka_compile.passes.precision import Precision

__all__ = ["PIPELINE", "Context", "Pass", "PassResult", "Pipeline", "Reject", "Rewrite"]


@dataclass(frozen=True)
class Pipeline:
    joint: tuple[Pass, ...]
    post_grad: tuple[Pass, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in (*self.joint, *self.post_grad))

    def select(self, enabled: Mapping[str, bool]) -> Pipeline:
        """Without the passes that are switched off by name."""
        on = lambda passes: tuple(p for p in passes if enabled.get(p.name, True))  # noqa: E731
        return Pipeline(on(self.joint), on(self.post_grad))


PIPELINE = Pipeline(
    joint=(Precision(),),
    post_grad=(Lower(),),
)
