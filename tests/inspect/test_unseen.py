"""What was not seen of a model is said: graph breaks, operators with GEMMs inside, models that Dynamo left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loka_compile as loka

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "op_by_op")


def notes(model, *args):
    compiled = torch.compile(model, backend="loka", options={"recipes": ()})
    with torch.no_grad():
        compiled(*args)
    return loka.explain(compiled).notes


def test_operators_with_gemms_inside():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Conv1d(5, 3, 1))
    fast, conv = [note for note in notes(model.eval(), torch.randn(2, 5, 16)) if "inside" in note]
    op = "aten._transformer_encoder_layer_fwd"
    told = f"graph_0: {op} has GEMMs inside, which stay as they are: 0.layers.0, 0.layers.1"
    assert fast == f"{told}; torch.backends.mha.set_fastpath_enabled(False) takes it apart"
    assert conv == "graph_0: aten.convolution has GEMMs inside, which stay as they are: 1"


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        torch._dynamo.graph_break()
        return self.fc(x)


def test_a_graph_break():
    note, skipped = notes(Broken(), torch.randn(2, 8))
    assert "serves cuda" in skipped
    assert note.startswith("graph_0: ends at a graph break, test_unseen.py:")
    assert "graph_break()`; TORCH_LOGS=graph_breaks tells" in note


def test_a_method_of_a_module():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    compiled = torch.compile(model.forward, backend="loka", options={"recipes": ()})
    with torch.no_grad():
        compiled(torch.randn(2, 8))
    (row,) = loka.explain(compiled).rows
    assert row.key.endswith("0#0:output")


def test_a_model_that_dynamo_leaves_to_python():
    model = nn.LSTM(4, 4)
    compiled = torch.compile(model, backend="loka")
    compiled(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"TORCH_LOGS=graph_breaks says where and why"):
        loka.explain(compiled)
