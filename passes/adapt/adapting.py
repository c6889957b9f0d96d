"""The adapting passes that the options ask for, in order. Passes that leave work out come first."""

from __future__ import annotations

from collections.abc import Mapping

from loka_compile.passes.adapt import mods
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.passes.base import DynamoPass
from loka_compile.spec.options import Options


def adapting(options: Options, whole: bool) -> tuple[DynamoPass, ...]:
    """whole: the graph is the whole model, not a part between graph breaks; then a path that matches no module is an
    error."""
    skip = (Skip(options.compskip, whole),) if options.compskip is not None else ()
    window = (WindowedAttention(options.window, whole),) if isinstance(options.window, Mapping) else ()
    return *skip, *window, *mods.asked(options.mods)
