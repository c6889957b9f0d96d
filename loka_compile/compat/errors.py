"""Errors for the person who called the model: they leave a compilation as they were raised, without its frames.

Dynamo wraps what a backend raises in BackendCompilerFailed, shows every frame of the compilation, and appends how to
report a bug to PyTorch. It does none of that to a ShortenTraceback (torch._dynamo.exc, seen with torch 2.13), except
for the appended text, which is why `__str__` returns the message alone.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NoReturn


def raise_plainly(error: Exception) -> NoReturn:
    """Raise an error of the same type and message; its traceback goes from the user's call straight to here."""
    from torch._dynamo import config

    kind: Any = type(error)
    plain = _plain_type(kind)(str(error), first_useful_frame=sys._getframe())
    raise plain from (error if config.verbose else None)


@functools.cache
def _plain_type(kind: Any) -> Any:
    """The type of an error, as one that Dynamo passes on."""
    from torch._dynamo.exc import ShortenTraceback

    class Plain(ShortenTraceback, kind):
        def __init__(self, said: str, first_useful_frame: Any) -> None:
            super().__init__(said, first_useful_frame=first_useful_frame)
            self.said = said

        def __str__(self) -> str:
            return self.said

    Plain.__name__, Plain.__qualname__, Plain.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Plain
