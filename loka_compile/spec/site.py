"""Site: one GEMM of a graph, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import sympy
import torch

Role = Literal["output", "grad_input", "grad_weight"]
ROLES: tuple[Role, ...] = ("output", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Operand:
    """Where one operand of a GEMM comes from.

    tensor: the matrix behind transposes and views of its own shape. Sites of one graph that read equal names read one
        tensor, which is quantized once for all of them; "" if unknown.
    producer: the ATen operator that made it, `placeholder` for a parameter or an input.
    flipped: the operand is the tensor transposed. nonnegative: its producer gives no negative numbers (a ReLU).
    made_by: key of the GEMM in whose epilogue the tensor could be made, as no more than a bias, a norm and an
        activation stand between; "" if there is none. only_products: nothing but GEMMs reads it, as their left operand.
    """

    tensor: str = ""
    producer: str = ""
    flipped: bool = False
    nonnegative: bool = False
    made_by: str = ""
    only_products: bool = False


UNKNOWN = Operand()


@dataclass(frozen=True)
class Site:
    """out[batch, M, N] = lhs[batch, M, K] @ rhs[batch, K, N]

    key: `fqn#ordinal:role`; the ordinal counts the GEMMs of one module in the order they run. The same in every
        process and for every batch size.
    op: the ATen operator, `mm`, `addmm`, `bmm` or `baddbmm`.
    batch, M, N, K: sizes, symbolic where the graph's are (batch is 1 for mm and addmm).
    dtype: of the operands. source: `file.py:line` of the model's code, "" if unknown.
    static_rhs: the right operand is a parameter that this graph does not change, so it can be quantized once.
    gradient: which operand is a gradient ("" in the forward).
    lhs, rhs: where the operands come from.
    epilogue: what stands behind the product that its kernel could do: `norm`, with or without an activation,
        `activation`, or ""; or, beside a grad_weight, the `sum` of its gradient for a bias.
    kept: something else reads the product too (a backward, say), so that a kernel with the epilogue writes both.
    decides: the operator by which its result decides a choice (topk, argmax, bucketize), "" if it decides none.
    """

    key: str
    op: str
    role: Role
    batch: sympy.Expr
    M: sympy.Expr
    N: sympy.Expr
    K: sympy.Expr
    dtype: torch.dtype
    fqn: str = ""
    source: str = ""
    static_rhs: bool = False
    gradient: Literal["", "lhs", "rhs"] = ""
    lhs: Operand = UNKNOWN
    rhs: Operand = UNKNOWN
    epilogue: Literal["", "activation", "norm", "sum"] = ""
    kept: bool = False
    decides: str = ""

    @property
    def shape(self) -> str:
        """`M x K @ K x N` with the batch in front where there is one."""
        batch = "" if self.batch == 1 else f"{self.batch} x "
        return f"{batch}({self.M}, {self.K}) @ ({self.K}, {self.N})"

    @property
    def flops(self) -> sympy.Expr:
        return 2 * self.batch * self.M * self.N * self.K

    def same_gemm(self, other: Site) -> bool:
        """Whether two sites of one name are one GEMM: role, dtype and known sizes agree, the batch aside."""
        fixed = ("M", "N") if self.role == "grad_weight" else ("N", "K")
        sizes = [(getattr(self, name), getattr(other, name)) for name in fixed]
        agree = all(a == b for a, b in sizes if a.is_number and b.is_number)
        return agree and self.role == other.role and self.dtype == other.dtype

    def padded(self, multiple: int) -> Site:
        """With K and N rounded up to a multiple, where they are numbers."""
        up = lambda size: -(-size // multiple) * multiple if size.is_number else size  # noqa: E731
        return replace(self, K=up(self.K), N=up(self.N))

    def padding(self, larger: Site) -> str:
        """`padded: K 109 -> 112`; "" where the other one is no larger."""
        pairs = [(name, getattr(self, name), getattr(larger, name)) for name in ("K", "N")]
        grown = [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]
        return f"padded: {', '.join(grown)}" if grown else ""

    def to_json(self) -> dict[str, Any]:
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        body = {k: str(v).removeprefix("torch.") if k in _AS_TEXT else v for k, v in body.items()}
        return body | {side: asdict(body[side]) for side in _SIDES}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Site:
        """Raises KeyError, TypeError or ValueError on what `to_json` did not write."""
        dtype = getattr(torch, body["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{body['dtype']!r} is no dtype")
        sizes = {name: _size(body[name]) for name in _SIZES}
        operands = {side: _operand(body[side]) for side in _SIDES}
        site = cls(**{**body, **sizes, **operands, "dtype": dtype})
        text = all(isinstance(value, str) for value in (site.key, site.op, site.fqn, site.source, site.decides))
        known = site.role in ROLES and site.gradient in ("", "lhs", "rhs")
        known = known and site.epilogue in ("", "activation", "norm", "sum")
        if not (text and known and type(site.static_rhs) is type(site.kept) is bool):
            raise ValueError(f"{body} is no site")
        return site


_SIZES = ("batch", "M", "N", "K")
_AS_TEXT = (*_SIZES, "dtype")
_SIDES = ("lhs", "rhs")


def _operand(body: Mapping[str, Any]) -> Operand:
    operand = Operand(**body)
    if any(type(getattr(operand, f.name)) is not type(f.default) for f in fields(operand)):
        raise ValueError(f"{body} is no operand")
    return operand


def _size(text: str) -> sympy.Expr:
    """A number, a number times a symbol, or a symbol named by any other expression: a text is never evaluated."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"{text!r} is no size")
    number = text.isascii() and text.isdecimal()
    factor, _, name = text.rpartition("*")
    if factor.isascii() and factor.isdecimal() and name.isidentifier():
        return int(factor) * sympy.Symbol(name, integer=True, positive=True)
    return sympy.Integer(text) if number else sympy.Symbol(text, integer=True, positive=True)
