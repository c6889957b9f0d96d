"""loka.suggest_compskip: what each branch of a model's layers adds, measured, against the FLOPs it takes.

    suggestion = loka.suggest_compskip(model, [(batch,), ...])
    print(suggestion)
    compiled = torch.compile(model, backend="loka", options={"compskip": suggestion.schedule(0.4)})

For a branch: the norm of what it adds over the norm of the stream it adds to. For a module whose value could be that of
the layer before: the norm of the difference over that of its value. Listed is what compskip.py can prove. It
ranks by this model's weights on these batches; what a schedule costs in quality, only training with it tells.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx, nn

from loka_compile import compat
from loka_compile.graph.facts import Reading
from loka_compile.graph.flops import flops_of, total
from loka_compile.graph.layers import Branch, Call, branch_of, calls_of, differ, effects
from loka_compile.graph.reader import read
from loka_compile.spec.compskip import CompSkip


@dataclass(frozen=True)
class Row:
    """A branch to skip, or a module to reuse. contribution: relative norm, a fraction (see above). share: of the
    forward's FLOPs. together: share of this row and all before it; what lies inside another counts once."""

    path: str
    action: str
    contribution: float
    flops: int
    share: float
    together: float


@dataclass(frozen=True)
class Suggestion:
    """rows: least contribution for its FLOPs first. flops: of the forward, for the first batch's sizes."""

    rows: tuple[Row, ...]
    flops: int
    batches: int

    def schedule(self, share: float) -> CompSkip:
        """The first rows that together take at least this share of the FLOPs. Raises ValueError if none do, or if they
        are of several stacks of layers, which one schedule cannot name."""
        upto = next((at for at, row in enumerate(self.rows) if row.together >= share), None)
        if upto is None:
            most = self.rows[-1].together if self.rows else 0.0
            raise ValueError(f"expected a share of FLOPs that all rows together reach ({most:.1%}); got {share:.1%}")
        parts: dict[str, dict[str, list[str]]] = {"skip": defaultdict(list), "reuse": defaultdict(list)}
        stacks = set()
        for row in self.rows[: upto + 1]:
            stack, number, branch = re.fullmatch(r"(.*?)\.([0-9]+)\.(.+)", row.path).groups()  # type: ignore[union-attr]
            stacks.add(stack)
            parts[row.action][number].append(branch)
        if len(stacks) > 1:
            raise ValueError(f"these rows are of several stacks of layers: {', '.join(sorted(stacks))}")
        return CompSkip(f"{stacks.pop()}.*", parts["skip"], parts["reuse"])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        width = max((len(row.path) for row in self.rows), default=0)
        head = f"{'':{width}}  action  contribution    FLOPs    share  together"
        lines = [
            f"{row.path:{width}}  {row.action:6}  {row.contribution:12.4f}  {row.flops / 1e6:5.1f} M  {row.share:6.1%}"
            f"  {row.together:8.1%}"
            for row in self.rows
        ]
        what = f"forward: {self.flops / 1e6:.1f} M FLOPs, counted on the graph; measured on {self.batches} batches"
        return "\n".join([head, *lines, what] if lines else ["no branch can be proven to be one", what])


@dataclass(frozen=True, eq=False)
class _Candidate:
    """after over before: what the branch made of the stream; or a module's value and that of the layer before."""

    call: Call
    action: str
    before: fx.Node
    after: fx.Node


def suggest_compskip(model: nn.Module, batches: Sequence[Sequence[Any] | Mapping[str, Any]]) -> Suggestion:
    """batches: what one call of the model takes each, as a tuple of arguments or a mapping of keywords.

    Runs the model op by op on every batch, without gradients, in the mode it is in.
    """
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)  # path -> square norms, of difference and of value
    found: dict[tuple[str, str], dict[fx.Node, int]] = {}
    ran: dict[int, int] = {}  # FLOPs of the graphs that the last batch went through

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compat.name_root(gm)
        flops = flops_of(gm.graph)
        reading = read(gm.graph)
        whole = total(reading, flops)
        candidates = list(_candidates(reading))
        for each in candidates:
            found[each.call.path, each.action] = {node: flops.get(node, 0) for node in each.call.nodes}

        def run(*args: Any) -> Any:
            ran[id(gm)] = whole
            return _Measuring(gm, candidates, seen).run(*args)

        return run

    if not batches:
        raise ValueError("expected at least one batch to measure on; got none")
    compiled = compat.compile_apart(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch in batches:
            ran.clear()
            compiled(**batch) if isinstance(batch, Mapping) else compiled(*batch)
    return _ranked(found, seen, sum(ran.values()), len(batches))


class _Measuring(fx.Interpreter):
    """A graph run node by node, with the norms of what its candidates do."""

    def __init__(self, gm: fx.GraphModule, candidates: Sequence[_Candidate], seen: dict[str, list[Any]]) -> None:
        super().__init__(gm)
        self.seen = seen
        self.values: dict[fx.Node, Any] = {}
        self.candidates = defaultdict(list)
        for each in candidates:
            self.candidates[each.after].append(each)
        self.needed = {each.before for each in candidates}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for each in self.candidates.get(n, ()):
            before = self.values[each.before].double()
            over = value.double() if each.action == "reuse" else before
            self.seen[each.call.path].append(
                (float((value.double() - before).square().sum()), float(over.square().sum()))
            )
        if n in self.needed:
            self.values[n] = value.clone()  # it may be written in place later
        return value


def _candidates(reading: Reading) -> Sequence[_Candidate]:
    """Branches inside numbered layers that can be skipped; else modules whose value an earlier layer's could be."""
    once = {path: each[0] for path, each in calls_of(reading.graph).items() if len(each) == 1}
    calls = {path: call for path, call in once.items() if re.search(r"\.[0-9]+\.", path)}
    branches = {path: branch for path, call in calls.items() if isinstance(branch := branch_of(reading, call), Branch)}
    found = [
        _Candidate(branch.call, "skip", branch.adds[-1][1], branch.adds[0][0])
        for branch in branches.values()
        if not differ(branch.adds[-1][1], branch.adds[0][0])
    ]
    outer: set[str] = set(branches)
    for path in sorted(calls, key=lambda path: path.count(".")):
        prefix, number, rest = re.fullmatch(r"(.*?\.)([0-9]+)(\..+)", path).groups()  # type: ignore[union-attr]
        inside = any(path.startswith(each + ".") for each in outer)
        earlier = calls.get(f"{prefix}{int(number) - 1}{rest}")
        if path in outer or inside or earlier is None or path in branches:
            continue
        if len(calls[path].outputs) == len(earlier.outputs) == 1 and not effects(reading, calls[path]):
            value, before = calls[path].outputs[0], earlier.outputs[0]
            floats = value.meta["example_value"].is_floating_point()
            if floats and not differ(before, value):
                found.append(_Candidate(calls[path], "reuse", before, value))
                outer.add(path)
    return found


def _ranked(
    found: Mapping[tuple[str, str], Mapping[fx.Node, int]],
    seen: Mapping[str, Sequence[tuple[float, float]]],
    flops: int,
    batches: int,
) -> Suggestion:
    measured = []
    for (path, action), nodes in found.items():
        difference, norm = (sum(pair[at] for pair in seen[path]) for at in (0, 1))
        contribution = math.sqrt(difference / norm) if norm else 0.0
        if own := sum(nodes.values()):
            measured.append((contribution * flops / own, path, action, contribution, own, nodes))
    rows: list[Row] = []
    taken: dict[str, int] = {}
    for _, path, action, contribution, own, nodes in sorted(measured, key=lambda each: each[:2]):
        taken.update(nodes)
        rows.append(Row(path, action, contribution, own, own / flops, sum(taken.values()) / flops))
    return Suggestion(tuple(rows), flops, batches)
