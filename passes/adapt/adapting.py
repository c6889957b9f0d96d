"""The passes that make another model of it, as the options ask for them, in order: what is left out first."""

from __future__ import annotations

from collections.abc import Mapping

from loka_compile.passes.adapt import mods
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.passes.base import DynamoPass
from loka_compile.spec.options import Options


def adapting(options: Options, whole: bool) -> tuple[DynamoPass, ...]:
    """whole: the graph is all of the model, not a part of it between graph breaks."""
    skip = (Skip(options.compskip, whole),) if options.compskip is not None else ()
    window = (WindowedAttention(options.window, whole),) if isinstance(options.window, Mapping) else ()
    return *skip, *window, *mods.asked(options.mods)
