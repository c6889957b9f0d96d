"""Machine code as a list of instructions, whatever the chip, and its loops."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx


@dataclass(frozen=True)
class Instruction:
    """op: opcode with its modifiers. jump: label it may go to; ends: whether it goes nowhere; always: whether it never
    goes on to the next. mma: name of a tensor-core instruction, else ""; bits: width of its operands; flops: of one
    warp's issue, or (once) of the whole program's, where one thread issues for all. access: load or store of global
    memory, else ""; width: its bits for each thread, 0 for a bulk copy by the TMA unit. local: a load or store of
    spilled registers.
    """

    op: str
    jump: str = ""
    always: bool = False
    ends: bool = False
    mma: str = ""
    bits: int = 0
    flops: int = 0
    once: bool = False
    access: str = ""
    width: int = 0
    local: bool = False


@dataclass(frozen=True, eq=False)
class Code:
    """instructions, in order; labels: name -> index of the instruction it stands before."""

    instructions: Sequence[Instruction]
    labels: Mapping[str, int]

    @cached_property
    def mma(self) -> Counter[str]:
        return self.count_mma(range(len(self.instructions)))

    def count_mma(self, indices: Iterable[int]) -> Counter[str]:
        """Tensor-core instructions by name, of these."""
        return Counter(self.instructions[i].mma for i in indices if self.instructions[i].mma)

    def widths(self, access: str) -> Counter[str]:
        """How often each width is loaded or stored: {"128": 12, "tma": 2}."""
        return Counter(str(each.width or "tma") for each in self.instructions if each.access == access)

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """The natural loops, each as the indices of its instructions; those that share a head are one."""
        _, graph, immediate = self._flow
        blocks: dict[int, set[int]] = {}
        for tail, head in graph.edges:
            if (tail == 0 or tail in immediate) and _dominates(immediate, head, tail):
                inside = set() if tail == head else nx.ancestors(nx.restricted_view(graph, [head], []), tail)
                blocks.setdefault(head, {head}).update(inside & immediate.keys(), {tail})
        return [frozenset(i for start in found for i in self._block(start)) for found in blocks.values()]

    def every_trip(self, loop: frozenset[int]) -> frozenset[int]:
        """The instructions of a loop that no trip can leave out."""
        starts, graph, immediate = self._flow
        blocks = [start for start in starts if start in loop]
        head = next(block for block in blocks if all(_dominates(immediate, block, other) for other in blocks))
        tails = [tail for tail in graph.predecessors(head) if tail in loop]
        always = [block for block in blocks if all(_dominates(immediate, block, tail) for tail in tails)]
        return frozenset(i for start in always for i in self._block(start))

    def nest(self, loop: frozenset[int]) -> list[frozenset[int]]:
        """The loops around one, outermost first, itself last."""
        return sorted((other for other in self.loops if loop <= other), key=len, reverse=True)

    @cached_property
    def main_loop(self) -> frozenset[int] | None:
        """The innermost loop with most tensor-core work; without any, the longest that reaches global memory."""
        work = {loop: sum(self.instructions[i].flops for i in loop) for loop in self.loops}
        inner = [loop for loop in work if work[loop] and not any(work[each] and each < loop for each in work)]
        if inner:
            return max(inner, key=lambda loop: (work[loop], len(loop)))
        if self.mma:
            return None
        moving = [loop for loop in self.loops if any(self.instructions[i].access for i in loop)]
        inner = [loop for loop in moving if not any(each < loop for each in moving)]
        return max(inner, key=len, default=None)

    def _block(self, start: int) -> range:
        starts = self._flow[0]
        after = bisect.bisect_right(starts, start)
        return range(start, starts[after] if after < len(starts) else len(self.instructions))

    @cached_property
    def _flow(self) -> tuple[list[int], nx.DiGraph, dict[int, int]]:
        """First instructions of the basic blocks, where control may go between them, their immediate dominators."""
        starts = {0}
        for i, each in enumerate(self.instructions):
            if each.jump or each.ends:
                starts |= {self.labels.get(each.jump, i + 1), i + 1}
        ordered = sorted(start for start in starts if start < len(self.instructions))
        graph = nx.DiGraph()
        graph.add_nodes_from(ordered)
        for start, end in zip(ordered, [*ordered[1:], len(self.instructions)], strict=True):
            last = self.instructions[end - 1]
            if last.jump in self.labels and self.labels[last.jump] < len(self.instructions):
                graph.add_edge(start, self.labels[last.jump])
            if not last.always and end < len(self.instructions):
                graph.add_edge(start, end)
        return ordered, graph, nx.immediate_dominators(graph, 0)


def _dominates(immediate: Mapping[int, int], head: int, block: int) -> bool:
    """Whether every way from the entry to `block` leads through `head`."""
    while block != head:
        above = immediate.get(block)
        if above is None or above == block:
            return False
        block = above
    return True
