"""Site: one GEMM of a graph, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sympy
import torch

Role = Literal["output", "grad_input", "grad_weight"]
ROLES: tuple[Role, ...] = ("output", "grad_input", "grad_weight")


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

    @property
    def shape(self) -> str:
        """`M x K @ K x N` with the batch in front where there is one."""
        batch = "" if self.batch == 1 else f"{self.batch} x "
        return f"{batch}({self.M}, {self.K}) @ ({self.K}, {self.N})"

    @property
    def flops(self) -> sympy.Expr:
        return 2 * self.batch * self.M * self.N * self.K
