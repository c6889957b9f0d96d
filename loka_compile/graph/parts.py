"""Which modules of a stack of layers are self-attention, PFFN and pooling, the parts of Kunlun's CompSkip rule.

This is read off the graph: which branches join the stream by a residual, what they multiply, and which modules return
another shape than the stream. A module's name decides only between several that fit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import fx
from torch.utils._pytree import tree_leaves

from loka_compile.graph.facts import Reading
from loka_compile.graph.layers import Branch, Call, branch_of, differ, effects, reaching
from loka_compile.spec.compskip import CompSkip, pattern_of

_PRODUCTS = ("matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention")
_SOFTMAX = ("softmax", "scaled_dot_product_attention")
_HINTS = {"attention": r"att|mha", "pffn": r"ffn|mlp|feed|gdpa", "pool": r"pool|hsp|pma|summar|seed"}


def alternate(reading: Reading, calls: Mapping[str, Sequence[Call]]) -> CompSkip:
    """Kunlun's rule for this graph: even layers skip self-attention; odd layers skip the PFFN and reuse the pooling.

    Raises ValueError if a part is missing or several modules could play it; the message says what was found.
    """
    layers = _stack(reading, calls)
    parts = _parts(reading, calls, layers)
    attention, pffn, pool = (sorted(parts[name]) for name in ("attention", "pffn", "pool"))
    return CompSkip(layers, {"even": attention, "odd": pffn}, {"odd": pool} if pool else {})


def _stack(reading: Reading, calls: Mapping[str, Sequence[Call]]) -> str:
    """The outermost list of two or more layers of one class that has these parts.
    Raises ValueError if there is not exactly one.
    """
    stacks: dict[str, dict[int, str]] = defaultdict(dict)
    for path in calls:
        for match in re.finditer(r"\.([0-9]+)(?=\.|$)", path):  # also layers that are never called as modules
            layer = path[: match.end()]
            stacks[path[: match.start()] + ".*"][int(match[1])] = calls[layer][0].kind if layer in calls else ""
    lists = [path for path, kinds in stacks.items() if len(kinds) > 1 and len(set(kinds.values())) == 1]
    fit: list[str] = []
    for path in sorted(lists, key=lambda path: path.count(".")):
        nested = any(pattern_of(outer).match(path + ".") for outer in fit)
        if not nested and any(_parts(reading, calls, path).values()):
            fit.append(path)
    if len(fit) != 1:
        found = f"{len(fit)} ({', '.join(fit)})" if fit else f"none among {', '.join(stacks) or 'no lists at all'}"
        raise ValueError(
            "alternate: expected one list of two or more layers in which both self-attention and a PFFN can be left "
            f"out, found {found}. Write the schedule down"
        )
    return fit[0]


def _parts(reading: Reading, calls: Mapping[str, Sequence[Call]], layers: str) -> dict[str, set[str]]:
    """Part -> paths inside a layer, over all layers of the stack. Attention and PFFN must act on one stream."""
    pattern = re.compile(pattern_of(layers).pattern + r"\.(?P<inside>.+)")
    inside = {path: match["inside"] for path in calls if (match := pattern.fullmatch(path))}
    proven = {path: branch_of(reading, calls[path][0]) for path in inside}
    branches = {path: branch for path, branch in proven.items() if isinstance(branch, Branch)}
    roles = {path: _roles(reading, branch) for path, branch in branches.items()}
    attended = _streams(branches[path] for path, found in roles.items() if "attention" in found)
    roles = {path: found for path, found in roles.items() if not attended.isdisjoint(_streams([branches[path]]))}
    streams = _streams(branches[path] for path in roles)
    for path in inside:
        if path not in branches and _pools(reading, calls[path][0], streams):
            roles[path] = {"pool"}
    by_name: dict[str, set[str]] = defaultdict(set)
    for path, found in roles.items():
        by_name[inside[path]] |= found
    parts: dict[str, set[str]] = {name: set() for name in _HINTS}
    for name, found in by_name.items():
        outer = [name[:at] for at in range(len(name)) if name[at] == "."]
        if len(found) == 1 and not any(len(by_name.get(each, ())) == 1 for each in outer):
            parts[next(iter(found))].add(name)
    places = {_place(name) for name in parts["attention"]} & {_place(name) for name in parts["pffn"]}
    return {part: _one_each(part, {name for name in names if _place(name) in places}) for part, names in parts.items()}


def _place(name: str) -> str:
    """The path of the module around this one."""
    return name.rpartition(".")[0]


def _streams(branches: Iterable[Branch]) -> set[fx.Node]:
    """The values of the streams just before and just after these branches."""
    return {node for branch in branches for node in (branch.stream, branch.adds[0][0])}


def _roles(reading: Reading, branch: Branch) -> set[str]:
    """The roles of a branch. "attention" multiplies the stream by itself and has a softmax; "interaction" has none;
    "pffn" multiplies the stream by the context, or by weights only."""
    depends: dict[fx.Node, set[str]] = {}
    inputs = set(branch.call.inputs)
    for node in branch.call.nodes:
        reads: set[str] = set()
        for each in node.all_input_nodes:
            if each in depends:
                reads |= depends[each]
            elif each in inputs:
                reads.add("stream" if _is_stream(each, branch) else "context")
        depends[node] = reads
    found = set()
    for node in branch.call.nodes:
        if len(operands := _multiplied(reading, node)) < 2:
            continue
        a, b = [depends.get(arg, set()) or _outside(arg, branch, inputs) for arg in operands[:2]]
        if "stream" in a and "stream" in b:
            found.add("attention")
        elif "stream" in a | b and "context" in a | b:
            found.add("pffn")
    if "attention" in found and not any(reading.op(node) in _SOFTMAX for node in branch.call.nodes):
        return {"interaction"}
    return found or {"pffn"}


def _outside(node: fx.Node, branch: Branch, inputs: set[fx.Node]) -> set[str]:
    """The kind of a tensor from outside the branch: {"stream"}, {"context"}, or set() for a parameter."""
    return ({"stream"} if _is_stream(node, branch) else {"context"}) if node in inputs else set()


def _is_stream(node: fx.Node, branch: Branch) -> bool:
    """Whether the node is the stream or a value of its shape that depends on it, such as a norm."""
    return node is branch.stream or (not differ(node, branch.stream) and branch.stream in reaching(node))


def _pools(reading: Reading, call: Call, streams: Collection[fx.Node]) -> bool:
    """Whether the module reads a stream, multiplies it with another computed tensor, and returns one value of another
    shape."""
    if len(call.outputs) != 1 or effects(reading, call):
        return False
    read = [node for node in call.inputs if node in streams]
    products = any(len(_multiplied(reading, node)) > 1 for node in call.nodes)
    return bool(read) and products and all(differ(node, call.outputs[0]) for node in read)


def _one_each(part: str, names: set[str]) -> set[str]:
    """One module for the part in each place; among siblings the name decides. Raises ValueError if it does not."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in names:
        places[name.rpartition(".")[0]].append(name)
    chosen = set()
    for place, siblings in places.items():
        named = [name for name in siblings if re.search(_HINTS[part], name.rpartition(".")[2], re.IGNORECASE)]
        fit = siblings if len(siblings) == 1 else named
        if len(fit) != 1:
            raise ValueError(
                f"alternate: {', '.join(sorted(siblings))} could all be the {part} of {place or 'a layer'}; "
                "write the schedule down"
            )
        chosen.add(fit[0])
    return chosen


def _multiplied(reading: Reading, node: fx.Node) -> list[fx.Node]:
    """The operands of a product of tensors; a linear is none, as it multiplies by a weight."""
    given = tree_leaves(reading.args(node)) if reading.op(node) in _PRODUCTS else []
    return [each for each in given if reading.is_tensor(each)]
