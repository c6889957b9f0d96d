"""A chain: the nodes after a product that loka::gemm_norm's epilogue could compute. The pass `fuse` reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.nodes import VIEWS, alike, is_vector, last_with_views
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm.epilogue import product_dtype
from loka_compile.kernels.gemm_norm.gemm_norm_tiles import WIDEST, needs_two
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.providers import FUSING
from loka_compile.kernels.providers.triton import ALIGNED
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.post_grad._padding import NARROWED

aten = torch.ops.aten


@dataclass(frozen=True)
class Chain:
    """A product and what follows it: (bias, residual) -> norm -> quantize, with views between.

    path: from the product to the last value, each node read by the next. No other node reads them, except the input of
        the norm.
    bias, residual: tensors that are added to the product.
    norm: a loka::norm_quantize node.
    quantize: the quantization of the last value by rows.
    stopped: why the chain ends before a node that would have belonged to it.
    """

    path: tuple[fx.Node, ...]
    bias: fx.Node | None = None
    residual: fx.Node | None = None
    norm: fx.Node | None = None
    quantize: fx.Node | None = None
    stopped: str = ""

    @property
    def gemm(self) -> fx.Node:
        return self.path[0]

    @property
    def last(self) -> fx.Node:
        return self.path[-1]

    @property
    def sums(self) -> tuple[fx.Node, ...]:
        """The input of the norm, as far back as it can be read: the last sum (or the product) and views of it."""
        before = self.path[: self.path.index(self.norm)] if self.norm is not None else self.path
        return tuple(last_with_views(before))

    @property
    def kept(self) -> bool:
        """Whether nodes outside the chain read the norm's input or its statistics. The kernel then writes them too."""
        if self.norm is None:
            return False
        others = any(user not in self.path for node in self.sums for user in node.users)
        return others or any(user.users for user in NormQuantize.taken(self.norm, "statistics"))


def pattern(gemm: fx.Node) -> Chain:
    """The longest chain that starts at this product."""
    chain = Chain((gemm,))
    for user in gemm.users:
        if user.target is NARROWED:
            n, padded = user.meta["val"].shape[-1], gemm.meta["val"].shape[-1]
            return replace(chain, stopped=f"N is padded, {n} -> {padded}: an epilogue would see the zeros")
    while chain.quantize is None:
        users = list(chain.last.users)
        wanted = [user for user in users if _what(user, chain)]
        normed = [user for user in wanted if chain.norm is None and _is_normed(user)]
        if len(users) == len(wanted) == 1 or len(normed) == 1:
            chain = _extended(chain, (normed or wanted)[0])
            continue
        others = [user.name for user in users if user not in wanted]
        stopped = f"{chain.last.name} is also read by {', '.join(others[:3])}" if wanted and others else ""
        return _alone(replace(chain, stopped=stopped))
    return chain


def _alone(chain: Chain) -> Chain:
    """The chain cut at the first value that others read too. A chain with a norm stays: the kernel can write what its
    norm reads."""
    read = [i for i, node in enumerate(chain.path[:-1]) if any(user not in chain.path for user in node.users)]
    return replace(chain, path=chain.path[: read[0] + 1]) if read and chain.norm is None else chain


def _is_normed(node: fx.Node) -> bool:
    """Whether the node is a norm, or a view that a norm reads."""
    return NormQuantize.matches(node) or (node.target in VIEWS and any(_is_normed(user) for user in node.users))


def _what(user: fx.Node, chain: Chain) -> str:
    """The part of the epilogue that `user` would be: "bias", "residual", "view", "norm", "quantize", or "" for none."""
    made = chain.last.meta["val"]
    if user.target is aten.add.Tensor and chain.norm is None and not user.kwargs:
        return _added(_other(user, chain.last), user, chain)
    if user.target in VIEWS and compat.guard_free(user.meta["val"].shape[-1] == made.shape[-1]):
        return "view"
    if chain.norm is None and NormQuantize.matches(user):
        norm = NormQuantize.of(user)
        return "norm" if norm.x is chain.last and norm.given is None else ""
    return "quantize" if is_by_row(user) and made.dim() == 2 else ""


def is_by_row(node: fx.Node, axis: int = -1) -> bool:
    """Whether the node quantizes to FP8 with one scale a row; with axis -2, one scale a column."""
    cast = Quantize.of(node) if Quantize.matches(node) else None
    return cast is not None and cast.dtype in FP8 and (cast.scaling, cast.axis) == ("row", axis)


def _added(other: Any, add: fx.Node, chain: Chain) -> str:
    """ "bias" for a vector of N values. "residual" for a tensor of the product's shape whose sum a norm reads. "" for
    others."""
    if not isinstance(other, fx.Node) or other is chain.last:
        return ""
    if chain.bias is None and is_vector(other, chain.last.meta["val"].shape[-1]):
        return "bias"
    rows = chain.residual is None and alike(other, chain.last) and alike(other, add)
    return "residual" if rows and any(_is_normed(user) for user in add.users) else ""


def _extended(chain: Chain, user: fx.Node) -> Chain:
    """The chain with `user` as its next node."""
    what, path = _what(user, chain), (*chain.path, user)
    if what == "bias":
        return replace(chain, path=path, bias=_other(user, chain.last))
    if what == "residual":
        return replace(chain, path=path, residual=_other(user, chain.last))
    if what == "norm":
        return replace(chain, path=(*path, _normed(user)), norm=user)
    return replace(chain, path=path, quantize=user if what == "quantize" else None)


def _other(add: fx.Node, one: fx.Node) -> Any:
    """The addend of `add` that is not `one`."""
    return add.args[1] if add.args[0] is one else add.args[0]


def _normed(norm: fx.Node) -> fx.Node:
    """The normalized value of a norm_quantize node. Raises ValueError if nothing reads it."""
    if taken := NormQuantize.taken(norm, "out"):
        return taken[0]
    raise ValueError(f"nothing reads the result of {norm.name}")


def check(chain: Chain) -> str:
    """Why the chain cannot become one op; "" if it can. K and N must be known multiples of ALIGNED above 0."""
    gemm = ScaledGemm.of(chain.gemm)
    left, right = gemm.a.meta["val"], gemm.b.meta["val"]
    k, n = left.shape[-1], right.shape[-1]
    if gemm.provider not in FUSING:
        return f"{gemm.provider}'s kernel has no epilogue; expected {' or '.join(FUSING)}"
    if left.dim() != 2:
        return f"left operand has shape {tuple(left.shape)}; the epilogue needs a matrix, not a batch"
    if left.dtype not in (*FP8, torch.bfloat16, torch.float16):
        return f"operands are {left.dtype}; the epilogue needs FP8, bfloat16 or float16"
    for name, size in (("K", k), ("N", n)):
        if not isinstance(size, int) or not size or size % ALIGNED:
            return f"{name} = {size}; the epilogue needs a known multiple of {ALIGNED} above 0"
    if gemm.a_scale is not None and gemm.a_scale.meta["val"].dim() != 2:
        return "operands have one scale a tensor; the epilogue needs one scale a row"
    if gemm.b_scale is not None and tuple(gemm.b_scale.meta["val"].shape) != (1, n):
        return "weight is scaled by blocks; the epilogue needs one scale a row"
    norm = NormQuantize.of(chain.norm) if chain.norm is not None else None
    kind, block = (norm.row.norm, norm.row.block) if norm is not None else ("none", 0)
    if needs_two(n, kind, block, chain.quantize is not None):
        what = "row norm" if needs_two(n, kind, block, False) else "row scale"
        return f"{what} needs N <= {WIDEST} (one tile); N = {n}"
    if chain.norm is None or norm is None or not chain.kept:
        return ""
    if _both_ways(_normed(chain.norm)):
        return "the norm's result is quantized by rows and by columns; one op does both (fuse_cast)"
    late = [each.name for each in (norm.weight, norm.bias) if each is not None and not each < chain.sums[0]]
    if late:
        return f"the product has readers before {late[0]} is computed, a vector that the norm needs"
    read, written = chain.sums[0].meta["val"].dtype, product_dtype(left)
    if read != written:
        return f"other readers need the product in {read}; the kernel writes {written}"
    return ""


def _both_ways(normed: fx.Node) -> bool:
    """Whether the norm's result is read only by FP8 quantizations, by rows and by columns, of one dtype. fuse_cast then
    makes one op of norm and quantizations, and the wide result is never written."""
    while len(normed.users) == 1 and (view := next(iter(normed.users))).target in VIEWS:
        normed = view
    by_row = [user for user in normed.users if is_by_row(user)]
    by_column = [user for user in normed.users if is_by_row(user, -2)]
    dtypes = {Quantize.of(user).dtype for user in (*by_row, *by_column)}
    return bool(by_row and by_column) and len(by_row + by_column) == len(normed.users) and len(dtypes) == 1


def shorter(chain: Chain) -> Chain | None:
    """The chain without its last part: without the quantization, then without the norm if a bias or residual remains.
    None if nothing is left to fuse."""
    if chain.quantize is not None and (chain.norm is not None or chain.bias is not None):
        return replace(chain, quantize=None, path=chain.path[:-1])
    if chain.norm is not None and not chain.bias is chain.residual is None:
        return _alone(replace(chain, norm=None, path=chain.path[: chain.path.index(chain.norm)]))
    return None
