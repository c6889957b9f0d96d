"""Which operations leave leading dimensions alone, so that a replication along them may come afterwards.

Every rule answers, for a node whose first argument is a replicated (wide) tensor: how the call reads on the narrow
one. `lead_out` leading dimensions of the wide tensor were `lead_in` of the narrow one; all others are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from loka_compile.graph.torch_ops import arg, emit, is_tensor, op_of, pure, rank, same_sizes, shape, size_arg, value

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

POINTWISE = {
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "selu",
    "elu", "celu", "mish", "softplus", "softsign", "logsigmoid", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt",
    "abs", "neg", "square", "pow", "clamp", "clamp_min", "clamp_max", "add", "sub", "mul", "div", "erf", "sin", "cos",
    "sign", "where", "maximum", "minimum", "masked_fill", "nan_to_num", "eq", "ne", "gt", "lt", "ge", "le", "float",
    "half", "bfloat16", "double", "long", "int", "bool", "to", "reciprocal", "floor", "round", "remainder",
    "floor_divide", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not",
    "contiguous", "clone",
}  # fmt: skip
WORK = {"linear", "matmul", "mm", "bmm", "layer_norm", "rms_norm", "embedding_bag", "scaled_dot_product_attention"}
"""What is worth coming before a replication; all else only comes along."""
ALONG = {"softmax", "log_softmax", "mean", "sum", "amax", "amin", "cumsum", "normalize", "glu", "logsumexp", "norm"}
"""One dimension, or some, named by `dim`."""
_DIM_PLACE = {"normalize": 2, "norm": 2}
RANDOM = {"dropout", "dropout1d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "bernoulli", "rand_like",
          "randn_like", "rrelu", "gumbel_softmax"}  # fmt: skip


@dataclass(frozen=True)
class Lead:
    """How many leading dimensions the replication touches, and in the narrow tensor touched."""

    narrow: int
    wide: int


@dataclass(frozen=True)
class Mixed:
    """Why a call has no narrow form: this tensor is not repeated at all, so nothing behind it is work done twice."""

    tensor: fx.Node

    def __str__(self) -> str:
        return f"{self.tensor} differs from row to row"


def narrowed(node: fx.Node, lead: Lead, base: Callable[[fx.Node], fx.Node | None]) -> Call | str | Mixed:
    """The node's call on narrow tensors, or why there is none.

    base(x): the narrow tensor behind x, None where x is not replicated in the same way.
    """
    name = op_of(node)
    if name in RANDOM:
        if name == "dropout" and value(arg(node, 2, "training", True)) is False:
            return _pointwise(node, lead, base)
        return f"{name} draws anew for every row"
    if name == "batch_norm":
        return _batch_norm(node, lead, base)
    if name in POINTWISE:
        return _pointwise(node, lead, base)
    rule = _RULES.get(name)
    if rule is None:
        return f"no rule for {name or getattr(node.target, '__name__', node.target)}"
    first = node.args[0]
    if isinstance(first, fx.Node) and base(first) is None:
        return Mixed(first)
    return rule(node, lead, base)


Base = Callable[[fx.Node], fx.Node | None]


def _pointwise(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    target, args, kwargs = pure(node)
    wide = rank(node)
    for each in node.all_input_nodes:
        if not is_tensor(each):
            continue
        small = base(each)
        if small is None:
            if not _reaches_no_lead(each, wide, lead):
                return Mixed(each)
        elif rank(each) != wide:
            return f"{each} is broadcast over leading dimensions"
    return target, *_mapped(args, kwargs, base)


def _reaches_no_lead(x: fx.Node, wide: int, lead: Lead) -> bool:
    """A tensor that is the same for all rows: a parameter, say."""
    beyond = max(rank(x) - (wide - lead.wide), 0)
    return beyond <= lead.narrow and same_sizes(shape(x)[:beyond], (1,) * beyond)


def _mapped(args: Any, kwargs: Any, base: Base) -> tuple[Any, Any]:
    swap = lambda x: (base(x) or x) if is_tensor(x) else x  # noqa: E731
    return fx.node.map_arg(args, swap), fx.node.map_arg(kwargs, swap)


def _first(node: fx.Node, base: Base) -> fx.Node:
    found = base(node.args[0])  # type: ignore[arg-type]
    assert found is not None
    return found


def _linear(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    if rank(node.args[0]) - lead.wide < 1:  # type: ignore[arg-type]
        return "the replication reaches the last dimension"
    return node.target, (_first(node, base), *node.args[1:]), dict(node.kwargs)


def _norm(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    sizes = arg(node, 1, "normalized_shape")
    over = len(sizes) if isinstance(sizes, list | tuple) else 1
    if rank(node.args[0]) - lead.wide < over:  # type: ignore[arg-type]
        return f"it normalises over {over} dimensions, and the replication reaches them"
    return node.target, (_first(node, base), *node.args[1:]), dict(node.kwargs)


def _batch_norm(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    if value(arg(node, 5, "training", False)) is not False:
        return "batch_norm in training reads all rows"
    if lead != Lead(1, 1):
        return "batch_norm over more than rows and channels"
    return node.target, (_first(node, base), *node.args[1:]), dict(node.kwargs)


def _matmul(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    left, right = node.args[:2] if len(node.args) > 1 else (node.args[0], arg(node, 1, "other"))
    a, b = base(left), base(right)  # type: ignore[arg-type]
    tail = rank(left) - lead.wide  # type: ignore[arg-type]
    if a is not None and b is not None and rank(left) == rank(right) and tail >= 2:  # type: ignore[arg-type]
        return torch.matmul, (a, b), {}
    if a is not None and b is None and rank(right) == 2 and tail >= 1:  # type: ignore[arg-type]
        return torch.matmul, (a, right), {}
    return "its other operand differs from row to row"


def _attention(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    small = [base(x) for x in node.args[:3]]  # type: ignore[arg-type]
    mask, dropout = arg(node, 3, "attn_mask"), arg(node, 4, "dropout_p", 0.0)
    if len(small) < 3 or None in small:
        return "its keys or values differ from row to row"
    if mask is not None or value(dropout):
        return "it has a mask or drops out"
    if any(rank(x) != rank(node) for x in node.args[:3]) or rank(node) - lead.wide < 2:  # type: ignore[arg-type]
        return "the replication reaches the sequence"
    return node.target, (*small, *node.args[3:]), dict(node.kwargs)


def _embedding(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    if arg(node, 3, "max_norm") is not None:
        return "an embedding with max_norm writes to its table"
    return node.target, (_first(node, base), *node.args[1:]), dict(node.kwargs)


def _embedding_bag(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    small = _first(node, base)
    offsets, weights = arg(node, 2, "offsets"), arg(node, 8, "per_sample_weights")
    if rank(small) != 2 or lead != Lead(1, 1) or offsets is not None or weights is not None:
        return "bags by offsets, or weighed by sample"
    if arg(node, 3, "max_norm") is not None:
        return "an embedding with max_norm writes to its table"
    return node.target, (small, *node.args[1:]), dict(node.kwargs)


def _reshape(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    wide = node.args[0]
    if not same_sizes(shape(wide)[: lead.wide], shape(node)[: lead.wide]) or rank(node) < lead.wide:  # type: ignore[arg-type]
        return "it reshapes the replicated dimensions"
    small = _first(node, base)
    sizes = [size_arg(node, small, dim) for dim in range(lead.narrow)]
    own = [_read_before(node, dim) for dim in range(lead.wide, rank(node))]
    if None in own:
        return f"its result has a size that its input lacks: {tuple(shape(node))}"
    return "reshape", (small, *sizes, *own), {}


def _read_before(node: fx.Node, dim: int) -> Any:
    """A size of a reshape's result, read off its input, as the result is not there yet; None where it has no such."""
    size, source = shape(node)[dim], node.args[0]
    if isinstance(size, int):
        return size
    equal = (d for d in range(rank(source)) if same_sizes(shape(source)[d : d + 1], (size,)))  # type: ignore[arg-type]
    found = next(equal, None)
    return None if found is None else size_arg(node, source, found)  # type: ignore[arg-type]


def _dims(node: fx.Node, places: tuple[tuple[int, str], ...]) -> list[Any]:
    return [arg(node, place, name) for place, name in places]


def _from_end(dim: Any, of: int, lead: Lead) -> int | None:
    """The dimension counted from the end, which is the same for narrow and wide; None where it is a leading one."""
    if not isinstance(dim, int) or (dim % of if of else 0) < lead.wide:
        return None
    return dim % of - of


LEADING = "it is along a replicated dimension"


def _transpose(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    dims = [_from_end(dim, rank(node), lead) for dim in _dims(node, ((1, "dim0"), (2, "dim1")))]
    return LEADING if None in dims else ("transpose", (_first(node, base), *dims), {})


def _mT(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    return LEADING if rank(node) - lead.wide < 2 else ("transpose", (_first(node, base), -2, -1), {})


def _permute(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    given = node.args[1:]
    order = list(given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given)
    if len(order) != rank(node) or not all(isinstance(dim, int) for dim in order):
        return LEADING
    order = [dim % rank(node) for dim in order]  # type: ignore[operator]
    if order[: lead.wide] != list(range(lead.wide)):
        return LEADING
    order = [*range(lead.narrow), *(dim - lead.wide + lead.narrow for dim in order[lead.wide :])]
    return "permute", (_first(node, base), *order), {}


def _unsqueeze(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    dim = _from_end(arg(node, 1, "dim"), rank(node), lead)
    return LEADING if dim is None else ("unsqueeze", (_first(node, base), dim), {})


def _by_dim(place: int = 1, default: Any = None) -> Callable[[fx.Node, Lead, Base], Call | str | Mixed]:
    """A function along one dimension, or several, of its first argument."""

    def rule(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
        dim, of = arg(node, place, "dim", default), rank(node.args[0])  # type: ignore[arg-type]
        dims = dim if isinstance(dim, list | tuple) else (dim,)
        ends = [_from_end(each, of, lead) for each in dims]
        if not ends or None in ends:
            return LEADING
        new: Any = list(ends) if isinstance(dim, list | tuple) else ends[0]
        target, args, kwargs = node.target, (_first(node, base), *node.args[1:]), dict(node.kwargs)
        if len(args) > place:
            return target, (*args[:place], new, *args[place + 1 :]), kwargs
        return target, args, {**kwargs, "dim": new}

    return rule


def _sequence(extra: int) -> Callable[[fx.Node, Lead, Base], Call | str | Mixed]:
    """cat (extra 0) and stack (extra 1): all of them replicated, along another dimension."""

    def rule(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
        parts = node.args[0]
        dim = _from_end(arg(node, 1, "dim", 0), rank(node), lead)
        if dim is None or not isinstance(parts, list | tuple):
            return LEADING
        small = [base(part) for part in parts]  # type: ignore[arg-type]
        missing = next((part for part, found in zip(parts, small, strict=True) if found is None), None)
        return Mixed(missing) if missing is not None else (node.target, (small, dim), {})  # type: ignore[arg-type]

    return rule


def _getitem(node: fx.Node, lead: Lead, base: Base) -> Call | str | Mixed:
    index = node.args[1]
    small = base(node.args[0])  # type: ignore[arg-type]
    if not is_tensor(node.args[0]):  # of the parts of a split
        return node.target, (small, index), {}
    index = index if isinstance(index, tuple) else (index,)
    if index[:1] == (Ellipsis,):
        taken = sum(each is not None for each in index[1:])
        index = (slice(None),) * (rank(node.args[0]) - taken) + index[1:]  # type: ignore[arg-type]
    if len(index) <= lead.wide or any(each != slice(None) for each in index[: lead.wide]):
        return LEADING
    rest = index[lead.wide :]
    picks = [place for place, each in enumerate(rest) if isinstance(each, fx.Node) and is_tensor(each)]
    plain = all(each is None or isinstance(each, int | slice) for p, each in enumerate(rest) if p not in picks)
    ints = any(isinstance(each, int) for each in rest)
    if not plain or (picks and (ints or picks[-1] - picks[0] + 1 != len(picks))):
        return "an index that no rule reads"
    return node.target, (small, (slice(None),) * lead.narrow + rest), {}


_RULES: dict[str, Callable[[fx.Node, Lead, Base], Call | str | Mixed]] = {
    "linear": _linear, "layer_norm": _norm, "rms_norm": _norm, "matmul": _matmul, "mm": _matmul, "bmm": _matmul,
    "scaled_dot_product_attention": _attention, "embedding": _embedding, "embedding_bag": _embedding_bag,
    "reshape": _reshape, "view": _reshape, "flatten": _reshape, "unflatten": _reshape, "transpose": _transpose,
    "mT": _mT, "permute": _permute, "unsqueeze": _unsqueeze, "squeeze": _by_dim(), "select": _by_dim(),
    "narrow": _by_dim(), "unbind": _by_dim(default=0), "split": _by_dim(2, 0), "chunk": _by_dim(2, 0),
    "tensor_split": _by_dim(2, 0), "cat": _sequence(0), "stack": _sequence(1), "getitem": _getitem,
    **{name: _by_dim(_DIM_PLACE.get(name, 1), 1 if name == "normalize" else -1 if name == "glu" else None)
       for name in ALONG},
}  # fmt: skip


def build(before: fx.Node, call: Call) -> fx.Node:
    target, args, kwargs = call
    return emit(before, target, *args, **kwargs)
