"""What the reading knows: one name for all spellings, whose memory, who writes, what draws, in which region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.reader import read
from loka_compile.graph.rerun import written_inputs


def graph_of(fn: Callable[..., Any], *args: Any) -> fx.Graph:
    found: list[fx.Graph] = []

    def backend(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(gm.graph)
        return gm

    torch.compile(fn, backend=backend, **APART)(*args)
    [graph] = found
    return graph


def test_one_operator_whatever_its_spelling() -> None:
    def forward(x: Tensor) -> Any:
        return x.relu(), torch.relu(x), F.relu(x), F.relu(x + 1, inplace=True), (x + 2).relu_(), nn.ReLU()(x)

    graph = graph_of(forward, torch.randn(4))
    reading = read(graph)
    assert [reading.op(node) for node in graph.output_node().all_input_nodes] == ["relu"] * 6


def test_what_cuts_the_gradient_is_no_view_like_the_others() -> None:
    graph = graph_of(lambda x: (x.detach() * 2, x.data * 3, x.mT * 4), torch.randn(4, 8, requires_grad=True))
    reading = read(graph)
    permuted = {reading.op(node): reading.permuted(node) for node in graph.nodes if reading.op(node)}
    assert permuted["detach"] is None
    assert [order for _, order in filter(None, permuted.values())] == [(1, 0)]


def test_indexing_that_takes_everything_permutes_nothing() -> None:
    graph = graph_of(lambda x: (x[:, :1] @ x[...].mT, x[:].mT), torch.randn(4, 1))
    reading = read(graph)
    taken = [node for node in graph.nodes if reading.op(node) == "getitem"]
    assert len(taken) == 3 and not any(map(reading.permuted, taken)) and not any(map(reading.flipped, taken))


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


def test_what_drops_nothing_gives_its_input_itself() -> None:
    """A write to it is one to the input, in eager mode as in the reading."""
    module = nn.Dropout(0.5).eval()
    for forward in (
        module,
        nn.AlphaDropout(0.5).eval(),
        lambda x: F.dropout(x, 0.0),
        lambda x: F.dropout1d(x, 0.5, False),
    ):
        x = torch.zeros(3, 4)

        def written(x: Tensor, forward: Any = forward) -> Any:
            y = forward(x)
            return y * 2, F.silu(y, inplace=True)

        graph = graph_of(written, x)
        reading = read(graph)
        [given] = graph.find_nodes(op="placeholder")
        assert (forward(x).data_ptr() == x.data_ptr()) is (written_inputs(graph) == {0})
        assert reading.writers[next(iter(reading.memory(given)))]


def test_what_is_set_to_other_memory_is_written_there() -> None:
    """`set_`: x and y lie where z does, from then on; what is written into either is read through all of them."""

    def forward(x: Tensor, z: Tensor) -> Any:
        y = x * 2
        rows = y[1:]
        y.set_(z * 3)  # type: ignore[call-overload]
        y[0].add_(1)
        return y, rows

    graph = graph_of(forward, torch.randn(4, 4), torch.randn(4, 4))
    reading = read(graph)
    [added] = [node for node in graph.nodes if node.target == "add_"]
    y, rows = graph.output_node().all_input_nodes
    assert reading.facts[added].writes & reading.memory(y) and reading.is_written(y)
    assert reading.is_written(rows)  # taken before: it may be, and nothing says that it is not


def test_what_reaches_the_output_or_an_input_by_a_write_alone_is_needed() -> None:
    def forward(x: Tensor, kept: Tensor, w: Tensor) -> Tensor:
        into_output, into_input, nowhere, later = (x.sin() @ each for each in w.unbind())
        out = x.clone()
        out[:2].add_(into_output[:2])
        kept.copy_(into_input)
        x.clone().add_(nowhere)
        scaled = out * 2
        out.add_(later)
        return scaled

    graph = graph_of(forward, torch.randn(4, 4), torch.zeros(4, 4), torch.randn(4, 4, 4))
    reading = read(graph)
    products = [node for node in graph.nodes if reading.op(node) == "matmul"]
    assert [node in reading.needed() for node in products] == [True, True, False, False]
