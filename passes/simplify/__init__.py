"""The Dynamo graph: exact algebra, the same values with less work. canonicalize comes before all that is adapted."""

from loka_compile.passes.simplify.batch import Batch
from loka_compile.passes.simplify.hoist import Hoist
from loka_compile.passes.simplify.merge import Merge
from loka_compile.passes.simplify.mix_tokens import MixTokens
from loka_compile.passes.simplify.reassociate import Reassociate

PASSES = (Hoist(), Merge(), Batch(), Reassociate(), MixTokens())
"""In the order they run."""
