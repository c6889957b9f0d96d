"""The activations of loka::gdpa in Triton, with their derivatives, for float32 scores.

They stand in the main loop between two tensor-core products, so their number of instructions decides the speed.
(Softmax is one exponential a score.) A score that is NaN stays NaN: a GPU's plain maximum would make it the other one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize.norm_quantize_kernel import gated, maximum_or_nan, upper_tail


@triton.jit
def activated(s, ACTIVATION: tl.constexpr):
    """The activation of a tile of scores."""
    if ACTIVATION == "gelu":
        size = tl.abs(s)
        return tl.maximum(s, 0.0) - size * upper_tail(size)
    elif ACTIVATION == "gelu_approx":
        return gated(s, s * (1.5957691216 + 0.0713548162726 * s * s))
    elif ACTIVATION == "relu":
        return maximum_or_nan(s, 0.0)
    elif ACTIVATION == "relu_squared":
        s = maximum_or_nan(s, 0.0)
        return s * s
    elif ACTIVATION == "leaky_relu":
        return tl.maximum(s, 0.01 * s)
    elif ACTIVATION == "silu":
        return gated(s, s)
    elif ACTIVATION == "hard_swish":
        return s * tl.minimum(
            tl.maximum(tl.fma(s, 1.0 / 6.0, 0.5), 0.0), 1.0
        )  # min and max become one saturating instruction
    else:
        tl.static_assert(ACTIVATION == "identity")
        return s


@triton.jit
def with_derivative(s, ACTIVATION: tl.constexpr):
    """(activation, its derivative) of a tile of scores."""
    if ACTIVATION == "gelu":
        size = tl.abs(s)
        tail = upper_tail(size)
        below = tl.where(s > 0, 1.0 - tail, tail)
        return s * below, below + s * (0.3989422804 * tl.exp2((size * -0.7213475204444817) * size))
    elif ACTIVATION == "gelu_approx":
        below = gated(1.0, s * (1.5957691216 + 0.0713548162726 * s * s))
        y = s * below
        return y, below + y * (1.0 - below) * (1.5957691216 + 0.2140644488178 * s * s)
    elif ACTIVATION == "relu":
        return maximum_or_nan(s, 0.0), tl.where(s > 0, 1.0, 0.0)
    elif ACTIVATION == "relu_squared":
        s = maximum_or_nan(s, 0.0)
        return s * s, 2.0 * s
    elif ACTIVATION == "leaky_relu":
        return tl.maximum(s, 0.01 * s), tl.where(s > 0, 1.0, 0.01)
    elif ACTIVATION == "silu":
        below = gated(1.0, s)
        y = s * below
        return y, below + y * (1.0 - below)
    elif ACTIVATION == "hard_swish":
        slope = tl.where(s > 3.0, 1.0, tl.where(s < -3.0, 0.0, s * (1.0 / 3.0) + 0.5))
        return activated(s, ACTIVATION), slope
    else:
        tl.static_assert(ACTIVATION == "identity")
        return s, tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def through(g, s, slope, ACTIVATION: tl.constexpr):
    """g behind the activation of scores s. As in torch, nothing comes through where it is cut off, not even NaN."""
    if ACTIVATION == "relu":
        return tl.where(s <= 0.0, 0.0, g)
    elif ACTIVATION == "relu_squared":
        return tl.where(s <= 0.0, 0.0, slope * g)
    elif ACTIVATION == "hard_swish":
        return tl.where(s <= -3.0, 0.0, slope * g)
    else:
        return slope * g
