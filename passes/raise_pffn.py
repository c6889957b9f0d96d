"""raise_pffn: Kunlun's whole PFFN block becomes loka::pffn, one kernel where there were three.

    n = layer_norm(s);  z = gdpa(heads of n, k, v) + n;  rms_norm(z) + s          norms over a token, without affine

Reads what raise_gdpa made. Works on CUDA, in 16 bits and in inference: a gradient is gdpa's and the norms' own.
Source: Meta's fused normalization around GDPA (papers.md 2.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from loka_compile.graph.reading import called, only_user, value, written
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import emit, op_of, replace_part, same_sizes, shape
from loka_compile.kernels.gdpa import Gdpa
from loka_compile.kernels.gdpa_pffn import Pffn
from loka_compile.kernels.gdpa_pffn_kernel import reasons_against
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.raise_norms import LAYER, RMS, norm_of

RESHAPES = ("flatten", "unflatten", "reshape", "view")


@dataclass(frozen=True)
class RaisePffn:
    name: ClassVar[str] = "raise_pffn"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        nodes = [n for n in graph.nodes if Gdpa.matches(n)]
        return apply(graph, nodes, pattern, lambda found: check(found, context.training), rewrite)


@dataclass(frozen=True)
class Block:
    """s: the tokens; attention: gdpa's node; last: whose value is replaced; nodes: those between the two."""

    s: fx.Node
    attention: fx.Node
    eps: float
    eps_out: float
    last: fx.Node
    nodes: tuple[fx.Node, ...]


def pattern(attention: fx.Node) -> Block | None:
    """The block around an attention over heads of normalised tokens."""
    call = Gdpa.of(attention)
    heads = _turned(call.q)
    n = heads.args[0] if heads is not None and op_of(heads) in RESHAPES else None
    dense = call.cu_seqlens_q is call.cu_seqlens_k is None
    if not dense or call.window != -1 or not _bare(n, LAYER):
        return None
    _, heads_of_k, _, width = value(call.k).shape
    if not same_sizes(value(heads).shape, (*value(n).shape[:-1], heads_of_k, width)):
        return None
    before = norm_of(n)  # type: ignore[arg-type]
    back = only_user(attention)
    tokens = only_user(back) if back is not None and _turned(back) is attention else None
    z = only_user(tokens) if tokens is not None and op_of(tokens) in RESHAPES else None
    norm = only_user(z) if z is not None and _is_sum(z, tokens, n) else None
    if not _bare(norm, RMS) or not same_sizes(value(tokens).shape, value(n).shape):
        return None
    after, last = norm_of(norm), only_user(norm)  # type: ignore[arg-type]
    if last is None or not _is_sum(last, norm, before.x) or {*n.users} != {heads, z}:  # type: ignore[union-attr]
        return None
    nodes = (n, heads, call.q, attention, back, tokens, z, norm)
    return Block(before.x, attention, before.eps, after.eps, last, nodes)  # type: ignore[arg-type]


def check(found: Block, training: bool) -> str:
    """Why it stays as it is; empty if it is raised."""
    s, attention = value(found.s), Gdpa.of(found.attention)
    k, v = attention.k, attention.v
    if training:
        return "it is differentiated: its gradient is that of its parts"
    if s.dim() != 3:
        return f"its tokens are {tuple(s.shape)}, not (batch, length, width)"
    if not all(isinstance(size, int) for size in shape(k)[1:]):
        return f"its keys are {tuple(shape(k))}; all sizes but the batch must be known"
    if reasons := reasons_against(s, value(k)):
        return reasons[0]
    for each in (found.s, k, v, *found.nodes, found.last):
        if name := written(each):
            return f"{each} is written to in place ({name})"
    return ""


def rewrite(found: Block) -> Rewrite:
    was = Gdpa.of(found.attention)
    named = was.activation, was.scale, was.scale_inside, found.eps, found.eps_out
    call = Pffn(found.s, was.k, was.v, *named)
    new = replace_part(found.last, emit(found.last, call.target(), *call.args), (call.x, call.k, call.v))
    return Rewrite(module_name(new), "one op: norms, attention and residuals")


# ---------------------------------------------------------------- the parts


def _turned(node: Any) -> fx.Node | None:
    """x of x.transpose(1, 2)."""
    turns = op_of(node) == "transpose" and node.args[1:] == (1, 2)
    return node.args[0] if turns else None


def _bare(node: Any, kinds: tuple[Any, ...]) -> bool:
    """A norm of one of these kinds, over the last dimension, without weight and bias."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.target not in kinds:
        return False
    norm = norm_of(node)
    return norm.weight is None and norm.bias is None and len(norm.shape) == 1


def _is_sum(node: Any, a: Any, b: Any) -> bool:
    """Whether it is a + b, in either order."""
    return called(node) == "add" and not node.kwargs and node.args in ((a, b), (b, a))
