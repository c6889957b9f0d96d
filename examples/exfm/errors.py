"""What goes wrong and has a remedy, said in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable


class ExfmError(RuntimeError):
    """What was expected, what came, what to do."""


def in_one_line(name: str, command: Callable[[], object]) -> None:
    """Run a command; what has a remedy ends the process with it."""
    try:
        command()
    except ExfmError as error:
        sys.exit(f"{name}: {error}")
