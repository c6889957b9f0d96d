"""Masks written and read as vectors are those of at::vec's own loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.spec.processor import processor

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def masks(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Of each number of bytes a lane, with ends that fill no vector, by columns, of scalars and of other masks."""
    kinds = [(x.to(dtype) > 0.5) for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.int8)]
    return (
        *kinds,
        x > 0,
        x[:33, :45] <= 0,
        (x.t() > 0.1)[:40, :70],
        x.isnan(),
        (x > 0) & mask | (x < -1),
        ~mask,
        torch.where(mask, x, -1),
        torch.where(mask, x.double(), 2),
        mask.float().sum(1),
        mask.to(torch.int64) * 3,
        torch.where(mask[:37, :41], x[:37, :41].bfloat16(), 0),
        mask.any(1),
        mask.t()[:50, :60].float() + x[:50, :60],
        torch.full((70,), True) & mask[0, :70],
    )


def test_the_masks_are_those_of_scalar_code() -> None:
    x, mask, codes = torch.randn(96, 160), torch.rand(96, 160) > 0.3, []
    x[3, 5] = torch.nan

    def vectors(gm, inputs):
        settings = {"joint": lambda graph: None, "post_grad": lambda graph: None, "uuid": "masks", "patches": {}}
        compiled, artifacts = compat.compile_inductor(gm, inputs, **settings)
        codes.extend(artifact.source_code for artifact in artifacts)
        return compiled

    ours, its = (torch.compile(masks, backend=each, **APART)(x, mask) for each in (vectors, "inductor"))
    for index, (one, other) in enumerate(zip(ours, its, strict=True)):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=f"output {index}")
    here, code = processor(), "\n".join(codes)
    if here.architecture == "x86_64" and "avx2" in here.aten:
        assert "_mm_test_epi8_mask" in code or "_mm256_cvtepu8_epi32" in code
        assert "_mm_maskz_set1_epi8" in code or "_mm_storel_epi64" in code


def test_gradients_through_kept_masks() -> None:
    """A ReLU and a dropout, whose masks the backward reads."""

    def step(x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.4)

    x, grad, seen = torch.randn(50, 67, requires_grad=True), torch.randn(50, 67), []
    for backend in ("inductor", "loka"):
        torch.manual_seed(0)
        out = torch.compile(step, backend=backend, **APART)(x)
        seen.append((out, *torch.autograd.grad(out, x, grad)))
    assert all(torch.equal(ours, its) for ours, its in zip(*seen, strict=True)) and bool(seen[0][1].any())
