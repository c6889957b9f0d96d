"""Mods: opt-in passes that change the model, on Dynamo's graph, where norms and activations are single nodes.

    no_bias      removes every bias but those of the final heads
    block_norm   replaces LayerNorm and RMSNorm by RMSNorm over blocks of 256, without weights
    hard_swish   replaces SiLU and the swish gate n * sigmoid(n)

Source: LoKA Mods. Together they let a model train in FP8 and let its norms run in the GEMMs' epilogues. The model
computes something else afterwards and has to be trained that way. loka_compile/mods/adapt.py does the same to modules.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from loka_compile.passes.adapt.block_norm import BlockNorm
from loka_compile.passes.adapt.hard_swish import HardSwish
from loka_compile.passes.adapt.no_bias import NoBias
from loka_compile.passes.base import DynamoPass
from loka_compile.passes.dynamo import Change, run_on_dynamo
from loka_compile.passes.simplify.canonicalize import Canonicalize

MODS: dict[str, DynamoPass] = {each.name: each for each in (NoBias(), BlockNorm(), HardSwish())}
"""The mods by name, in the order they are applied."""


def asked(names: Sequence[str]) -> tuple[DynamoPass, ...]:
    """The mods of these names, in the order they are applied."""
    return tuple(mod for name, mod in MODS.items() if name in names)


def modified(
    gm: fx.GraphModule, names: Sequence[str], device: str = "cpu"
) -> tuple[fx.GraphModule, tuple[Change, ...]]:
    """Apply the mods of these names to a copy of the graph in canonical form.

    Returns the copy and what each mod did. Without names it is the graph itself.
    """
    passes = asked(names)
    gm, changes = run_on_dynamo(gm, (Canonicalize(), *passes) if passes else (), device)
    return gm, tuple(change for change in changes if change.adapts)
