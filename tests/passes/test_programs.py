"""Programs that write between the lines of a pattern or update buffers: no pass changes their numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.programs import EPS, after_passes, scale_of


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
