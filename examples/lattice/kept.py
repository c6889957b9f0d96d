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
    """Runs by problem and seed, and `more` by name. A file that is there must be of the same settings; without a path
    nothing is written. Processes with one file add to it: each writes what it has changed, and the others' stays."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, _as_it_comes_back(settings)
        if path:
            if path.parent.is_file():
                raise DataError(f"{path.parent} is a file: expected a folder, which is made if it is not there")
            path.parent.mkdir(parents=True, exist_ok=True)
        self._before = self._checked(self._read())
        self._runs: dict[str, dict[str, dict[str, Any]]] = _as_it_comes_back(self._before["runs"])
        self.more: dict[str, Any] = _as_it_comes_back(self._before["more"])

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
            self._before = files.merge_json(self.path, self._merged)
            for problem, seeds in self._before["runs"].items():  # those of others, too
                self._runs[problem] = {**seeds, **self._runs.get(problem, {})}

    def _merged(self, found: dict[str, Any]) -> dict[str, Any]:
        there, before = self._checked(found), self._before
        ours = _as_it_comes_back({"runs": self._runs, "more": self.more})
        runs = {
            problem: _with_changes(*(of.get(problem, {}) for of in (there["runs"], before["runs"], ours["runs"])))
            for problem in {**there["runs"], **ours["runs"]}
        }
        more = _with_changes(there["more"], before["more"], ours["more"])
        return {"settings": self.settings, "runs": runs, "more": more}

    def _read(self) -> dict[str, Any]:
        try:
            return files.read_mapping(self.path) if self.path else {}
        except DataError as error:
            raise DataError(f"{self.path} cannot be read: {error}; or give another file") from None

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        """What a file holds, if it is of these settings; nothing, if there is none."""
        if not found:
            return {"runs": {}, "more": {}}
        if found.get("settings") != self.settings:
            raise DataError(
                f"{self.path} holds figures of other settings, {found.get('settings')} and not {self.settings}: "
                "give another file, or delete this one"
            )
        runs, more = found.get("runs"), found.get("more")
        by_seed = isinstance(runs, dict) and all(isinstance(seeds, dict) for seeds in runs.values())
        if not (by_seed and isinstance(more, dict)):
            raise DataError(
                f"{self.path} cannot be read (expected runs by problem and seed, and a mapping of more, got "
                f"{runs!r:.40} and {more!r:.40}): delete it, or give another file"
            )
        return found


def _as_it_comes_back(body: Any) -> Any:
    """As JSON has it, and apart from what was given."""
    return json.loads(json.dumps(body))


def _with_changes(there: dict[str, Any], before: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """What is there, with what is ours and is not as it was before, or is there no more."""
    changed = {key: value for key, value in ours.items() if key not in there or value != before.get(key)}
    return {**there, **changed}
