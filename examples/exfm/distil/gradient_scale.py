"""Gradient scaling: the identity forward, the gradient times beta backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class GradientScale(nn.Module):
    """x forward; backward what comes from above times `beta`. 0 stops the gradient, 1 changes nothing.

    Of ExFM's auxiliary head (arXiv 2502.17494 [C]): how strongly the teacher may move the backbone, apart from how
    strongly it moves its own head. With an optimizer that normalises (Adam) it matters only where other gradients meet
    it.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.beta) if self.beta != 1 else x

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.beta, None
