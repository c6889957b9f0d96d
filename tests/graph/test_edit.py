"""Changing a Dynamo graph: what takes the place of a value, and under whose name."""

from __future__ import annotations

import torch
from torch import nn

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.reader import read
from loka_compile.graph.sites import module_name
from tests.graph.test_reader import graph_of


class Flipped(nn.Module):
    def forward(self, x):
        return x.T.T


def test_a_gemm_that_stood_keeps_its_name_and_what_is_new_takes_the_old_ones():
    graph = graph_of(nn.Sequential(nn.Linear(2, 3), Flipped()), torch.randn(4, 2))
    reading = read(graph)
    [linear] = [node for node in graph.nodes if reading.op(node) == "linear"]
    *_, outer = [node for node in graph.nodes if reading.permuted(node)]
    assert (module_name(linear), module_name(outer)) == ("0", "1")
    new = replace(reading, outer, emit(reading, outer, torch.clone, linear))
    assert module_name(new) == "1"
    assert replace(reading, new, linear) is linear
    assert module_name(linear) == "0" and graph.output_node().all_input_nodes == [linear]
