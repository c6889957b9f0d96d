"""Parts of a model that loka did not see: the code after a graph break, and GEMMs inside of other operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from loka_compile import compat

_FAST_PATH = "torch.backends.mha.set_fastpath_enabled(False) takes it apart"
OPAQUE = {
    "aten._transformer_encoder_layer_fwd.default": _FAST_PATH,
    "aten._native_multi_head_attention.default": _FAST_PATH,
    "aten.mkldnn_rnn_layer.default": "",
    "aten._cudnn_rnn.default": "",
    "aten.convolution.default": "",
}
"""Operators that multiply matrices inside, and what helps."""


def unseen(gm: fx.GraphModule, opaque: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The parts of one Dynamo graph that loka does not see, in words. opaque: operator and module."""
    if broken := compat.graph_break_after(gm):
        yield f"ends at a graph break, {broken}; TORCH_LOGS=graph_breaks tells of what is not compiled"
    for op in dict.fromkeys(op for op, _ in opaque):
        modules = ", ".join(module for each, module in opaque if each == op)
        helps = f"; {OPAQUE[op]}" if OPAQUE[op] else ""
        yield f"{op.removesuffix('.default')} has GEMMs inside, which stay as they are: {modules}{helps}"
