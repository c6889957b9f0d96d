"""Programs that switch, draw or hide between the lines of a pattern: their numbers stay, and what is whole is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loka_compile.passes.dynamo import Change
from tests.passes.programs import EPS, after_passes, gate, norm


def in_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x.mT
        gated = gate(y)
    return gated.float() + gate(y.float()) + norm(y.float())


def half_in_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = x @ x.mT
    return product.float() @ x + F.linear(x, x) @ x


def half_without_gradients(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    with torch.no_grad():
        variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + EPS)


def in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = norm(x * 2)
    return y + gate(x)


def checkpointed(x: Tensor) -> Tensor:
    return norm(torch.utils.checkpoint.checkpoint(lambda x: gate(x).sin(), x, use_reentrant=False)) + gate(x)


def under_cond(x: Tensor) -> Tensor:
    y = torch.cond(x.sum() > 0, lambda x: gate(x), lambda x: x.cos(), (x,))
    return norm(y) + gate(x)


def nonzero(x: Tensor) -> Tensor:
    rows = x[x[:, 0] > 0]
    return norm(rows) + gate(rows)


def by_out_of_another(x: Tensor) -> Tensor:
    with torch.no_grad():
        gated, kept = torch.sigmoid(x), torch.empty_like(x)
        torch.mul(x, gated, out=kept)
        torch.add(x, 1, out=gated)
        return kept + x * gated


def complex_numbers(x: Tensor) -> Tensor:
    z = torch.complex(x, x.flip(0))
    z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + EPS)
    return torch.view_as_real(z * torch.sigmoid(z)).flatten(1) @ torch.ones(32, 3, dtype=x.dtype)


def views_of_an_input(x: Tensor) -> Any:
    return x.view(-1), x.mT, gate(x), x[0]


def symbolic_sizes(x: Tensor) -> Tensor:
    wide = x[:1].expand(x.shape[0] * 2, -1).reshape(-1, x.shape[1] // 2)
    return norm(wide) + F.linear(wide, x[:8, :8] * 1.0)


REGIONS = [
    in_autocast,
    half_in_autocast,
    half_without_gradients,
    in_inference_mode,
    checkpointed,
    under_cond,
    nonzero,
    by_out_of_another,
    complex_numbers,
    views_of_an_input,
    symbolic_sizes,
]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("program", REGIONS, ids=lambda each: each.__name__)
def test_regions_and_graphs_inside(program: Callable[[Tensor], Any], training: bool, gpu: bool) -> None:
    dtype = torch.float32 if "autocast" in program.__name__ else torch.float64
    x = torch.randn(8, 16, dtype=dtype, requires_grad=training)
    twin = x.detach().clone().requires_grad_(training)
    torch._dynamo.maybe_mark_dynamic(x, 0)
    bound = 1e-2 if dtype is torch.float32 else 1e-10  # of the largest value; in bfloat16 the gate rounds once
    with torch.set_grad_enabled(training), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        out, expected = after_passes(program, gpu)(x), program(twin)
        assert_close(out, expected, bound)
        if training and (expected[2] if isinstance(expected, tuple) else expected).requires_grad:
            total = lambda out: sum(each.square().sum() for each in (out if isinstance(out, tuple) else (out,)))  # noqa: E731
            [found], [wanted] = torch.autograd.grad(total(out), x), torch.autograd.grad(total(expected), twin)
            assert_close(found, wanted, bound)


def assert_close(found: Any, wanted: Any, bound: float) -> None:
    for a, b in zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound * b.abs().max().item())


FOUND = {
    checkpointed: {"rms_norm", "silu"},
    under_cond: {"rms_norm", "silu"},
    nonzero: {"rms_norm", "silu"},
    in_inference_mode: {"rms_norm", "silu"},
    in_autocast: {"rms_norm", "silu"},
    half_without_gradients: set(),
    by_out_of_another: set(),
    complex_numbers: set(),
}


@pytest.mark.parametrize("program", FOUND, ids=lambda each: each.__name__)
def test_what_is_whole_is_found_beside_them(program: Callable[[Tensor], Any]) -> None:
    seen: list[Change] = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        after_passes(program, seen=seen)(torch.randn(8, 16, requires_grad=True))
    did = {each.did.partition(" ")[0] for change in seen for each in change.result.rewrites}
    assert did & {"rms_norm", "layer_norm", "silu"} == FOUND[program]


def test_views_of_an_input_that_leave_are_views_of_it() -> None:
    x = torch.randn(8, 16, dtype=torch.float64)
    flat, turned, _, row = after_passes(views_of_an_input)(x)
    assert {each.data_ptr() for each in (flat, turned, row)} == {x.data_ptr()}


def test_flex_attention_stays_and_what_stands_around_it_is_found() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def program(x: Tensor) -> Tensor:
        q = norm(x).unflatten(-1, (1, 16)).transpose(1, 2)
        out = flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + (i - j).sigmoid() * score)
        return gate(out.transpose(1, 2).flatten(2))

    seen: list[Change] = []
    x = torch.randn(2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(after_passes(program, seen=seen)(x), program(x), rtol=1e-5, atol=1e-5)
    did = {each.did.partition(" ")[0] for change in seen for each in change.result.rewrites}
    assert did == {"rms_norm", "silu"}


class Twice(torch.Tensor):
    """A subclass around another tensor, as DTensor is."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Twice:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Twice:
        return Twice(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = torch.utils._pytree.tree_map_only(Twice, lambda each: each.inner, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(Tensor, Twice, func(*own[0], **own[1]))


def test_a_subclass_around_a_tensor_is_left_as_written() -> None:
    seen: list[Change] = []
    x, y = Twice(torch.randn(8, 16)), torch.randn(8, 16)
    with torch.no_grad():
        out, beside = after_passes(lambda x, y: (norm(x), norm(y)), seen=seen)(x, y)
    torch.testing.assert_close(out.inner, norm(x.inner))
    torch.testing.assert_close(beside, norm(y))
    results = [change.result for change in seen if change.name == "canonicalize"]
    assert any("Twice" in each.reason for result in results for each in result.rejects)
    assert [each.did.partition(" ")[0] for result in results for each in result.rewrites] == ["rms_norm"]


def test_sparse_values_are_left_as_written() -> None:
    seen: list[Change] = []

    def program(x: Tensor, table: Tensor) -> Tensor:
        return norm(torch.sparse.mm(table, x)) + norm(x)

    x, table = torch.randn(8, 16), torch.eye(8).to_sparse()
    with torch.no_grad():
        torch.testing.assert_close(after_passes(program, seen=seen)(x, table), program(x, table))


@pytest.mark.slow
def test_random_numbers_are_inductors_own(fresh_dynamo: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(F.relu(self.first(x), inplace=True), 0.5)
            x = norm(x + torch.rand_like(x))
            return F.dropout(self.last(gate(x)), 0.3)

    module, x, outs = Net(), torch.randn(32, 16), []
    for backend in ("inductor", "loka"):
        options = {"plan": None, "passes": {}} if backend == "loka" else None
        compiled = torch.compile(copy.deepcopy(module), backend=backend, options=options)
        torch.manual_seed(3)
        out = compiled(x)
        out.sum().backward()
        outs.append(out.detach())
    assert torch.equal(outs[0] == 0, outs[1] == 0)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)


def test_what_functorch_wraps_is_left_as_written() -> None:
    def forward(x: Tensor) -> Tensor:
        inside = torch.vmap(lambda row: row * torch.sigmoid(row))(x)
        slope = torch.func.grad(lambda x: gate(x).sum())(x)
        return gate(inside + slope)

    seen: list[Change] = []
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(after_passes(forward, seen=seen)(x), forward(x))
    assert [each.did.partition(" ")[0] for change in seen for each in change.result.rewrites] == ["silu"]
