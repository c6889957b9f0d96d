"""Passes on Dynamo's graph: a computation that a kernel of ours does as a whole becomes one operator.

WHOLE are exact rewrites like those of simplify, and raced like them. PASSES come last: AOTAutograd leaves their
operators whole, and `lower` writes out those that nothing was fused with.
"""

from loka_compile.passes.raising.raise_fm import RaiseFm
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.raising.raise_pffn import RaisePffn

WHOLE = (RaiseGdpa(), RaisePffn(), RaiseFm())
PASSES = (RaiseNorms(),)
"""Both in the order they run."""
