"""What follows a product in a graph, as far as loka::gemm_norm's epilogue could do it: read by the pass fuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.epilogue import VIEWS, alike, is_vector, last_with_views
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm.epilogue import product_dtype
from loka_compile.kernels.gemm_norm.gemm_norm_tiles import WIDEST, needs_two
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.providers import FUSING
from loka_compile.kernels.providers.triton import ALIGNED
from loka_compile.kernels.quantize.quantize import Quantize

aten = torch.ops.aten
NARROWED = aten.slice.Tensor
"""How passes/joint/precision.py leaves out of a product the columns that were padded."""


@dataclass(frozen=True)
class Chain:
    """`path`: from a product to the last value, each read by the next; alone, but for what the norm reads.

    bias, residual: what is added to the product. norm: a loka::norm_quantize node; quantize: of its result.
    stopped: why the chain ends where a norm or a quantization would have followed."""

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
        """What the norm reads: the product with all that is added, and views of it."""
        before = self.path[: self.path.index(self.norm)] if self.norm is not None else self.path
        return tuple(last_with_views(before))

    @property
    def kept(self) -> bool:
        """Whether others read what the norm reads, or its statistics."""
        if self.norm is None:
            return False
        others = any(user not in self.path for node in self.sums for user in node.users)
        return others or any(user.users for user in NormQuantize.taken(self.norm, "statistics"))


def pattern(gemm: fx.Node) -> Chain:
    """What follows the product, as far as an epilogue could do it."""
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
    """Without a norm it ends where others read it too."""
    read = [i for i, node in enumerate(chain.path[:-1]) if any(user not in chain.path for user in node.users)]
    return replace(chain, path=chain.path[: read[0] + 1]) if read and chain.norm is None else chain


def _is_normed(node: fx.Node) -> bool:
    """A norm, or a view that one reads."""
    return NormQuantize.matches(node) or (node.target in VIEWS and any(_is_normed(user) for user in node.users))


def _what(user: fx.Node, chain: Chain) -> str:
    """bias, residual, view, norm, quantize: what a user of the chain's value is; "" if it is nothing of an epilogue."""
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
    """Whether it quantizes to FP8, with one scale a row; a column with axis -2."""
    cast = Quantize.of(node) if Quantize.matches(node) else None
    return cast is not None and cast.dtype in FP8 and (cast.scaling, cast.axis) == ("row", axis)


def _added(other: Any, add: fx.Node, chain: Chain) -> str:
    """bias, a number a column; residual, of the product's own shape, where a norm reads the sum; else ""."""
    if not isinstance(other, fx.Node) or other is chain.last:
        return ""
    if chain.bias is None and is_vector(other, chain.last.meta["val"].shape[-1]):
        return "bias"
    rows = chain.residual is None and alike(other, chain.last) and alike(other, add)
    return "residual" if rows and any(_is_normed(user) for user in add.users) else ""


def _extended(chain: Chain, user: fx.Node) -> Chain:
    what, path = _what(user, chain), (*chain.path, user)
    if what == "bias":
        return replace(chain, path=path, bias=_other(user, chain.last))
    if what == "residual":
        return replace(chain, path=path, residual=_other(user, chain.last))
    if what == "norm":
        return replace(chain, path=(*path, _normed(user)), norm=user)
    return replace(chain, path=path, quantize=user if what == "quantize" else None)


def _other(add: fx.Node, one: fx.Node) -> Any:
    return add.args[1] if add.args[0] is one else add.args[0]


def _normed(norm: fx.Node) -> fx.Node:
    """The result of a norm."""
    if taken := NormQuantize.taken(norm, "out"):
        return taken[0]
    raise ValueError(f"nothing reads the result of {norm.name}")


def check(chain: Chain) -> str:
    """Why the chain stays in pieces; empty if it becomes one op."""
    gemm = ScaledGemm.of(chain.gemm)
    left, right = gemm.a.meta["val"], gemm.b.meta["val"]
    k, n = left.shape[-1], right.shape[-1]
    if gemm.provider not in FUSING:
        return f"{gemm.provider}'s kernel has no epilogue"
    if left.dim() != 2:
        return f"left operand has shape {tuple(left.shape)}; the epilogue needs a matrix, not a batch"
    if left.dtype not in (*FP8, torch.bfloat16, torch.float16):
        return f"the operands are {left.dtype}"
    for name, size in (("K", k), ("N", n)):
        if not isinstance(size, int) or size % ALIGNED:
            return f"{name} = {size} is no multiple of {ALIGNED}"
    if gemm.a_scale is not None and gemm.a_scale.meta["val"].dim() != 2:
        return "operands have one scale for the tensor; the epilogue needs one scale a row"
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
        return f"the product has readers before {late[0]} is computed, which the norm needs"
    read, written = chain.sums[0].meta["val"].dtype, product_dtype(left)
    if read != written:
        return f"other readers need the product in {read}; the kernel writes {written}"
    return ""


def _both_ways(normed: fx.Node) -> bool:
    """Whether FP8's two forms are all that is made of it: it need not be written then, where the product is."""
    while len(normed.users) == 1 and (view := next(iter(normed.users))).target in VIEWS:
        normed = view
    by_row = [user for user in normed.users if is_by_row(user)]
    by_column = [user for user in normed.users if is_by_row(user, -2)]
    dtypes = {Quantize.of(user).dtype for user in (*by_row, *by_column)}
    return bool(by_row and by_column) and len(by_row + by_column) == len(normed.users) and len(dtypes) == 1


def shorter(chain: Chain) -> Chain | None:
    """Without the quantization; without the norm too, where something is added."""
    if chain.quantize is not None and (chain.norm is not None or chain.bias is not None):
        return replace(chain, quantize=None, path=chain.path[:-1])
    if chain.norm is not None and not chain.bias is chain.residual is None:
        return _alone(replace(chain, norm=None, path=chain.path[: chain.path.index(chain.norm)]))
    return None
