"""Passes on ATen operators after partitioning: the inference graph, or the forward graph and the backward graph."""

from loka_compile.passes.post_grad.float_products import FloatProducts
from loka_compile.passes.post_grad.fuse import Fuse
from loka_compile.passes.post_grad.fuse_backward import FuseBackward
from loka_compile.passes.post_grad.fuse_cast import FuseCast
from loka_compile.passes.post_grad.lower import Lower
from loka_compile.passes.post_grad.thin import Thin

PASSES = (Fuse(), FuseBackward(), FuseCast(), Thin(), Lower(), FloatProducts())
"""In the order they run."""
