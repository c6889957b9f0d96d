"""Recipes: a numeric format for a GEMM's operands, and how they are scaled.

Names follow torchao and DeepGEMM, not LoKA (arXiv 2605.10886). A recipe says what the numbers are; a
provider (kernels/providers) says who computes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Scaling = Literal["none", "tensor", "row", "block", "affine", "shifted", "row7"]

BLOCK = 128
"""Block length of `fp8_blockwise` along the contraction: 1 x 128 for the left operand, 128 x 128 for the right."""


@dataclass(frozen=True)
class Recipe:
    """How the two operands of one GEMM are represented.

    dtype: element format of both operands.
    grad_dtype: element format of an operand that is a gradient (tensorwise FP8 uses e5m2: range over precision).
    scaling: `none` (a plain cast), `tensor` (one scale), `row` (one scale a row of the left operand and a column
        of the right one, i.e. per slice along the contraction), `block`.
    accumulate: dtype the products are summed in.
    lhs_dtype, lhs_scaling: of the left operand where they are others. uint8 with `row` is for operands without negative
        values (after a ReLU): no bit goes to a sign, so rounding errors halve. With `affine`, a step and a smallest
        value a row, it is for any: 256 steps span what a row has, and not twice its largest magnitude. With `shifted`
        it is int8's numbers with 128 added, for kernels that multiply unsigned bytes.
    rhs_scaling: of the right operand where it is another. `row7` is for int8 in 7 bits, at most 64: sums of two of its
        products with any unsigned bytes fit into 16 bits, where processors without VNNI add them.
    """

    name: str
    dtype: torch.dtype
    scaling: Scaling
    grad_dtype: torch.dtype
    accumulate: torch.dtype = torch.float32
    lhs_dtype: torch.dtype | None = None
    lhs_scaling: Scaling | None = None
    rhs_scaling: Scaling | None = None

    @property
    def unsigned(self) -> bool:
        """The left operand is stored in uint8."""
        return self.lhs_dtype == torch.uint8

    @property
    def affine(self) -> bool:
        """The left operand has a smallest value a row beside its step."""
        return self.lhs_scaling == "affine"

    @property
    def signed(self) -> bool:
        """The left operand may have negative values."""
        return not self.unsigned or self.lhs_scaling in ("affine", "shifted")

    @property
    def narrow(self) -> bool:
        """The right operand has 7 bits."""
        return self.rhs_scaling == "row7"

    @property
    def itemsize(self) -> int:
        """Bytes of one operand element."""
        return self.dtype.itemsize

    def operand(self, side: Literal["lhs", "rhs"], is_gradient: bool) -> tuple[torch.dtype, str]:
        """Format of one operand as loka::quantize's (dtype, scaling); a right operand's blocks are 128 x 128."""
        scaling = "tile" if self.scaling == "block" and side == "rhs" else self.scaling
        if is_gradient:
            return self.grad_dtype, scaling
        if side == "lhs":
            return self.lhs_dtype or self.dtype, self.lhs_scaling or scaling
        return self.dtype, self.rhs_scaling or scaling

    def __str__(self) -> str:
        return self.name


def _recipe(name: str, dtype: torch.dtype, scaling: Scaling, **more: Any) -> Recipe:
    return Recipe(name, dtype, scaling, **{"grad_dtype": dtype, **more})


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe("bf16", torch.bfloat16, "none"),
        _recipe("fp16", torch.float16, "none"),
        _recipe("int8_rowwise", torch.int8, "row", accumulate=torch.int32),
        _recipe("uint8_rowwise", torch.int8, "row", accumulate=torch.int32, lhs_dtype=torch.uint8),
        _recipe("uint8_affine", torch.int8, "row", accumulate=torch.int32, lhs_dtype=torch.uint8, lhs_scaling="affine"),
        _recipe(
            "int8_rowwise_w7",
            torch.int8,
            "row",
            accumulate=torch.int32,
            lhs_dtype=torch.uint8,
            lhs_scaling="shifted",
            rhs_scaling="row7",
        ),
        _recipe("fp8_tensorwise", torch.float8_e4m3fn, "tensor", grad_dtype=torch.float8_e5m2),
        _recipe("fp8_rowwise", torch.float8_e4m3fn, "row"),
        _recipe("fp8_blockwise", torch.float8_e4m3fn, "block"),
    )
}
"""Every recipe loka knows, by name."""
