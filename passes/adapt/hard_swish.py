"""hard_swish: SiLU becomes x * clamp(x + 3, 0, 6) / 6. canonicalize has made SiLU of the swish gate n * sigmoid(n).

LoKA Mods: hard swish needs no exponential, does not amplify outliers, and fuses with BlockNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.nn import functional as F

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite


@dataclass(frozen=True)
class HardSwish:
    name: ClassVar[str] = "hard_swish"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rewrites = [rewrite(reading, node) for node in list(reading.graph.nodes) if reading.op(node) == "silu"]
        return PassResult(tuple(rewrites))


def rewrite(reading: Reading, node: fx.Node) -> Rewrite:
    """Replace SiLU by hard swish, in place if SiLU was in place."""
    in_place = bool(reading.facts[node].writes)
    new = replace(reading, node, emit(reading, node, F.hardswish, reading.arg(node, "self"), inplace=in_place))
    return Rewrite(module_name(new), "hard swish")
