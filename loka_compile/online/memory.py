"""An online session's files on disk: demotions, which are never forgotten, and the profile learned so far.

Both lie in `online/` of loka's cache folder, under a digest of the graph's structure, so a restarted process finds
them. Delete the .json file to let its sites be lowered again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from loka_compile.dispatch.kept_times import cache_dir
from loka_compile.probe.profile import Profile

FORMAT = "loka-demotions"


class Memory:
    """The files of one graph."""

    def __init__(self, digest: str) -> None:
        folder = cache_dir() / "online"
        self.demotions = folder / f"{digest}.json"
        self.profile = folder / f"{digest}.profile"

    def demoted(self) -> dict[str, str]:
        """Reasons by site key. A damaged file is said, and put aside: what it held is not known any more."""
        try:
            body = json.loads(self.demotions.read_text())
            if body["format"] != FORMAT:
                raise ValueError(f"its format is {body['format']!r}")
            return {str(key): str(reason) for key, reason in body["demoted"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(f"loka: cannot read the demotions in {self.demotions} ({error})", stacklevel=2)
            return {}

    def demote(self, reasons: Mapping[str, str]) -> None:
        """Add demotions to those on disk, which other processes may have added to. Warns if they cannot be kept."""
        body = {"format": FORMAT, "demoted": {**self.demoted(), **reasons}}
        try:
            _write(self.demotions, json.dumps(body, indent=1) + "\n")
        except OSError as error:
            warnings.warn(f"loka: cannot write {self.demotions} ({error}): a restart forgets this", stacklevel=2)

    def save(self, profile: Profile) -> None:
        """The profile, whole or not at all; a read-only home keeps none."""
        with contextlib.suppress(OSError):
            profile.save(self.profile)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as scratch:
        scratch.write(text)
    os.replace(scratch.name, path)
