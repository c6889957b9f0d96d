"""Norms that nothing was fused with: how `lower` writes them out, and which gradients stay one op."""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward


def in_torch(call: NormQuantize[Tensor]) -> tuple[Tensor, ...]:
    """The values of a loka::norm_quantize to a wide dtype, computed by PyTorch's own norms, as if it had not been
    raised. An op that saves its statistics must give them too, so its own reference is written out."""
    row, block = call.row, call.row.block
    if row.save:
        return norm_quantize.reference(call)
    x, weight, bias = call.x, call.weight, call.bias
    rows = x if all(each is None or each.dtype == x.dtype for each in (weight, bias)) else x.float()
    vectors = (weight, bias) if not block else (None, None)
    blocks = rows.unflatten(-1, (-1, block)) if block else rows
    shape = blocks.shape[-1:]
    if row.norm == "layer":
        blocks = torch.nn.functional.layer_norm(blocks, shape, *vectors, row.eps)
    elif row.norm == "rms":
        blocks = torch.nn.functional.rms_norm(blocks, shape, vectors[0], row.eps)
    y = norms.affine(blocks.flatten(-2), weight, bias) if block else blocks
    return (norms.activate(y, row.activation).to(row.dtype),)


def one_pass_less(gradient: NormQuantizeBackward) -> bool:
    """Whether the gradient's kernel saves a pass over memory that Inductor would make: sums over rows, or a
    quantization."""
    sums = gradient.weight is not None or gradient.bias is not None or gradient.summed
    return sums or gradient.dtype not in norms.FLOATS
