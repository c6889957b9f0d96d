"""hoist: work on a tensor that was repeated (one user, many candidates) is done once, before the repetition.

    f(repeat(x))                    ->  repeat(f(x))                     f a linear, a norm, attention, a bag
    linear(cat[repeat(x), y], W)    ->  linear(x, W_x) + linear(y, W_y)  W_x, W_y columns of W; x's part is repeated

Ranking models are served this way: a tower that reads only the user runs on one row, and a layer that reads user and
item runs only its item part on all rows. Activations and reshapes between such layers move along. The values are the
same; the second rule adds one rounding of a sum.

The trick: walk the graph once and note for each tensor the narrow tensor and the replications it consists of. An
operation that leaves the replicated dimensions alone is written on the narrow tensor, and its result is noted in the
same way.

Cost: the first rule does the same work on fewer rows and repeats as often as before, so it always pays. The second
saves FLOPs and may add passes over the output; there are none if one user's part can serve as the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.nn import functional as F

from loka_compile.graph.edit import drop, emit, replace
from loka_compile.graph.facts import CALLS, Reading
from loka_compile.graph.reshapes import is_reshape, keeps
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import numel
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.simplify._rates import rates
from loka_compile.passes.simplify._replication import Step, alike, of_one_row, step_of
from loka_compile.passes.simplify._rowwise import narrowed, takes_parts, turned
from loka_compile.passes.simplify._wide import WORK, Lead, Mixed, Wide


@dataclass(frozen=True)
class Hoist:
    name: ClassVar[str] = "hoist"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        hoisting, original = _Hoisting(reading, context), set(reading.graph.nodes)
        for node in list(reading.graph.nodes):
            hoisting.visit(node)
        new = [node for node in reading.graph.nodes if node not in original]
        drop(reading, (*reversed(new), *hoisting.passed))
        reading.graph.lint()
        return PassResult(tuple(hoisting.rewrites), tuple(hoisting.rejects))


@dataclass(frozen=True, eq=False)
class _Narrow:
    """A wide tensor as `base`, replicated by `steps`. Tensors with the same steps are repeated in the same way."""

    base: fx.Node
    steps: tuple[Step, ...]
    lead: Lead

    def wide(self, before: fx.Node, narrow: fx.Node) -> fx.Node:
        """Replicate a narrow tensor in the same way."""
        for step in self.steps:
            narrow = step.again(before, narrow)
        return narrow


@dataclass(eq=False)
class _Hoisting:
    """One walk over a graph, in order.

    known: wide tensor -> its narrow form.
    blocked: tensor -> why the replications behind it are lost.
    turned: a permuted wide tensor, whose replicated dimensions come second -> its permuted narrow form.
    passed: nodes that may be dead after the walk.
    """

    reading: Reading
    context: Context
    rewrites: list[Rewrite] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    known: dict[fx.Node, _Narrow] = field(default_factory=dict)
    blocked: dict[fx.Node, str] = field(default_factory=dict)
    turned: dict[fx.Node, _Narrow] = field(default_factory=dict)
    passed: set[fx.Node] = field(default_factory=set)

    def visit(self, node: fx.Node) -> None:
        if node.op not in CALLS or node not in self.reading.facts or self._replicates(node):
            return
        sources = [x for x in node.all_input_nodes if x in self.known]
        if sources:
            like = self.known[sources[0]]
            if not self._turn(node, like):
                self._through(node, like)
        elif not self._take_apart(node) and (self.reading.op(node) != "linear" or not self._split(node)):
            self._pass_on(node)

    # ------------------------------------------------------------ f(repeat(x)) -> repeat(f(x))

    def _replicates(self, node: fx.Node) -> bool:
        """Note a node that is a replication. Returns whether it is one."""
        source = next(iter(node.all_input_nodes), None)
        before = self.known.get(source)
        if before is not None and self._keeps(node, source, before.lead.wide):
            return False
        found = step_of(self.reading, node, before.lead.wide if before is not None else 0)
        if found is None or self.reading.reason_against((node,)):
            return False
        source, step = found
        if before is None:
            self._learn(node, _Narrow(source, (step,), Lead(step.lead_in, step.lead_out)))
            return True
        further = (
            step.lead_in - before.lead.wide
        )  # > 0: it reaches dimensions the earlier steps left alone; < 0: it leaves some of theirs
        lead = Lead(before.lead.narrow + max(further, 0), step.lead_out + max(-further, 0))
        self._learn(node, _Narrow(before.base, (*before.steps, step), lead))
        return True

    def _through(self, node: fx.Node, like: _Narrow) -> None:
        """Write the node on the narrow tensor, or note why that cannot be done."""

        def base(x: Any) -> fx.Node | None:
            known = self.known.get(x) if isinstance(x, fx.Node) else None
            return known.base if known is not None and alike(known.steps, like.steps) else None

        call = narrowed(Wide(self.reading, node, like.lead, base))
        if not isinstance(call, str | Mixed) and (reason := self.reading.reason_against((node,))):
            call = reason
        if isinstance(call, str | Mixed):
            self._stop(node, call)
            return
        target, args, kwargs = call
        narrow = _Narrow(emit(self.reading, node, target, *args, **kwargs), like.steps, like.lead)
        self._learn(node, narrow)
        if (name := self.reading.op(node)) in WORK:
            self.rewrites.append(Rewrite(module_name(node), f"{name} before its input is repeated"))
            self._learn(self._exchange(node, like.wide(node, narrow.base)), narrow)

    # ------------------------------------------------------------ repeat(x).permute(2, 0, ...).unbind(0)

    def _turn(self, node: fx.Node, like: _Narrow) -> bool:
        """Note a permutation that brings one dimension before the replicated ones, as q, k and v are often taken from
        one product. Returns whether it is one."""
        order = turned(self.reading, node, like.lead)
        if order is not None:
            self.turned[node] = _Narrow(emit(self.reading, node, "permute", like.base, *order), like.steps, like.lead)
            self.passed.add(node)
        return order is not None

    def _take_apart(self, node: fx.Node) -> bool:
        """Write what takes the parts of a turned tensor on the narrow one: in them the replicated dimensions lead."""
        source = next(iter(node.all_input_nodes), None)
        if source not in self.turned or not takes_parts(self.reading, node) or self.reading.reason_against((node,)):
            return False
        like = self.turned[source]
        args, kwargs = map_arg((node.args, node.kwargs), lambda x: like.base if x is source else x)
        self._learn(node, _Narrow(emit(self.reading, node, node.target, *args, **kwargs), like.steps, like.lead))
        return True

    def _learn(self, node: fx.Node, narrow: _Narrow) -> None:
        self.known[node] = narrow
        self.passed.add(node)

    def _exchange(self, old: fx.Node, new: fx.Node) -> fx.Node:
        """Replace `old`. Its inputs stay until the end of the walk, because their narrow forms may still be needed."""
        return replace(self.reading, old, new, alone=True)

    # ------------------------------------------------------------ linear(cat[repeat(x), y])

    def _split(self, node: fx.Node) -> bool:
        """Split a linear over a concatenation into one linear for the repeated parts and one for the others."""
        reading, emitted = self.reading, partial(emit, self.reading, node)
        x, weight, bias = (reading.arg(node, name) for name in ("input", "weight", "bias"))
        parts = self._parts(node, x)
        repeated = [self.known[x] for x in parts if x in self.known and self.known[x].lead.wide < reading.rank(x)]
        if not repeated or reading.reason_against((node, *self._joins(x))):
            return False
        like = repeated[0]
        is_user = lambda part: part in self.known and alike(self.known[part].steps, like.steps)  # noqa: E731
        runs, offset = [], 0
        for user, group in groupby(parts, is_user):
            run = [self.known[part].base if user else part for part in group]
            width = sum(reading.shape(part)[-1] for part in run)
            runs.append((user, run, offset, width))
            offset += width
        one_row = of_one_row(reading.shape(like.base)[:-1]) and reading.rank(like.base) > 0
        reason = self._split_costs(
            node, like, [user for user, *_ in runs], one_row, sum(width for user, *_, width in runs if user)
        )
        if reason:
            self.rejects.append(rejected(node, reason))
            return False

        def product(run: list[fx.Node], offset: int, width: int, bias: fx.Node | None) -> fx.Node:
            x = run[0] if len(run) == 1 else emitted(torch.cat, run, -1)
            return emitted(F.linear, x, emitted("narrow", weight, 1, offset, width), bias)

        def total(users: bool, bias: fx.Node | None) -> fx.Node:
            out = None
            for user, run, offset, width in runs:
                if user == users:
                    part = product(run, offset, width, bias if out is None else None)
                    out = part if out is None else emitted(torch.add, out, part)
            assert out is not None
            return out

        once = total(users=True, bias=bias)
        if one_row:  # one user's part serves as the bias of all rows
            out = total(users=False, bias=emitted("reshape", once, reading.shape(node)[-1]))
        else:
            out = emitted(torch.add, total(users=False, bias=None), like.wide(node, once))
        columns = ", ".join(f"{at}-{at + width - 1}" for user, _, at, width in runs if user)
        self.rewrites.append(Rewrite(module_name(node), f"linear, split: columns {columns} before they are repeated"))
        self.passed.update(self._joins(x))
        self._exchange(node, out)
        return True

    def _parts(self, before: fx.Node, x: fx.Node) -> list[fx.Node]:
        """The tensors that x concatenates along its last dimension; [x] if it is no concatenation or a width is
        symbolic."""
        reading, joined = self.reading, self._joins(x)
        if not joined:
            return [x]
        cat = joined[-1]
        parts, dim = reading.arg(cat, "tensors"), reading.arg(cat, "dim") % reading.rank(cat)
        if cat is not x:
            side_by_side = dim and reading.rank(x) == dim + 1 and self._keeps(x, cat, dim)
            if not side_by_side or not any(part in self.known for part in parts):
                return [x]
        if dim != reading.rank(x) - 1:
            return [x]
        flat = []
        for part in parts:
            if reading.rank(part) > dim + 1:
                flattened = emit(reading, before, "flatten", part, dim)
                self.visit(flattened)
                flat.append(flattened)
            else:
                flat += self._parts(before, part)
        return flat if all(isinstance(reading.shape(part)[-1], int) for part in flat) else [x]

    def _joins(self, x: fx.Node) -> list[fx.Node]:
        """x and the concatenation it is a reshape of; [x] if x is one itself; [] if neither."""
        if self.reading.op(x) == "cat":
            return [x]
        source = next(iter(x.all_input_nodes), None)
        return [x, source] if is_reshape(self.reading, x) and self.reading.op(source) == "cat" else []

    def _keeps(self, node: fx.Node, source: Any, dims: int) -> bool:
        """Whether the node is a reshape that leaves the first `dims` dimensions alone and has more of them."""
        is_one = is_reshape(self.reading, node)
        return is_one and self.reading.rank(node) > dims and keeps(self.reading, node, source, dims)

    def _split_costs(self, node: fx.Node, like: _Narrow, users: list[bool], one_row: bool, width: int) -> str:
        """Why the split does not pay, in modelled time; "" if it does. width: columns of the repeated parts."""
        value, sizes = self.reading.value(node), self.reading.shape(node)
        r, out = rates(self.context, value.dtype), sizes[-1]
        rows, few = numel(sizes[:-1]), numel(self.reading.shape(like.base)[:-1])
        saved = r.seconds(2 * (rows - few) * width * out, 0, 0)
        sums = users.count(False) - 1 + (not one_row)
        added = len(users) * r.launch + sums * r.seconds(0, 3 * rows * out * value.element_size())
        if saved > added:
            return ""
        return (
            f"splitting off {width} of its columns saves {saved * 1e6:.0f} us and adds {added * 1e6:.0f} us "
            f"for {rows} rows (modelled)"
        )

    # ------------------------------------------------------------ reasons

    def _stop(self, node: fx.Node, reason: str | Mixed) -> None:
        """Refuse work that cannot move before a replication. For other nodes keep the reason for what reads them."""
        if isinstance(reason, Mixed) and reason.tensor in self.blocked:
            reason = self.blocked[reason.tensor]  # it was repeated too, until something lost that
        if (name := self.reading.op(node)) in WORK:
            self.rejects.append(rejected(node, f"{name}: {reason}"))
        elif isinstance(reason, str):
            self.blocked[node] = reason

    def _pass_on(self, node: fx.Node) -> None:
        """Report a lost replication at the first work behind it."""
        tensors = [x for x in node.all_input_nodes if self.reading.is_tensor(x) and x.op != "placeholder"]
        reasons = [self.blocked[x] for x in tensors if x in self.blocked]
        if reasons and (name := self.reading.op(node)) in WORK:
            self.rejects.append(rejected(node, f"{name} behind a repetition: {reasons[0]}"))
        elif reasons and len(reasons) == len(tensors):
            self.blocked[node] = reasons[0]
