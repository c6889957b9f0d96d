"""hoist: work on a tensor that was repeated (one user, many candidates) is done once, before it is repeated.

    f(repeat(x))                    ->  repeat(f(x))                     f a linear, a norm, attention, a bag
    linear(cat[repeat(x), y], W)    ->  linear(x, W_x) + linear(y, W_y)  W_x, W_y columns of W; x's part is repeated

Activations, reshapes and the like come along where they stand between. This is how ranking models are served: a tower
that reads the user alone runs on one row, and what reads user and item runs only its item's part on all of them. The
values are the same, the second rule's up to the rounding of one sum.

Cost: the first rule does the same on fewer rows, and repeats what it repeated before, so it pays wherever the rows are
fewer. The second saves FLOPs and may add passes over the output: none where the one user's part can be the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph import torch_ops as ops
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import arg, emit, is_tensor, op_of, rank, shape
from loka_compile.graph.writes import written as written_nodes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.rates import rates
from loka_compile.passes.replication import RESHAPES, Step, alike, of_one_row, step_of
from loka_compile.passes.rowwise import WORK, Lead, Mixed, build, narrowed

LINEAR = torch.nn.functional.linear


@dataclass(frozen=True)
class Hoist:
    name: ClassVar[str] = "hoist"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        hoisting, original = _Hoisting(context, written_nodes(graph)), set(graph.nodes)
        for node in list(graph.nodes):
            hoisting.visit(node)
        ops.drop_dead(graph, lambda node: node not in original or node in hoisting.passed)
        graph.lint()
        return PassResult(tuple(hoisting.rewrites), tuple(hoisting.rejects))


@dataclass(frozen=True, eq=False)
class _Narrow:
    """What a wide tensor is: `steps` of `base`. A tensor with the same steps is repeated in the same way."""

    base: fx.Node
    steps: tuple[Step, ...]
    lead: Lead

    def wide(self, before: fx.Node, narrow: fx.Node) -> fx.Node:
        for step in self.steps:
            narrow = step.again(before, narrow)
        return narrow


@dataclass(eq=False)
class _Hoisting:
    """One walk over a graph, in order. blocked: tensors behind which no replication is seen any more, and why."""

    context: Context
    written: set[fx.Node]
    rewrites: list[Rewrite] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    known: dict[fx.Node, _Narrow] = field(default_factory=dict)
    blocked: dict[fx.Node, str] = field(default_factory=dict)
    passed: set[fx.Node] = field(default_factory=set)

    def visit(self, node: fx.Node) -> None:
        if node.op not in ("call_function", "call_method") or ops.value(node) is None or self._replicates(node):
            return
        sources = [x for x in node.all_input_nodes if x in self.known]
        if sources:
            self._through(node, self.known[sources[0]])
        elif op_of(node) != "linear" or not self._split(node):
            self._pass_on(node)

    # ------------------------------------------------------------ f(repeat(x)) -> repeat(f(x))

    def _replicates(self, node: fx.Node) -> bool:
        source = node.args[0] if node.args else None
        before = self.known.get(source) if isinstance(source, fx.Node) else None
        if before is not None and op_of(node) in RESHAPES and _keeps(node, before.lead.wide):
            return False
        found = step_of(node, before.lead.wide if before is not None else 0)
        if found is None or self._writes(node):
            return False
        source, step = found
        if before is None:
            self._learn(node, _Narrow(source, (step,), Lead(step.lead_in, step.lead_out)))
            return True
        further = step.lead_in - before.lead.wide  # dimensions that those before it left alone, or did not reach
        lead = Lead(before.lead.narrow + max(further, 0), step.lead_out + max(-further, 0))
        self._learn(node, _Narrow(before.base, (*before.steps, step), lead))
        return True

    def _through(self, node: fx.Node, like: _Narrow) -> None:
        def base(x: fx.Node) -> fx.Node | None:
            known = self.known.get(x)
            return known.base if known is not None and alike(known.steps, like.steps) else None

        call = narrowed(node, like.lead, base)
        if not isinstance(call, str | Mixed) and self._writes(node):
            call = "something writes to it in place"
        if isinstance(call, str | Mixed):
            self._stop(node, call)
            return
        narrow = _Narrow(build(node, call), like.steps, like.lead)
        self._learn(node, narrow)
        if op_of(node) in WORK:
            self.rewrites.append(Rewrite(module_name(node), f"{op_of(node)} before its input is repeated"))
            self._learn(ops.replace(node, like.wide(node, narrow.base)), narrow)

    def _learn(self, node: fx.Node, narrow: _Narrow) -> None:
        self.known[node] = narrow
        self.passed.add(node)

    def _writes(self, node: fx.Node) -> bool:
        return any(x in self.written for x in (node, *node.all_input_nodes))

    # ------------------------------------------------------------ linear(cat[repeat(x), y])

    def _split(self, node: fx.Node) -> bool:
        parts = self._parts(node, arg(node, 0, "input"))
        repeated = [self.known[x] for x in parts if x in self.known and self.known[x].lead.wide < rank(x)]
        if not repeated or self._writes(node):
            return False
        like = repeated[0]
        is_user = lambda part: part in self.known and alike(self.known[part].steps, like.steps)  # noqa: E731
        weight, bias = arg(node, 1, "weight"), arg(node, 2, "bias")
        runs, offset = [], 0
        for user, group in groupby(parts, is_user):
            run = [self.known[part].base if user else part for part in group]
            width = sum(shape(part)[-1] for part in run)
            runs.append((user, run, offset, width))
            offset += width
        one_row = of_one_row(shape(like.base)[:-1]) and rank(like.base) > 0
        reason = self._split_costs(node, like, [user for user, *_ in runs], one_row,
                                   sum(width for user, *_, width in runs if user))  # fmt: skip
        if reason:
            self.rejects.append(rejected(node, reason))
            return False

        def product(run: list[fx.Node], offset: int, width: int, bias: fx.Node | None) -> fx.Node:
            x = run[0] if len(run) == 1 else emit(node, torch.cat, run, -1)
            return emit(node, LINEAR, x, emit(node, "narrow", weight, 1, offset, width), bias)

        def total(users: bool, bias: fx.Node | None) -> fx.Node:
            out = None
            for user, *run in runs:
                if user == users:
                    part = product(*run, bias if out is None else None)
                    out = part if out is None else emit(node, torch.add, out, part)
            assert out is not None
            return out

        once = total(users=True, bias=bias)
        if one_row:  # what the one user gives is the bias of all rows
            out = total(users=False, bias=emit(node, "reshape", once, shape(node)[-1]))
        else:
            out = emit(node, torch.add, total(users=False, bias=None), like.wide(node, once))
        columns = ", ".join(f"{at}-{at + width - 1}" for user, _, at, width in runs if user)
        self.rewrites.append(Rewrite(module_name(node), f"linear, split: columns {columns} before they are repeated"))
        self.passed.update((node.args[0], *_behind(node.args[0])))  # type: ignore[arg-type]
        ops.replace(node, out)
        return True

    def _parts(self, before: fx.Node, x: fx.Node) -> list[fx.Node]:
        """The tensors that x is the concatenation of, along its last dimension; of known widths, else x alone."""
        source = x.args[0] if op_of(x) in RESHAPES and x.args else None
        if op_of(x) == "cat":
            parts, dim = x.args[0], arg(x, 1, "dim", 0) % rank(x)
        elif isinstance(source, fx.Node) and op_of(source) == "cat":
            parts, dim = source.args[0], arg(source, 1, "dim", 0) % rank(source)
            if not (dim and rank(x) == dim + 1 and _keeps(x, dim)) or not any(part in self.known for part in parts):  # type: ignore[union-attr]
                return [x]
        else:
            return [x]
        if not isinstance(parts, list | tuple) or dim != rank(x) - 1:
            return [x]
        flat = []
        for part in parts:
            if rank(part) > dim + 1:
                flattened = emit(before, "flatten", part, dim)
                self.visit(flattened)
                flat.append(flattened)
            else:
                flat += self._parts(before, part)
        return flat if all(isinstance(shape(part)[-1], int) for part in flat) else [x]

    def _split_costs(self, node: fx.Node, like: _Narrow, users: list[bool], one_row: bool, width: int) -> str:
        """Why the split does not pay; empty if it does."""
        r, out = rates(self.context, ops.value(node).dtype), shape(node)[-1]
        rows, few = ops.numel(shape(node)[:-1]), ops.numel(shape(like.base)[:-1])
        saved = r.seconds(2 * (rows - few) * width * out, 0, 0)
        sums = users.count(False) - 1 + (not one_row)
        added = len(users) * r.launch + sums * r.seconds(0, 3 * rows * out * ops.value(node).element_size())
        if saved > added:
            return ""
        return (
            f"splitting off {width} of its columns saves {saved * 1e6:.0f} us and adds {added * 1e6:.0f} us "
            f"for {rows} rows (modelled)"
        )

    # ------------------------------------------------------------ reasons

    def _stop(self, node: fx.Node, reason: str | Mixed) -> None:
        if op_of(node) in WORK:
            self.rejects.append(rejected(node, f"{op_of(node)}: {reason}"))
        elif isinstance(reason, str):
            self.blocked[node] = reason

    def _pass_on(self, node: fx.Node) -> None:
        """The reason why a replication is not seen, to the first work behind it."""
        tensors = [x for x in node.all_input_nodes if is_tensor(x) and x.op != "placeholder"]
        reasons = [self.blocked[x] for x in tensors if x in self.blocked]
        if reasons and op_of(node) in WORK:
            self.rejects.append(rejected(node, f"{op_of(node)} of what was repeated: {reasons[0]}"))
        elif reasons and len(reasons) == len(tensors):
            self.blocked[node] = reasons[0]


def _keeps(node: fx.Node, dims: int) -> bool:
    """Whether a reshape leaves that many leading dimensions as they are."""
    return rank(node) > dims and ops.same_sizes(shape(node)[:dims], shape(node.args[0])[:dims])  # type: ignore[arg-type]


def _behind(node: fx.Node) -> list[fx.Node]:
    """What a concatenation's reshape was made of."""
    return [each for each in node.all_input_nodes if op_of(node) in RESHAPES and op_of(each) == "cat"]
