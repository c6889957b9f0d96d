"""Programs that write, switch, draw or hide between the lines of a pattern: no pass changes their numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.rerun import is_training
from loka_compile.passes import PIPELINE
from loka_compile.passes.dynamo import Change, run_on_dynamo

EPS = 1e-6


def scale_of(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def by_index(x: Tensor) -> Tensor:
    scale = scale_of(x)
    x[0] = 5.0
    return x * scale


def by_slice(x: Tensor) -> Tensor:
    scale = scale_of(x)
    x[:, 3:7] = 0.5
    return x * scale


def by_mask(x: Tensor) -> Tensor:
    scale = scale_of(x)
    x[x > 0.5] = 0.0
    return x * scale


def by_index_put(x: Tensor) -> Tensor:
    scale = scale_of(x)
    x.index_put_((torch.tensor([0, 2]),), torch.tensor(3.0, dtype=x.dtype))
    return x * scale


def through_a_view(x: Tensor) -> Tensor:
    flat = x.view(-1)
    scale = scale_of(x)
    flat.add_(3)
    return x * scale


def through_a_view_of_a_view(x: Tensor) -> Tensor:
    column = x.t()[2]
    scale = scale_of(x)
    column.mul_(-7)
    return x * scale


def by_out(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = scale_of(x)
        torch.add(x, 2.0, out=x)
        return x * scale


def by_copy(x: Tensor) -> Tensor:
    scale = scale_of(x)
    x.copy_(x.flip(0))
    return x * scale


def inside_of_the_norm(x: Tensor) -> Tensor:
    squares = x.pow(2)
    squares[:, 0] = 9.0
    return x * torch.rsqrt(squares.mean(-1, keepdim=True) + EPS)


def the_mean_is_written(x: Tensor) -> Tensor:
    mean = x.pow(2).mean(-1, keepdim=True)
    mean[1] = 4.0
    return x * torch.rsqrt(mean + EPS)


def centred_then_written(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True)
    x.add_(1.0)
    return (x - mean) / torch.sqrt(variance + EPS)


def gate_written_between(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    x[2] = 3.0
    return x * gate


def gate_is_written(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    gate[:, 0] = 1.0
    return x * gate


def gate_written_through_detach(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    x.detach().add_(1.0)
    return x * gate


def a_chain_of_products_is_written(x: Tensor) -> Any:
    product = x @ x.mT @ x[:, :2]
    positive = product.relu()
    product.add_(1)
    return positive, product


PROGRAMS = [
    by_index,
    by_slice,
    by_mask,
    by_index_put,
    through_a_view,
    through_a_view_of_a_view,
    by_out,
    by_copy,
    inside_of_the_norm,
    the_mean_is_written,
    centred_then_written,
    gate_written_between,
    gate_is_written,
    gate_written_through_detach,
    a_chain_of_products_is_written,
]


def statistics_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = scale_of(x)
    return x * scale


def gate_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(x)
    return x * gate


def after_passes(fn: Callable[..., Any], gpu: bool = False, seen: list[Change] | None = None) -> Callable[..., Any]:
    """`fn` after all passes on Dynamo's graph, run op by op. seen: takes what they did."""

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        passes = (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)
        device, target = ("cuda", "h100") if gpu else ("cpu", "cpu")
        rewritten, changes = run_on_dynamo(gm, passes, device, target, is_training(inputs))
        if seen is not None:
            seen.extend(changes)
        return compat.capture(
            rewritten, inputs, joint=lambda graph: None, inner=lambda module, _: fx.Interpreter(module).run
        )

    return torch.compile(fn, backend=backend, **APART)


@pytest.mark.parametrize(("dynamic", "gpu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_a_write_between_two_reads_is_seen(program: Callable[[Tensor], Tensor], dynamic: bool, gpu: bool) -> None:
    x = torch.randn(8, 16, dtype=torch.float64)
    whole = lambda x: program(x.clone())  # noqa: E731
    compiled = after_passes(whole, gpu)
    with torch.no_grad():
        if dynamic:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), whole(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p is not by_out], ids=lambda each: each.__name__)
def test_a_write_to_an_input_reaches_the_caller(program: Callable[[Tensor], Tensor]) -> None:
    own, twin = (torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    with torch.no_grad():
        torch.testing.assert_close(after_passes(program)(own), program(twin), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, twin, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("program", [statistics_without_gradients, gate_without_gradients])
def test_parts_without_gradients_stay_without(program: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    [expected] = torch.autograd.grad(program(x).square().sum(), x)
    [found] = torch.autograd.grad(after_passes(program)(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def centred_and_written_afterwards(x: Tensor) -> Any:
    x = x * 1
    centred = x - x.mean(-1, keepdim=True)
    norm = centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    x -= 0.25
    return norm + x


@pytest.mark.parametrize("program", [centred_and_written_afterwards])
def test_what_a_norm_would_save_for_its_gradient_is_not_written(program: Callable[[Tensor], Any]) -> None:
    x = torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    [expected] = torch.autograd.grad(program(x).square().sum(), x)
    [found] = torch.autograd.grad(after_passes(program)(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Queue(nn.Module):
    """A buffer that is updated between the two times it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.arange(16.0, dtype=torch.float64).reshape(2, 8) + 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = scale_of(self.queue)
        self.queue.mul_(0.5).add_(x)
        return self.queue * scale


def test_a_buffer_updated_between_two_reads() -> None:
    module, x = Queue(), torch.randn(2, 8, dtype=torch.float64)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        compiled = after_passes(module)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), twin(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.queue, twin.queue, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- buffers


class Codebook(nn.Module):
    """Vectors that follow what is looked up, as a vector quantizer's do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, 8, dtype=torch.float64))
        self.register_buffer("counts", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scale = scale_of(self.codes)
        nearest = torch.cdist(x.detach(), self.codes).argmin(-1)
        quantized = F.embedding(nearest, self.codes * scale)
        if self.training:
            self.counts.mul_(0.9).index_add_(0, nearest, torch.ones_like(x[:, 0]))
            self.codes.index_add_(0, nearest, x.detach() * 0.1)
        return quantized + F.embedding(nearest, self.codes * scale) + x


class Normed(nn.Module):
    """Batch norm between two gates by hand that read its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.norm.running_mean)
        x = self.norm(x)
        return x * (self.norm.running_mean * gate)


class Momentum(nn.Module):
    """A queue of keys, rolled by an index; the pointer is a buffer too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.randn(6, 8, dtype=torch.float64))
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        scale = scale_of(self.keys)
        logits = x @ (self.keys * scale).mT
        self.keys[(self.at + torch.arange(2)) % 6] = x.detach()[:2]
        self.at += 2
        return logits + x @ (self.keys * scale).mT


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Queue, Codebook, Normed, Momentum])
def test_buffers_are_updated_and_read_in_order(kind: type[nn.Module], training: bool, gpu: bool) -> None:
    module = kind().train(training)
    twin, x = copy.deepcopy(module), torch.randn(2, 8, dtype=torch.float64, requires_grad=training)
    with torch.set_grad_enabled(training and kind is not Queue):
        compiled = after_passes(module, gpu)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), twin(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- regions, graphs inside, other tensors


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def norm(x: Tensor) -> Tensor:
    return x * scale_of(x)


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
