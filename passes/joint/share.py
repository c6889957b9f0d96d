"""share: equal views and copies of one tensor become one, so that the GEMMs that read them share one quantization.

Three linears over `x.transpose(1, 2)` copy the transpose three times, and `precision` would quantize three copies.
AOTAutograd removes such repetitions only when it partitions a joint graph, after `precision` has run; in inference
nothing removes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from loka_compile.graph.nodes import LAYOUT
from loka_compile.graph.sites import GEMMS, operands
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite


@dataclass(frozen=True)
class Share:
    name: ClassVar[str] = "share"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        """Merge only what GEMMs read: Inductor fuses other views into their readers, and a copy that lives longer costs
        memory. Not what is returned: who writes to one copy would write to the other."""
        first: dict[object, fx.Node] = {}
        rewrites = []
        read = _read_by_gemms(graph) - _returned(graph)
        for node in list(graph.nodes):
            if node not in read:
                continue
            original = first.setdefault(_written(node), node)
            if original is not node:
                node.replace_all_uses_with(original)
                graph.erase_node(node)
                rewrites.append(Rewrite(node.name, f"is {original.name}"))
        graph.lint()
        return PassResult(tuple(rewrites))


def _read_by_gemms(graph: fx.Graph) -> set[fx.Node]:
    """The views and copies between a tensor and the GEMMs that read it."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target in GEMMS:
            for operand in operands(node)[:2]:
                while operand not in found and operand.op == "call_function" and operand.target in LAYOUT:
                    found.add(operand)
                    operand = operand.all_input_nodes[0]
    return found


def _returned(graph: fx.Graph) -> set[fx.Node]:
    """The views and copies whose memory the graph returns."""
    found: set[fx.Node] = set()
    pending = list(graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        if node not in found and node.op == "call_function" and node.target in LAYOUT:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _written(node: fx.Node) -> object:
    """A key: equal for nodes that compute the same from the same inputs. A forward's node and a backward's never share
    one."""
    return node.target, repr((node.args, node.kwargs)), node.meta.get("partitioner_tag")
