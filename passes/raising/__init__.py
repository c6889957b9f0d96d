"""The Dynamo graph: what a kernel of ours does whole becomes one operator.

WHOLE are exact rewrites like those of simplify, raced with them. PASSES come last: what they raise, AOTAutograd leaves
whole, and lower writes out again where nothing fuses it.
"""

from loka_compile.passes.raising.raise_fm import RaiseFm
from loka_compile.passes.raising.raise_gdpa import RaiseGdpa
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.raising.raise_pffn import RaisePffn

WHOLE = (RaiseGdpa(), RaisePffn(), RaiseFm())
PASSES = (RaiseNorms(),)
"""Both in the order they run."""
