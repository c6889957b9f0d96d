"""Which values of a Dynamo graph cannot be moved, as somebody writes to their memory: asked of PyTorch, once a graph.

A pattern that is matched node by node reads every value as it was when its node ran. That is true of a value nobody
writes to. It is true as well where an activation in place is the only one to look at a fresh value from then on: all
later readers go through the activation's own node. Any other write (by an index, a mask, a view, `out=`, into an input
or a buffer) makes the nodes of that memory unfit for patterns.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from loka_compile.graph.facts import Reading
from loka_compile.graph.reader import read

WRITER, ANY_WRITER, REGION = "loka_writer", "loka_any_writer", "loka_region"
"""In a node's metadata: who writes to its memory, or why that is not known, with and without the activations in place
that patterns need not mind; and where it runs (compat.Region)."""


def mark(graph: fx.Graph) -> None:
    """Note on every node who writes to its memory. Nodes that were noted before keep it; new ones make it anew."""
    nodes = [node for node in graph.nodes if node.op != "output"]
    if all(WRITER in node.meta for node in nodes):
        return
    reading = read(graph)
    writers = writers_of(reading)
    for node in nodes:
        node.meta[WRITER] = reading.reason or writers.get(node, "")
        anybody = [w.name for memory in reading.memory(node) for w in reading.writers.get(memory, ())]
        node.meta[ANY_WRITER] = node.meta[WRITER] or next(iter(anybody), "")
        node.meta[REGION] = reading.facts[node].region if node in reading.facts else None


def writers_of(reading: Reading) -> dict[fx.Node, str]:
    """By node, the name of somebody who writes to its memory; for a node that could not be read, why not."""
    found = {node: fact.reason for node, fact in reading.facts.items() if fact.reason}
    bad = {memory: next((w.name for w in writers if not _unnoticed(reading, memory, w)), "")
           for memory, writers in reading.writers.items()}  # fmt: skip
    for node in reading.facts:
        for memory in reading.memory(node):
            if bad.get(memory):
                found.setdefault(node, bad[memory])
    return found


def _unnoticed(reading: Reading, memory: int, writer: fx.Node) -> bool:
    """Whether the writer alone reads this fresh memory before the write, and all others through its node after it.

    A reader before the write may save what it read for its gradient, as a norm does and its parts do not; autograd then
    refuses the write.
    """
    from loka_compile.graph.torch_ops import in_place

    before = [node for node in reading.facts if node < writer and memory in reading.memory(node)]
    if not in_place(writer) or "out" in writer.kwargs or memory not in reading.memory(writer):
        return False
    fresh = all(node.op in ("call_function", "call_method") for node in before)
    return fresh and {user for node in before for user in node.users} <= {writer, *before}


def written(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory somebody writes to, or of which that is not known."""
    mark(graph)
    return {node for node in graph.nodes if node.meta.get(WRITER)}


def written_at_all(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory is written by anybody, activations in place included."""
    reading = read(graph)
    if reading.reason:
        return set(graph.nodes)
    return {node for node, fact in reading.facts.items()
            if fact.reason or any(map(reading.writers.get, fact.memory))}  # fmt: skip


def reason_against(nodes: Iterable[fx.Node]) -> str:
    """Why these nodes are not one computation: somebody writes to one of them, or they run in several regions."""
    nodes = list(nodes)
    for node in nodes:
        if writer := node.meta.get(WRITER):
            return f"{node.name} is written to in place ({writer})"
    regions = {node.meta.get(REGION) for node in nodes if node.op in ("call_function", "call_method")} - {None}
    return "gradients or autocast are switched between its parts" if len(regions) > 1 else ""


def between(last: fx.Node, start: fx.Node) -> list[fx.Node]:
    """`last`, `start` and the nodes from one to the other, `start` the only way in."""
    found, todo = {last: None, start: None}, [last]
    while todo:
        node = todo.pop()
        for each in node.all_input_nodes if node is not start else ():
            if each not in found:
                found[each] = None
                todo.append(each)
    return list(found)
