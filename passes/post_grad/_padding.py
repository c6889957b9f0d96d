"""How passes/joint/precision.py pads a GEMM whose kernel needs multiples of 16, as seen after partitioning."""

from __future__ import annotations

import torch

PAD = torch.ops.aten.constant_pad_nd.default
"""Adds zeros to an operand, before it is quantized."""
NARROWED = torch.ops.aten.slice.Tensor
"""Cuts the padded columns off the product."""
