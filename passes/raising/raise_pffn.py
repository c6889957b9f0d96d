"""raise_pffn: Kunlun's whole PFFN block becomes loka::pffn, one kernel instead of three.

    n = layer_norm(s);  z = gdpa(heads of n, k, v) + n;  rms_norm(z) + s          norms over a token, without affine

It finds the loka::gdpa that raise_gdpa made and reads the graph around it. It works on CUDA, in 16 bits and in
inference: gdpa and the norms have gradients, the whole block has none.
Source: Meta's fused normalization around GDPA (pytorch.org's blog).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import fx

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import same_sizes
from loka_compile.kernels.gdpa.gdpa import Gdpa
from loka_compile.kernels.gdpa.gdpa_pffn import Pffn
from loka_compile.kernels.gdpa.gdpa_pffn_kernel import reasons_against
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.raising._norms import norm_of

RESHAPES = ("flatten", "unflatten", "reshape", "view")


@dataclass(frozen=True)
class RaisePffn:
    name: ClassVar[str] = "raise_pffn"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading, context.training), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


@dataclass(frozen=True)
class Block:
    """A match.

    s: the tokens.
    attention: the gdpa node.
    last: the node whose value is replaced.
    nodes: those between s and last.
    """

    s: fx.Node
    attention: fx.Node
    eps: float
    eps_out: float
    last: fx.Node
    nodes: tuple[fx.Node, ...]


def pattern(reading: Reading, attention: fx.Node) -> Block | None:
    """The PFFN block around this attention, if its queries are the heads of normalized tokens."""
    if reading.op(attention) != "loka::gdpa":
        return None
    names = "q", "k", "cu_seqlens_q", "cu_seqlens_k", "window"
    q, k, *others = (reading.arg(attention, name) for name in names)
    heads = _turned(reading, q)
    n = reading.arg(heads, "self") if reading.op(heads) in RESHAPES else None
    if n is None or others != [None, None, -1] or not _bare(reading, n, "layer_norm"):
        return None
    _, heads_of_k, _, width = reading.shape(k)
    if not same_sizes(reading.shape(heads), (*reading.shape(n)[:-1], heads_of_k, width)):
        return None
    back = reading.only_user(attention)
    tokens = reading.only_user(back) if _turned(reading, back) is attention else None
    z = reading.only_user(tokens) if reading.op(tokens) in RESHAPES else None
    norm = reading.only_user(z) if _is_sum(reading, z, tokens, n) else None
    if z is None or norm is None or not _bare(reading, norm, "rms_norm"):
        return None
    if not same_sizes(reading.shape(tokens), reading.shape(n)):
        return None
    before, after, last = norm_of(reading, n), norm_of(reading, norm), reading.only_user(norm)
    if not _is_sum(reading, last, norm, before.x) or {*n.users} != {heads, z}:
        return None
    nodes = (n, heads, q, attention, back, tokens, z, norm)
    return Block(before.x, attention, before.eps, after.eps, last, nodes)


def check(reading: Reading, training: bool, found: Block) -> str:
    """Why the block stays as it is; "" if it is raised."""
    s, k = reading.value(found.s), reading.arg(found.attention, "k")
    if training:
        return "it needs a gradient, and loka::pffn has none"
    if s.dim() != 3:
        return f"its tokens are {tuple(s.shape)}; expected (batch, length, width)"
    if not all(isinstance(size, int) for size in reading.shape(k)[1:]):
        return f"its keys are {tuple(reading.shape(k))}; all sizes but the batch must be known"
    if reasons := reasons_against(s, reading.value(k)):
        return reasons[0]
    return reading.reason_against((*found.nodes, found.last))


def rewrite(reading: Reading, found: Block) -> Rewrite:
    was = Gdpa.of(found.attention)
    call = Pffn(found.s, was.k, was.v, was.activation, was.scale, was.scale_inside, found.eps, found.eps_out)
    new = replace(reading, found.last, emit(reading, found.last, call.target(), *call.args))
    return Rewrite(module_name(new), "one op: norms, attention and residuals")


# ---------------------------------------------------------------- the parts


def _turned(reading: Reading, node: Any) -> fx.Node | None:
    """x if the node is x.transpose(1, 2) and x has four dimensions."""
    x, order = reading.permuted(node) or (None, ())
    return x if order == (0, 2, 1, 3) else None


def _bare(reading: Reading, node: Any, kind: str) -> bool:
    """Whether the node is a norm of this kind over the last dimension, without weight and bias."""
    if reading.op(node) != kind:
        return False
    norm = norm_of(reading, node)
    return norm.weight is None and norm.bias is None and len(norm.shape) == 1


def _is_sum(reading: Reading, node: Any, a: Any, b: Any) -> bool:
    """Whether the node is a + b, in either order."""
    return reading.operands(node, "add") in ((a, b), (b, a))
