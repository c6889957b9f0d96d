"""Passes on Dynamo's graph: exact algebra, the same values with less work.

canonicalize lies here too, but is no part of PASSES: it runs first, before the passes that adapt the model.
"""

from loka_compile.passes.simplify.batch import Batch
from loka_compile.passes.simplify.hoist import Hoist
from loka_compile.passes.simplify.merge import Merge
from loka_compile.passes.simplify.mix_tokens import MixTokens
from loka_compile.passes.simplify.reassociate import Reassociate

PASSES = (Hoist(), Merge(), Batch(), Reassociate(), MixTokens())
"""In the order they run."""
