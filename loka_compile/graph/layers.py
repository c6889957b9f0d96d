"""Repeated layers of a Dynamo graph and their branches, found by module paths and proven on the graph.

A branch can be left out if it only adds something to a stream that also flows past it:

    inside the module     y = x + f(x, ...)          the module returns y, and x comes from outside
    around the module     y = x + drop(m(norm(x)))   the only reader of m's result leads to the residual add

The trick: everything the branch computes then passes through the add (the add post-dominates it), so x can replace y.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph import aten
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_names

_COPIES = ("reshape", "reshape_as", "flatten", "unflatten", "contiguous", "clone")
"""Operators that copy all values of their argument if no view will do."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module. nodes: all nodes it ran, also those of modules inside it. kind: the module's class."""

    path: str
    kind: str
    nodes: tuple[fx.Node, ...]

    @cached_property
    def inside(self) -> frozenset[fx.Node]:
        return frozenset(self.nodes)

    @cached_property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The tensors it reads from outside, without parameters and buffers."""
        read = dict.fromkeys(each for node in self.nodes for each in node.all_input_nodes if each not in self.inside)
        return tuple(node for node in read if is_tensor(node) and not compat.is_parameter_or_buffer(node))

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """Its tensors that are read outside."""
        return tuple(n for n in self.nodes if is_tensor(n) and any(user not in self.inside for user in n.users))


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch that can be left out.

    adds: its residual adds, each with the operand that flows on.
    stream: where that operand comes from.
    """

    call: Call
    adds: tuple[tuple[fx.Node, fx.Node], ...]
    stream: fx.Node


def calls_of(graph: fx.Graph) -> dict[str, list[Call]]:
    """Module path -> its calls, in order. A module that is called twice has two."""
    found: dict[tuple[str, str], tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        for call, path, kind in module_names(node):
            found.setdefault((path, call), (kind, []))[1].append(node)
    calls: dict[str, list[Call]] = {}
    for (path, _), (kind, nodes) in found.items():
        calls.setdefault(path, []).append(Call(path, kind, tuple(nodes)))
    return calls


def branch_of(reading: Reading, call: Call) -> Branch | str:
    """How the call's output joins its own input, or the reason why it must not be left out."""
    if not call.outputs:
        return "nothing reads its output"
    if len(call.outputs) > 1:
        names = ", ".join(node.name for node in call.outputs)
        return f"{len(call.outputs)} of its values are read outside ({names}); expected one"
    [output] = call.outputs
    found = _residual_inside(reading, output, call) or _residual_around(reading, output)
    if isinstance(found, str):
        return found
    adds, stream = found
    for add, operand in adds:
        if reason := differ(operand, add):
            return f"the residual add {add.name} changes the stream: {reason}"
    kept = frozenset[int]().union(*(reading.memory(add) for add, _ in adds))
    for node in call.nodes:
        if any(node is add for add, _ in adds):
            continue
        if reason := effect(reading, node, call.inside):
            return reason
        if reading.facts[node].writes & kept:
            return f"{node.name} writes into the stream"
    return Branch(call, tuple(adds), stream)


def effects(reading: Reading, call: Call) -> str:
    """The effects, besides its values, that would be lost without the call; "" for none."""
    return next(filter(None, (effect(reading, node, call.inside) for node in call.nodes)), "")


def effect(reading: Reading, node: fx.Node, inside: Collection[fx.Node] = ()) -> str:
    """The effect, besides its value, that would be lost without `node`, for nodes outside of `inside`; "" for none."""
    fact = reading.facts[node]
    if fact.reason:
        return f"{node.name} cannot be read: {fact.reason}"
    for memory in fact.writes:
        owner = min(each for each in reading.facts if memory in reading.memory(each))
        if owner not in inside:
            return f"{node.name} writes into {owner.name}"
    if not fact.writes and node.is_impure(impure_random=False):
        return f"{node.name} has side effects ({_target(node)})"
    return ""


def differ(a: fx.Node, b: fx.Node) -> str:
    """How the two values differ in shape, dtype or device; "" if they are known to agree."""
    x, y = a.meta.get("example_value"), b.meta.get("example_value")
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return f"{a.name} or {b.name} has no known shape"
    same = x.dim() == y.dim() and all(compat.guard_free(m == n) for m, n in zip(x.shape, y.shape, strict=True))
    if not same:
        return f"{a.name} is {tuple(x.shape)}, {b.name} is {tuple(y.shape)}"
    if (x.dtype, x.device) != (y.dtype, y.device):
        return f"{a.name} is {x.dtype} on {x.device}, {b.name} is {y.dtype} on {y.device}"
    return ""


def reaching(node: fx.Node) -> set[fx.Node]:
    """The node and all nodes it depends on."""
    found, queue = {node}, [node]
    while queue:
        new = [each for each in queue.pop().all_input_nodes if each not in found]
        found.update(new)
        queue += new
    return found


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), torch.Tensor)


# ---------------------------------------------------------------- residual adds

Residual = tuple[list[tuple[fx.Node, fx.Node]], fx.Node]


def _residual_inside(reading: Reading, output: fx.Node, call: Call) -> Residual | None:
    """Follow adds and changes of layout up from the output to a value from outside on which the other addend depends
    too."""

    def follow(node: fx.Node) -> Residual | None:
        if node not in call.inside:
            return ([], node) if is_tensor(node) and not compat.is_parameter_or_buffer(node) else None
        if (source := _laid_out(reading, node)) is not None:
            return follow(source)
        found = []
        for operand, other in _operands(reading, node):
            flow = follow(operand)
            if flow and flow[1] in reaching(other):
                found.append(([(node, operand), *flow[0]], flow[1]))
        return found[0] if len(found) == 1 else None  # with two candidates it is not clear which is the stream

    found = follow(output)
    return found if found and found[0] else None


def _residual_around(reading: Reading, output: fx.Node) -> Residual | str:
    """Follow single readers down from the output to an add whose other operand is the call's own input."""
    node, ancestors = output, reaching(output)
    while True:
        if len(node.users) != 1:
            names = ", ".join(user.name for user in node.users)
            return f"{node.name} has other consumers than a residual add: {names}"
        [user] = node.users
        others = [operand for operand, other in _operands(reading, user) if other is node]
        if others:
            break
        if _laid_out(reading, user) is None and not _scales(reading, user):
            return f"no residual add: {node.name} goes into {user.name} ({_target(user)})"
        node = user
    stream, candidates = None, [others[0]]
    while candidates:
        each = candidates.pop()
        if each in ancestors and is_tensor(each) and not compat.is_parameter_or_buffer(each):
            stream = each
            break
        if (source := _laid_out(reading, each)) is not None:
            candidates.append(source)
        candidates += [operand for operand, _ in _operands(reading, each)]
    if stream is None:
        return f"{user.name} adds it to {others[0].name}, which is not its own input"
    return [(user, others[0])], stream


def _operands(reading: Reading, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(one operand, the other) in both orders, if the node adds two tensors."""
    a, b = reading.operands(node, "add") or (None, None)
    return [(a, b), (b, a)] if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b else []


def _laid_out(reading: Reading, node: fx.Node) -> fx.Node | None:
    """x if the node holds all values of x in another order or shape."""
    sources = [each for each in node.all_input_nodes if is_tensor(each)]
    if node not in reading.facts or len(sources) != 1 or not is_tensor(node):
        return None
    x, fact = sources[0], reading.facts[node]
    a, b = reading.value(x), reading.value(node)
    whole = a.dtype == b.dtype and not a.is_complex() and compat.guard_free(a.numel() == b.numel())
    view = bool(fact.memory) and fact.memory == reading.memory(x) and not fact.writes
    return x if whole and (view or fact.op in _COPIES) else None


def _scales(reading: Reading, node: fx.Node) -> bool:
    """Whether the node is dropout, a factor or a cast, which may stand before the residual add."""
    calls = reading.facts[node].calls if node in reading.facts else ()
    return reading.op(node) in ("mul", "div", "to") or any(aten.name_of(call).endswith("dropout") for call in calls)


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
