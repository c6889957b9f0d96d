"""Passes on ATen operators before partitioning: the inference graph, or forward and backward in one graph."""

from loka_compile.passes.joint.fold_dropout import FoldDropout
from loka_compile.passes.joint.precision import Precision
from loka_compile.passes.joint.share import Share

PASSES = (FoldDropout(), Share(), Precision())
"""In the order they run."""
