"""Which operations leave leading dimensions alone, so that a replication along them may come after the operation.

A rule says how a node's call reads on the narrow tensor behind its replicated main argument (_wide.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from loka_compile.graph import aten
from loka_compile.graph.edit import size_arg
from loka_compile.graph.facts import Reading
from loka_compile.graph.reshapes import is_reshape, keeps
from loka_compile.graph.sizes import same_sizes
from loka_compile.passes.simplify._wide import LEADING, Lead, Mixed, Narrow, Wide


def narrowed(wide: Wide) -> Narrow:
    """The node's call on narrow tensors, or why there is none."""
    fact, name = wide.reading.facts[wide.node], wide.name
    if fact.random:
        return f"{name or 'it'} draws anew for every row"
    if name == "batch_norm":
        return _batch_norm(wide)
    if fact.pointwise or name in (aten.IDENTITY, "dropout"):
        return _pointwise(wide)
    view = wide.reading.permuted(wide.node) is not None
    rule = _permute if view else _reshape if is_reshape(wide.reading, wide.node) else _RULES.get(name)
    if rule is None:
        return f"no rule for {name or getattr(wide.node.target, '__name__', wide.node.target)}"
    if isinstance(wide.main, fx.Node) and wide.base(wide.main) is None:
        return Mixed(wide.main)
    return rule(wide)


def turned(reading: Reading, node: fx.Node, lead: Lead) -> tuple[int, ...] | None:
    """The order of a narrow tensor's dimensions, if the node permutes a wide one so that one of them comes before the
    replicated ones."""
    _, order = reading.permuted(node) or (None, ())
    if not order or order[0] < lead.wide or order[1 : 1 + lead.wide] != (*range(lead.wide),):
        return None
    moved = (order[0], *order[1 + lead.wide :])
    first, *rest = (dim - lead.wide + lead.narrow for dim in moved)
    return first, *range(lead.narrow), *rest


def takes_parts(reading: Reading, node: fx.Node) -> bool:
    """Whether the node takes the parts of its input along the first dimension."""
    if reading.op(node) == "getitem":
        return isinstance(node.args[1], int)
    return reading.op(node) in ("unbind", "select") and reading.arg(node, "dim") == 0


def _pointwise(wide: Wide) -> Narrow:
    reading, rank = wide.reading, wide.reading.rank(wide.node)
    for each in filter(reading.is_tensor, wide.node.all_input_nodes):
        if wide.base(each) is None:
            if not _reaches_no_lead(reading, each, rank, wide.lead):
                return Mixed(each)
        elif reading.rank(each) != rank:
            return f"{each} is broadcast over leading dimensions"
    return _as_written(wide)


def _reaches_no_lead(reading: Reading, x: fx.Node, rank: int, lead: Lead) -> bool:
    """Whether the tensor is the same for all rows, as a parameter is."""
    beyond = max(reading.rank(x) - (rank - lead.wide), 0)
    return beyond <= lead.narrow and same_sizes(reading.shape(x)[:beyond], (1,) * beyond)


def _as_written(wide: Wide) -> Narrow:
    """The same call with each replicated tensor replaced by its narrow one."""
    swap = lambda x: wide.base(x) or x  # noqa: E731
    return wide.node.target, map_arg(wide.node.args, swap), map_arg(wide.node.kwargs, swap)


def _on_main(wide: Wide) -> Narrow:
    """The same call, if only its main argument is replicated."""
    inputs = [x for x in tree_leaves((wide.node.args, wide.node.kwargs)) if isinstance(x, fx.Node)]
    others = [x for x in inputs if x is not wide.main and wide.base(x) is not None]
    if others or inputs.count(wide.main) > 1:
        return f"{(others or [wide.main])[0]} is repeated too, and no rule covers that argument"
    return _as_written(wide)


def _again(wide: Wide, **changes: Any) -> Narrow:
    """The node's operator on the narrow tensor, with these arguments changed."""
    given = {name: wide.arg(name) for name in wide.reading.facts[wide.node].given}
    given |= {next(iter(given)): wide.narrow, **changes}
    if any(isinstance(each, torch.SymInt | torch.Tensor) for each in tree_leaves(given)):
        return "one of its sizes is symbolic, and no node holds it"
    if wide.name == "normalize":
        return F.normalize, tuple(given.values()), {}
    [call] = wide.reading.facts[wide.node].calls
    by_name = {each.name for each in call.op._schema.arguments if each.kwarg_only}
    args = tuple(each for name, each in given.items() if name not in by_name)
    return call.op, args, {name: each for name, each in given.items() if name in by_name}


def _linear(wide: Wide) -> Narrow:
    return _on_main(wide) if wide.beyond >= 1 else "the replication reaches the last dimension"


def _norm(wide: Wide) -> Narrow:
    over = len(wide.arg("normalized_shape"))
    if wide.beyond < over:
        return f"it normalises over {over} dimensions, and the replication reaches them"
    return _on_main(wide)


def _batch_norm(wide: Wide) -> Narrow:
    if wide.arg("training"):
        return "batch_norm in training reads all rows"
    if wide.lead != Lead(1, 1):
        return "the replication adds dimensions, and batch_norm expects rows and channels"
    return _on_main(wide)


def _matmul(wide: Wide) -> Narrow:
    left, right = wide.reading.product(wide.node) or (wide.main, None)
    a, b, rank = wide.base(left), wide.base(right), wide.reading.rank
    if a is not None and b is not None and rank(left) == rank(right) and wide.beyond >= 2:
        return torch.matmul, (a, b), {}
    if a is not None and b is None and right is not None and rank(right) == 2 and wide.beyond >= 1:
        return torch.matmul, (a, right), {}
    return "its other operand differs from row to row"


def _attention(wide: Wide) -> Narrow:
    operands = [wide.arg(name) for name in ("query", "key", "value")]
    if None in map(wide.base, operands):
        return "its keys or values differ from row to row"
    if wide.arg("dropout_p"):
        return "it has dropout"
    rank = wide.reading.rank(wide.node)
    if any(wide.reading.rank(x) != rank for x in operands) or rank - wide.lead.wide < 2:
        return "the replication reaches the sequence"
    if (mask := wide.arg("attn_mask")) is not None:
        if wide.base(mask) is None and not _reaches_no_lead(wide.reading, mask, rank, wide.lead):
            return "its mask differs from row to row"
        if wide.base(mask) is not None and wide.reading.rank(mask) != rank:
            return "its mask is broadcast over leading dimensions"
    return _as_written(wide)


def _embedding(wide: Wide) -> Narrow:
    if wide.arg("scale_grad_by_freq"):
        return "scale_grad_by_freq counts how often an index is repeated"
    if wide.name == "embedding":
        return _on_main(wide)
    by_rows = wide.reading.rank(wide.narrow) == 2 and wide.lead == Lead(1, 1)
    if not by_rows or wide.arg("offsets") is not None or wide.arg("per_sample_weights") is not None:
        return "embedding_bag has offsets or per_sample_weights"
    return _on_main(wide)


def _reshape(wide: Wide) -> Narrow:
    reading, node, source, lead = wide.reading, wide.node, wide.main, wide.lead
    if not keeps(reading, node, source, lead.wide):
        return "it reshapes replicated dimensions"
    own = [_read_before(wide, dim) for dim in range(lead.wide, reading.rank(node))]
    if None in own:
        return f"its result has a size that its input lacks: {tuple(reading.shape(node))}"
    sizes = [size_arg(reading, node, wide.narrow, dim) for dim in range(lead.narrow)]
    return "reshape", (wide.narrow, *sizes, *own), {}


def _read_before(wide: Wide, dim: int) -> Any:
    """A size of a reshape's result, read off the reshape's input, because the result does not exist yet. None if no
    size of the input equals it."""
    size, sizes = wide.reading.shape(wide.node)[dim], wide.reading.shape(wide.main)
    if isinstance(size, int):
        return size
    found = next((place for place, each in enumerate(sizes) if same_sizes((each,), (size,))), None)
    return None if found is None else size_arg(wide.reading, wide.node, wide.main, found)


def _permute(wide: Wide) -> Narrow:
    _, order = wide.reading.permuted(wide.node) or (None, ())
    narrow, behind = wide.lead.narrow, wide.lead.wide
    if order[:behind] != (*range(behind),):
        return LEADING
    return "permute", (wide.narrow, *range(narrow), *(dim - behind + narrow for dim in order[behind:])), {}


def _unsqueeze(wide: Wide) -> Narrow:
    dim = wide.from_end(wide.arg("dim"), wide.reading.rank(wide.node))
    return LEADING if dim is None else ("unsqueeze", (wide.narrow, dim), {})


def _by_dim(wide: Wide) -> Narrow:
    """A function along one dimension, or several, of its main argument."""
    dim, of = wide.arg("dim"), wide.reading.rank(wide.main)
    dims = [wide.from_end(each, of) for each in (dim if isinstance(dim, list | tuple) else (dim,))]
    if not dims or None in dims:
        return LEADING
    return _again(wide, dim=dims if isinstance(dim, list | tuple) else dims[0])


def _sequence(wide: Wide) -> Narrow:
    """cat and stack, if all their tensors are replicated and they go along another dimension."""
    parts, dim = wide.arg("tensors"), wide.from_end(wide.arg("dim"), wide.reading.rank(wide.node))
    if dim is None:
        return LEADING
    missing = next((part for part in parts if wide.base(part) is None), None)
    return Mixed(missing) if missing is not None else (wide.node.target, ([*map(wide.base, parts)], dim), {})


def _getitem(wide: Wide) -> Narrow:
    index, reading = wide.node.args[1], wide.reading
    if not reading.is_tensor(wide.main):  # one of the parts of a split
        return wide.node.target, (wide.narrow, index), {}
    index = index if isinstance(index, tuple) else (index,)
    if index[:1] == (Ellipsis,):
        taken = sum(each is not None for each in index[1:])
        index = (slice(None),) * (reading.rank(wide.main) - taken) + index[1:]
    lead = wide.lead
    if len(index) <= lead.wide or any(each != slice(None) for each in index[: lead.wide]):
        return LEADING
    rest = index[lead.wide :]
    picks = [place for place, each in enumerate(rest) if reading.is_tensor(each)]
    plain = all(each is None or isinstance(each, int | slice) for p, each in enumerate(rest) if p not in picks)
    ints = any(isinstance(each, int) for each in rest)
    if not plain or (picks and (ints or picks[-1] - picks[0] + 1 != len(picks))):
        return f"no rule for the index {wide.node.args[1]}"
    return wide.node.target, (wide.narrow, (slice(None),) * lead.narrow + rest), {}


_OPERATORS: tuple[tuple[Callable[[Wide], Narrow], tuple[str, ...]], ...] = (
    (_linear, ("linear",)),
    (_norm, ("layer_norm", "rms_norm")),
    (_matmul, ("matmul", "mm", "bmm")),
    (_attention, ("scaled_dot_product_attention",)),
    (_embedding, ("embedding", "embedding_bag")),
    (_on_main, ("detach",)),
    (_unsqueeze, ("unsqueeze",)),
    (_sequence, ("cat", "stack")),
    (_getitem, ("getitem",)),
    (_by_dim, ("squeeze", "select", "narrow", "unbind", "split", "split_with_sizes", "chunk", "tensor_split")),
    (_by_dim, ("softmax", "log_softmax", "cumsum", "normalize", "glu")),
    (_by_dim, ("mean", "sum", "amax", "amin", "logsumexp", "linalg_vector_norm")),
)
"""Each rule with its operators. They treat the main argument's rows independently; those of `_by_dim` go along `dim`.
"""
_RULES = {name: rule for rule, names in _OPERATORS for name in names}
