"""compskip: by a schedule, branches of repeated layers are left out and values of earlier layers are reused.

Kunlun's CompSkip (static, per layer). The skipped work is gone, forward and backward, on every device. The model
computes something else and has to be trained that way.

A branch is left out only if the graph proves that it adds to a stream that also flows past it (graph/layers.py). A
value is reused only from the same module of an earlier layer, if it is computed before it is needed and has the same
shape and dtype. Dropout inside a branch goes with it. Parameters that nothing reads any more get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from loka_compile.graph.edit import emit
from loka_compile.graph.facts import Reading
from loka_compile.graph.flops import flops_of, total
from loka_compile.graph.layers import Branch, Call, branch_of, calls_of, differ, effect, effects, reaching
from loka_compile.graph.parts import alternate
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.spec.compskip import ALTERNATE, CompSkip, chosen, nearest, pattern_of
from loka_compile.spec.options import OptionsError

DONE = "loka_compskip"
"""Key in the output node's meta: the schedule that was applied and the paths that are gone. Applied twice is applied
once."""


@dataclass(frozen=True)
class Skip:
    """schedule: what to leave out.
    whole: the graph is the whole model, so a path that matches no module is an error (OptionsError).
    """

    schedule: CompSkip | str
    whole: bool = True
    name: ClassVar[str] = "compskip"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        graph, output = reading.graph, reading.graph.output_node()
        schedule, done = output.meta.get(DONE, (self.schedule, frozenset()))
        calls = calls_of(graph)
        try:
            if schedule == ALTERNATE:
                schedule = alternate(reading, calls)
            todo = _todo(schedule, list(calls), done)
        except ValueError as error:
            if self.whole:
                raise OptionsError(f"compskip: {error}") from error
            return PassResult(rejects=(rejected("this part of the model", str(error)),))
        flops, rewrites, rejects = flops_of(graph), [], []
        before = total(reading, flops)
        standing: dict[str, Standing] = {}
        for path, earlier in todo:
            reason, did = _reuse(reading, path, earlier, standing) if earlier is not None else _skip(reading, path)
            if reason:
                rejects.append(rejected(path, reason))
            else:
                rewrites.append(Rewrite(path, did))
                done |= {path}
        output.meta[DONE] = schedule, done
        if rewrites:
            after = total(reading, flops)
            rewrites.append(Rewrite(str(schedule), _saved(before, after)))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _todo(schedule: CompSkip, paths: Sequence[str], done: frozenset[str]) -> list[tuple[str, list[str] | None]]:
    """The changes, in the order of layers: (path, None) to skip a branch, (path, earlier) to reuse a value.

    earlier: paths of the same module in earlier layers, nearest first.
    Raises ValueError if the schedule names a layer or a branch that does not exist.
    """
    known = [*paths, *sorted(done)]
    layers = {match[0]: int(match[2]) for path in known if (match := pattern_of(schedule.layers).match(path + "."))}
    if not layers:
        lists = dict.fromkeys(p.rpartition(".")[0] + ".*" for p in known if p.rpartition(".")[2].isdigit())
        raise ValueError(f"no module is a layer {schedule.layers}{nearest(schedule.layers, lists)}")
    todo: dict[str, list[str] | None] = {}
    number: dict[str, int] = {}
    for reuses, name in ((False, "skip"), (True, "reuse")):
        for which, branches in schedule.entries(name):
            numbers = {number for number in layers.values() if chosen(which, number)}
            if not numbers:
                raise ValueError(
                    f"{which!r} matches none of the layers {', '.join(map(str, sorted(set(layers.values()))))}"
                )
            for branch in branches:
                found = [m for path in known if (m := pattern_of(schedule.layers, branch).fullmatch(path))]
                if not found:
                    inside = {p[len(layer) + 1 :] for p in known for layer in layers if p.startswith(layer + ".")}
                    hint = nearest(branch, sorted(inside))
                    raise ValueError(f"no layer of {schedule.layers} contains a module {branch!r}{hint}")
                if reuses and numbers == {min(int(m[2]) for m in found)}:
                    raise ValueError(f"{branch}: no layer before {min(numbers)} has such a module to reuse")
                for match in found:
                    if int(match[2]) not in numbers or match[0] in done:
                        continue
                    if match[0] in todo and (todo[match[0]] is None) == reuses:
                        raise ValueError(f"{match[0]} is both skipped and reused; it can be one of the two")
                    same = {int(m[2]): m[0] for m in found if (m[1], m[3]) == (match[1], match[3])}
                    earlier = [same[n] for n in sorted(same, reverse=True) if n < int(match[2])]
                    todo[match[0]], number[match[0]] = earlier if reuses else None, int(match[2])
    return sorted(todo.items(), key=lambda item: number[item[0]])


def _saved(before: int, after: int) -> str:
    """The sentence for the record: the forward's FLOPs before and after."""
    if not before:
        return "no FLOPs counted"
    return f"{1 - after / before:.1%} of the forward's FLOPs are gone ({before:,} to {after:,}, counted on the graph)"


def _skip(reading: Reading, path: str) -> tuple[str, str]:
    """Leave out all calls of a branch: (reason against it, "") or ("", what was done)."""
    branches: list[Branch] = []
    for call in calls_of(reading.graph)[path]:
        found = branch_of(reading, call)
        if isinstance(found, str):
            return found, ""
        branches.append(found)
    moved: dict[fx.Node, fx.Node] = {}  # replaced adds: one call's residual add may be the next call's stream
    for branch in branches:
        for add, operand in branch.adds:
            while operand in moved:
                operand = moved[operand]
            moved[add] = _replace(reading, add, operand)
    calls = [branch.call for branch in branches]
    dropout = any(reading.facts[node].random for call in calls for node in call.nodes)
    _erase(reading, calls, list(moved))
    return "", "skipped, its dropout too" if dropout else "skipped"


@dataclass(frozen=True, eq=False)
class Standing:
    """The values that a module stands for: one value for each of its calls, and the tensors those were made from."""

    values: Sequence[fx.Node]
    made_from: Sequence[fx.Node]


def _reuse(reading: Reading, path: str, earlier: Sequence[str], standing: dict[str, Standing]) -> tuple[str, str]:
    """Let the nearest earlier layer's value replace a module's: (reason against it, "") or ("", what was done)."""
    found = calls_of(reading.graph)
    calls = found[path]
    source = next((each for each in earlier if each in standing or each in found), None)
    if source is None:
        return "no earlier layer of this graph has one", ""
    for each, made in [(path, calls), (source, () if source in standing else found[source])]:
        for call in made:
            if len(call.outputs) != 1:
                return f"{each}: {len(call.outputs)} of its values are read outside; expected one", ""
    given = standing.get(source) or Standing(
        [call.outputs[0] for call in found[source]], [node for call in found[source] for node in call.inputs]
    )
    if len(given.values) != len(calls):
        return f"it is called {len(calls)} times, but {source} {len(given.values)} times", ""
    order = {node: place for place, node in enumerate(reading.graph.nodes)}
    streams = {node for node in given.made_from if node.meta["example_value"].is_floating_point()}
    for value, call in zip(given.values, calls, strict=True):
        if reason := differ(value, call.outputs[0]) or effects(reading, call):
            return reason, ""
        if order[value] > order[call.outputs[0]]:
            return f"{value.name} of {source} is computed after it", ""
        if streams.isdisjoint(reaching(call.outputs[0])):
            return f"it does not depend on anything that {source} reads: these layers stand side by side", ""
        if writer := reading.written(reading.memory(value), value.next):
            return f"{value.name} of {source} is written in place by {writer}", ""
    for value, call in zip(given.values, calls, strict=True):
        old = call.outputs[0]
        _replace(reading, old, value)
        _erase(reading, [call], [old])
    standing[path] = given
    return "", f"reuses the value of {source}"


def _replace(reading: Reading, old: fx.Node, new: fx.Node) -> fx.Node:
    """Let `new` stand for `old`. If a later write would make one of them change and not the other, `new` is cloned
    first."""
    apart = reading.memory(old).isdisjoint(reading.memory(new))
    written = reading.written(reading.memory(old) | reading.memory(new), old.next)
    outside = reading.handed_out(old) and (reading.given_in(new) or reading.handed_out(new))
    if apart and (written or outside):
        new = emit(reading, old, "clone", new)
        new.meta = {**old.meta}
    reading.stand_for(new, old)
    reading.share(new, old)
    old.replace_all_uses_with(new)
    return new


def _erase(reading: Reading, calls: Sequence[Call], removed: Sequence[fx.Node]) -> None:
    """Erase the calls' nodes, and the nodes that only they read, as far as nothing reads them any more."""
    inside = {node for call in calls for node in call.nodes}.union(removed)
    dead = set(inside)
    for node in reversed(list(reading.graph.nodes)):
        if node.users or node.op in ("placeholder", "output", "get_attr") or node not in dead:
            continue
        if node not in inside and effect(reading, node):
            continue
        dead.update(node.all_input_nodes)
        reading.graph.erase_node(node)
        reading.forget(node)
