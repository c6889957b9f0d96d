"""What a bench has measured, kept seed by seed in a JSON file, so that one that was stopped goes on; its arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from examples.lattice import files
from examples.lattice.data import DataError


def bench_parser(description: str | None, quick: str = "few rows") -> argparse.ArgumentParser:
    """The arguments that every bench has; what it adds comes behind them."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=at_least_one, default=5)
    made.add_argument("--quick", action="store_true", help=f"{quick}: a rehearsal, no result")
    made.add_argument(
        "--json", type=Path, help="where to write all figures, seed by seed; what is there is not run again"
    )
    return made


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


class Kept:
    """Runs by problem and seed. A file that is there must be of the same settings; without a path nothing is
    written."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))  # as they come back
        if path:
            if path.parent.is_file():
                raise DataError(f"{path.parent} is a file: expected a folder, which is made if it is not there")
            path.parent.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, dict[str, dict[str, Any]]] = {}
        self.more: dict[str, Any] = {}
        if path and path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{path} cannot be read ({error}): delete it, or give another file") from None
            if found.get("settings") != self.settings:
                raise DataError(
                    f"{path} holds figures of other settings, {found.get('settings')} and not {self.settings}: "
                    "give another file, or delete this one"
                )
            self._runs, self.more = found["runs"], found["more"]

    def left(self, problem: str, seeds: int) -> Iterator[int]:
        """Seeds from 1 to `seeds` that have not been run."""
        done = self._runs.get(problem, {})
        missing = [seed for seed in range(1, seeds + 1) if str(seed) not in done]
        yield from track(missing, problem, console=Console(stderr=True))

    def add(self, problem: str, seed: int, run: dict[str, Any]) -> None:
        """A seed's figures by arm; the file is replaced whole."""
        self._runs.setdefault(problem, {})[str(seed)] = run
        self.write()

    def runs(self, problem: str, seeds: int) -> dict[str, list[Any]]:
        """By arm one entry a seed, for seeds from 1 to `seeds`."""
        each = [self._runs[problem][str(seed)] for seed in range(1, seeds + 1)]
        return {arm: [run[arm] for run in each] for arm in each[0]}

    def write(self) -> None:
        if self.path:
            files.write_json(self.path, {"settings": self.settings, "runs": self._runs, "more": self.more})
