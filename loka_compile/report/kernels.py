"""The kernels that Inductor generated for a graph, read from its wrapper code, and which node each computes.

Of Triton's kernels the wrapper names the nodes. Calls of a library follow the nodes of their operator one by one. What
C++ fused is only found by the flow of data: between the library calls that its inputs wait for and those that wait for
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_DEFINED = re.compile(r"^(\w+) = async_compile\.(\w+)\((.*?)^'''", re.M | re.S)
_FRAGMENT = re.compile(r"^#   %(\w+) : ", re.M)
_LIBRARY = re.compile(
    r"\b(?:extern_kernels\.(\w+)\(|torch\.ops\.(\w+)\.(\w+)(?:\.\w+)?\(|aoti_torch_(?:cpu|cuda)_(\w+?)(?:_out)?\()"
)
_NO_KERNEL = frozenset(
    [
        "view",
        "permute",
        "expand",
        "getitem",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "alias",
        "detach",
        "as_strided",
        "t",
        "transpose",
        "reshape",
        "_unsafe_view",
        "unbind",
        "split",
        "split_with_sizes",
    ]
)
"""Operators that only look at memory."""
_SAME = {"bias_addmm": "addmm"}


@dataclass
class Kernel:
    """kind: cpp, triton or library. nodes: those the wrapper names. calls: how often the wrapper runs it."""

    name: str
    kind: str
    code: str = ""
    nodes: list[str] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True)
class Node:
    """What is asked of a graph's node: its operator without namespace and overload, and the places of its inputs."""

    name: str
    op: str
    inputs: Sequence[int]


def kernels_in(source: str) -> tuple[list[Kernel], list[int]]:
    """All kernels, and the order in which the wrapper runs them."""
    kernels: dict[str, Kernel] = {}
    end = 0
    for found in _DEFINED.finditer(source):
        before = source[end : found.start()].rpartition("\n\n")[2]
        end = found.end()
        kernels[found[1]] = Kernel(found[1], found[2].split("_")[0], found[0], _FRAGMENT.findall(before))
    launches: list[str] = []
    for line in source[end:].splitlines():
        text = line.strip()
        if text.startswith(("#", "assert_", "def ", "//")):
            continue
        name = _called(text, kernels)
        if name:
            kernels.setdefault(name, Kernel(name, "library")).calls += 1
            launches.append(name)
    places = {name: place for place, name in enumerate(kernels)}
    return list(kernels.values()), [places[name] for name in launches]


def _called(text: str, kernels: dict[str, Kernel]) -> str:
    found = re.match(r"(?:\w+ = )?(\w+)(?:\.run)?\(", text)
    if found and found[1] in kernels:
        return found[1]
    if "assert_size_stride" in text or not (library := _LIBRARY.search(text)):
        return ""
    if library[1] or library[4]:
        return f"aten.{library[1] or library[4]}"
    return f"{library[2]}.{library[3]}"


def assign(nodes: Sequence[Node], kernels: Sequence[Kernel], launches: Sequence[int]) -> list[list[int]]:
    """For each node the kernels that compute it: the place of one that is known; ~place of those, one of which it is by
    the flow of data."""
    found: list[list[int]] = [[] for _ in nodes]
    names = {node.name: place for place, node in enumerate(nodes)}
    for place, kernel in enumerate(kernels):
        for name in kernel.nodes:
            if name in names:
                found[names[name]].append(place)
    when = _library_calls(nodes, kernels, launches)
    for node, at in when.items():
        found[node].append(launches[at])
    for node, near in _between(nodes, kernels, launches, when):
        if not found[node]:
            found[node] = [~place for place in near]
    return found


def _library_calls(nodes: Sequence[Node], kernels: Sequence[Kernel], launches: Sequence[int]) -> dict[int, int]:
    """Which launch each node is, of operators that the wrapper calls as often as the graph has them."""
    of_op: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        of_op.setdefault(node.op, []).append(place)
    run: dict[str, list[int]] = {}
    for at, place in enumerate(launches):
        if kernels[place].kind == "library":
            op = kernels[place].name.rpartition(".")[2]
            run.setdefault(_SAME.get(op, op), []).append(at)
    pairs = ((of_op.get(op, []), at) for op, at in run.items())
    return {node: at for own, all_at in pairs if len(own) == len(all_at) for node, at in zip(own, all_at, strict=True)}


def _between(
    nodes: Sequence[Node], kernels: Sequence[Kernel], launches: Sequence[int], when: dict[int, int]
) -> Iterator[tuple[int, list[int]]]:
    earliest, latest = [-1] * len(nodes), [len(launches)] * len(nodes)
    for place, node in enumerate(nodes):
        earliest[place] = when.get(place, max((earliest[i] for i in node.inputs), default=-1))
    for place in range(len(nodes) - 1, -1, -1):
        own = when.get(place, latest[place])
        for i in nodes[place].inputs:
            latest[i] = min(latest[i], own)
    fused = [at for at, place in enumerate(launches) if kernels[place].kind != "library"]
    for place, node in enumerate(nodes):
        if place in when or node.op in _NO_KERNEL or not node.inputs:
            continue
        near = [launches[at] for at in fused if earliest[place] < at < latest[place]]
        named = [each for each in near if f"_{node.op}_" in f"{kernels[each].name}_"]
        yield place, list(dict.fromkeys(near if len(near) == 1 else named))[:3]
