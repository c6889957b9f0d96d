"""hard_swish: x * clamp(x + 3, 0, 6) / 6 for SiLU, which the swish gate n * sigmoid(n) is once canonicalized.

LoKA Mods: no exponential, bounded pieces, outliers are not amplified, and it fuses with BlockNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite

SILU, HARD_SWISH = torch.nn.functional.silu, torch.nn.functional.hardswish


@dataclass(frozen=True)
class HardSwish:
    name: ClassVar[str] = "hard_swish"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites = []
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target is not SILU:
                continue
            with graph.inserting_before(node):
                new = graph.call_function(HARD_SWISH, node.args, node.kwargs)  # in place where it was
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            rewrites.append(Rewrite(module_name(new), "hard swish"))
        graph.lint()
        return PassResult(tuple(rewrites))
