"""Putting a traced torch function into a graph.

Replacement code is an ordinary torch function, traced under Inductor's decomposition table. Nodes built by hand trip
over operators that have "both a fallback and a decomp" (seen for aten.clamp and aten.t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import fx
from torch.fx.node import map_arg

from loka_compile.graph.traced import traced
from loka_compile.kernels.op import Op

_INHERITED = ("nn_module_stack", "fwd_nn_module_stack", "stack_trace", "seq_nr", "partitioner_tag", "source_fn_stack")


def splice(before: fx.Node, function: Callable[..., Any], args: Sequence[Any], **meta: Any) -> Any:
    """Trace `function` on `args` (nodes or constants) and insert the result before `before`.

    Returns what the function returns, with nodes in place of tensors. Every new node has `meta["val"]`, the names of
    `before` (module stack, stack trace, sequence number, partitioner tag) and `meta`.
    Raises TypeError if the function makes a tensor constant.
    """
    graph = before.graph
    nodes = [arg for arg in args if isinstance(arg, fx.Node)]
    made, values = traced(function, args, [node.meta["val"] for node in nodes])
    inherited = {name: before.meta[name] for name in _INHERITED if name in before.meta}
    placeholders = [node for node in made.nodes if node.op == "placeholder"]
    env = dict(zip(placeholders, nodes, strict=True))
    with graph.inserting_before(before):
        for node in made.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return map_arg(node.args[0], env.__getitem__)
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta.update(inherited, val=values[node], **meta)
    raise AssertionError("a traced graph has an output")


def put(before: fx.Node, call: Op[fx.Node, Any], **meta: Any) -> Any:
    """Insert a call of an op of ours and return its values as nodes; see `splice`."""
    return call.named(splice(before, call.target(), call.args, **meta))


def splice_call(before: fx.Node, call: Op[fx.Node, Any], function: Callable[[Any], Any], **meta: Any) -> Any:
    """`splice` a function of a call; the function is given the call with tensors in place of nodes."""
    kind = type(call)
    return splice(before, lambda *args: function(kind.bind(*args)), call.args, **meta)


def hand_over(call: fx.Node, values: Sequence[Any]) -> None:
    """Let the readers of a call's values read `values` instead, place by place."""
    for user in list(call.users):
        if user.users:
            user.replace_all_uses_with(values[cast(int, user.args[1])])
