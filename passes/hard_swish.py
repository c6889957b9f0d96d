"""hard_swish: x * clamp(x + 3, 0, 6) / 6 for SiLU, which the swish gate n * sigmoid(n) is once canonicalized.

LoKA Mods: no exponential, bounded pieces, outliers are not amplified, and it fuses with BlockNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import fx
from torch.nn import functional as F

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply


@dataclass(frozen=True)
class HardSwish:
    name: ClassVar[str] = "hard_swish"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


def pattern(reading: Reading, node: fx.Node) -> fx.Node | None:
    return node if reading.op(node) == "silu" else None


def check(reading: Reading, node: fx.Node) -> str:
    """Why it stays; empty if it goes."""
    return "it writes in place" if reading.facts[node].writes else ""


def rewrite(reading: Reading, node: fx.Node) -> Rewrite:
    new = replace(reading, node, emit(reading, node, F.hardswish, reading.arg(node, "self")))
    return Rewrite(module_name(new), "hard swish")
