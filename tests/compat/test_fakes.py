"""Sizes that are symbols."""

from __future__ import annotations

import pytest
import torch

from loka_compile import compat
from loka_compile.graph.flops import flops_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_a_size_that_the_data_decide_counts_as_a_guess():
    """Of a product of such a size and one that is known, the known one counts as it is."""
    found = {}

    def backend(gm, inputs):
        for node, flops in flops_of(gm.graph).items():
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor):
                found[node.name] = [compat.concrete(size) for size in value.shape], flops
        return gm.forward

    def chosen(x, weight):
        rows = x[x[:, 0] > 0]
        return torch.cat([rows, rows]) @ weight, x @ weight

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.compile(chosen, backend=backend, dynamic=True)(torch.randn(6, 4), torch.randn(4, 3))
    shapes = [shape for shape, _ in found.values()]
    assert [compat.UNKNOWN, 4] in shapes and [2 * compat.UNKNOWN, 4] in shapes
    assert found["matmul"] == ([2 * compat.UNKNOWN, 3], 2 * 2 * compat.UNKNOWN * 4 * 3)
    assert found["matmul_1"] == ([6, 3], 2 * 6 * 4 * 3)
