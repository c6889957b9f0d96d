"""Programs that write in place between the lines of a pattern: the passes on their graphs leave the numbers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from loka_compile import compat
from loka_compile.graph.reader import read
from loka_compile.graph.rerun import is_training, written_inputs
from loka_compile.graph.writes import written
from loka_compile.passes import PIPELINE
from loka_compile.passes.dynamo import run_on_dynamo

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


PROGRAMS = [by_index, by_slice, by_mask, by_index_put, through_a_view, through_a_view_of_a_view, by_out, by_copy,
            inside_of_the_norm, the_mean_is_written, centred_then_written, gate_written_between, gate_is_written,
            gate_written_through_detach, a_chain_of_products_is_written]  # fmt: skip


def statistics_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = scale_of(x)
    return x * scale


def gate_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(x)
    return x * gate


def after_passes(fn: Callable[..., Any], *, training: bool = False) -> Callable[..., Any]:
    """`fn` after all passes on Dynamo's graph, run op by op."""

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        passes = (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)
        rewritten, _ = run_on_dynamo(gm, passes, training=is_training(inputs))
        return compat.capture(rewritten, inputs, joint=lambda graph: None,
                              inner=lambda module, _: fx.Interpreter(module).run)  # fmt: skip

    return torch.compile(fn, backend=backend, isolate_recompiles=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_a_write_between_two_reads_is_seen(program: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    x = torch.randn(8, 16, dtype=torch.float64)
    whole = lambda x: program(x.clone())  # noqa: E731
    compiled = after_passes(whole)
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


# ---------------------------------------------------------------- what the reading knows


def graph_of(fn: Callable[..., Any], *args: Any) -> fx.Graph:
    found: list[fx.Graph] = []

    def backend(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(gm.graph)
        return gm

    torch.compile(fn, backend=backend, isolate_recompiles=True)(*args)
    [graph] = found
    return graph


def test_one_operator_whatever_its_spelling() -> None:
    def forward(x: Tensor) -> Any:
        return x.relu(), torch.relu(x), F.relu(x), F.relu(x + 1, inplace=True), (x + 2).relu_(), nn.ReLU()(x)

    graph = graph_of(forward, torch.randn(4))
    reading = read(graph)
    assert [reading.op(node) for node in graph.output_node().all_input_nodes] == ["relu"] * 6


def test_an_activation_in_place_on_a_fresh_value_is_no_obstacle() -> None:
    graph = graph_of(lambda x, w: F.relu(F.linear(x, w), inplace=True) + 1, torch.randn(4, 8), torch.randn(8, 8))
    assert written(graph) == set()
    assert any(map(bool, read(graph).writers.values()))


def test_running_statistics_are_written_in_training_only() -> None:
    module = nn.BatchNorm1d(8)
    for training, count in ((True, 3), (False, 0)):  # mean, variance, and the number of batches
        graph = graph_of(module.train(training), torch.randn(4, 8))
        assert len(written_inputs(graph)) == count


def test_dropout_draws_where_it_is_on() -> None:
    def forward(x: Tensor, p: float, training: bool) -> Tensor:
        return F.dropout(x, p, training)

    for p, training, draws in ((0.5, True, True), (0.5, False, False), (0.0, True, False)):
        graph = graph_of(lambda x, p=p, training=training: forward(x, p, training) + 1, torch.randn(4))
        assert any(fact.random for fact in read(graph).facts.values()) is draws


def test_reading_leaves_random_state_and_regions_as_they_are() -> None:
    def forward(x: Tensor) -> Any:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return F.dropout(x, 0.5, True) @ x

    graph = graph_of(forward, torch.randn(4, 4))
    before = torch.get_rng_state(), compat.region_here(), torch.is_autocast_cache_enabled()
    reading = read(graph)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (compat.region_here(), torch.is_autocast_cache_enabled())
    assert any(fact.region.autocast[0][0] and not fact.region.grad for fact in reading.facts.values() if fact.region)


def test_what_functorch_wraps_is_left_as_written() -> None:
    def forward(x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row * torch.sigmoid(row))(x)

    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(after_passes(forward)(x), forward(x))
