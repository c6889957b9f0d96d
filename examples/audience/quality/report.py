"""The report on the sources of a file of campaigns: figures with intervals, a ranking, doubts and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from examples.audience.quality import methods
from examples.audience.quality.assumption import MAX_SCATTER, Assumption
from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.constancy import Constancy, constancy
from examples.audience.quality.errors import error_regression
from examples.audience.quality.fitted import fitted, widened
from examples.audience.quality.model import Holds
from examples.audience.quality.ranking import Place, ranking
from examples.audience.quality.result import Quality
from examples.audience.quality.table import Table, TableError, read, sources_of
from loka_compile.sampling.intervals import Bootstrap

METHODS = {
    "fitted": fitted,
    "single_tag": methods.single_tag,
    "marginal_agreement": methods.marginal_agreement,
    "constrained_regression": methods.constrained_regression,
    "error_regression": error_regression,
    "expectation_maximisation": methods.expectation_maximisation,
}
"""Those that need aggregates only; `holdout` needs users whose truth is known."""
DEFAULT = "fitted"
"""The regression whose assumption the campaigns bear out."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One source: its table, what each method says of it, whether Q is one in all verticals (None: there are none)."""

    table: Table
    by_method: dict[str, Quality]
    constant: Constancy | None

    @property
    def assumption(self) -> Assumption:
        found = self.by_method[DEFAULT].assumption
        assert found is not None  # `fitted` makes it
        return found


@dataclass(frozen=True, eq=False)
class Report:
    sources: dict[str, Judged]
    places: list[Place]


def judge(path: Path, bootstrap: Bootstrap | None = None) -> Report:
    """What every method says of every source of the file. Raises TableError for a file that cannot be read."""
    bootstrap = bootstrap or Bootstrap()
    sources = {}
    if not (names := sources_of(path)):
        raise TableError(f"{path} has no source: two columns `<source>:` and `<source>:<category>` at least")
    for name in names:
        table = read(path, name)
        by_method = {method: _judged(run, table.data, bootstrap) for method, run in METHODS.items()}
        sources[name] = Judged(table, by_method, _constancy(table, by_method[DEFAULT].holds))
    places = ranking({name: judged.by_method[DEFAULT] for name, judged in sources.items()})
    return Report(sources, places)


def _judged(run: Callable[[Campaigns, Bootstrap], Quality], data: Campaigns, bootstrap: Bootstrap) -> Quality:
    """What a method says; where it does not fit the campaigns, with bounds in place of its intervals."""
    found = run(data, bootstrap)
    wrong = found.assumption is None and found.scatter is not None and found.scatter > MAX_SCATTER
    return widened(found, data, bootstrap) if wrong else found


def _constancy(table: Table, holds: Holds) -> Constancy | None:
    if table.verticals is None:
        return None
    _, counts = np.unique(np.asarray(table.verticals), return_counts=True)
    return constancy(table.data, table.verticals, holds=holds) if len(counts) > 1 and counts.min() > 1 else None


def to_json(report: Report) -> dict[str, Any]:
    """Plain figures, for `--json`."""
    return {
        "sources": {
            name: {
                "categories": judged.table.categories,
                "campaigns": len(judged.table.campaigns),
                "assumption": {
                    "holds": judged.assumption.holds,
                    "fits": judged.assumption.fits,
                    "told apart": judged.assumption.told_apart,
                    "scatter": {"tags": judged.assumption.tags, "errors": judged.assumption.errors},
                },
                "methods": {method: _plain(found) for method, found in judged.by_method.items()},
                "constant": None
                if judged.constant is None
                else {"p": judged.constant.p, "spread": judged.constant.spread},
            }
            for name, judged in report.sources.items()
        },
        "ranking": [
            {
                "source": place.source,
                "rank": _triple(place.rank),
                "accuracy": _triple(place.score),
                "best": place.best,
                "sure": place.sure,
            }
            for place in report.places
        ],
    }


def _plain(found: Quality) -> dict[str, Any]:
    scores = {name: _triple(score) for name, score in found.scores.items()}
    return {"scores": scores, "q": None if found.q is None else found.q.tolist(), "flags": found.flags}


def _triple(figure: Any) -> list[float]:
    return [figure.value, figure.low, figure.high]


def markdown(report: Report) -> str:
    """The report as text; `write` puts pictures beside it."""
    lines = ["# Sources against the agency's reports", "", "Intervals are of 95 %.", ""]
    doubted = [name for name, judged in report.sources.items() if not judged.assumption.fits]
    if doubted:
        lines += [
            f"**Of {', '.join(doubted)} the campaigns bear out neither assumption. What stands here of them (?) are "
            "bounds that hold whatever they do, and their places are what these allow.**",
            "",
        ]
    lines += [
        "| place | source | same in all campaigns | accuracy | lift | coverage | bits | best in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for place in report.places:
        scores = report.sources[place.source].by_method[DEFAULT].scores
        cells = " | ".join(str(scores[name]) for name in ("accuracy", "lift", "coverage", "bits"))
        rank = f"{place.rank.value:.0f} ({place.rank.low:.0f} to {place.rank.high:.0f})"
        best = "not known" if place.best is None else f"{place.best:.0%} of the resamples"
        place_of = f"{rank if place.sure else f'? {rank}'} | {_cell(place.source)} | {_held(report, place)}"
        lines.append(f"| {place_of} | {cells} | {best} |")
    pictures = pictures_of(report.sources)
    for name, judged in report.sources.items():
        lines += [
            "",
            f"## {_cell(name)}",
            "",
            f"{len(judged.table.campaigns)} campaigns: {judged.assumption}.",
            "",
            f"![Q of {_cell(name)}]({pictures[name]})",
            "",
        ]
        lines += ["| method | accuracy | doubts |", "| --- | --- | --- |"]
        for method, found in judged.by_method.items():
            score = found.scores.get("accuracy") or f"agreement {found.scores['agreement']}"
            lines.append(f"| {method} | {score} | {'; '.join(found.flags) or 'none'} |")
        if judged.constant is not None:
            lines += ["", _by_vertical(judged.constant, judged.assumption)]
    return "\n".join(lines) + "\n"


def _held(report: Report, place: Place) -> str:
    """What the place rests on."""
    words = {"tags": "P(truth given tag)", "errors": "P(tag given truth)"}
    return words[report.sources[place.source].assumption.holds] if place.sure else "neither"


def _by_vertical(found: Constancy, assumed: Assumption) -> str:
    what = "Q" if assumed.holds == "tags" else "how the source errs"
    figures = f"p = {found.p:.3f}, entries differ by up to {found.spread:.2f}"
    if not found.holds:
        return f"By vertical: **reason to doubt** that {what} is the same everywhere ({figures})."
    if not assumed.fits:
        return f"By vertical: campaigns differ, as said above, but no more between verticals than within ({figures})."
    return f"By vertical: no reason to doubt that {what} is the same everywhere ({figures})."


def pictures_of(sources: Iterable[str]) -> dict[str, str]:
    """Source -> its picture's file name, of letters, digits, - and _ whatever the source's name holds."""
    found: dict[str, str] = {}
    for name in sources:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "_"
        taken = {each.lower() for each in found.values()}
        names = (f"{plain}{f'-{again}' if again else ''}.png" for again in count())
        found[name] = next(each for each in names if each.lower() not in taken)
    return found


def _cell(name: str) -> str:
    """A name in a line of a table."""
    return " ".join(name.split()).replace("|", r"\|")


def write(report: Report, folder: Path) -> Path:
    """`report.md`, `report.json` and a picture a source in `folder`; gives the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(report.sources)
    for name, judged in report.sources.items():
        picture(judged, folder / pictures[name])
    (folder / "report.json").write_text(json.dumps(to_json(report), indent=1) + "\n", encoding="utf-8")
    text = folder / "report.md"
    text.write_text(markdown(report), encoding="utf-8")
    return text


def picture(judged: Judged, path: Path) -> None:
    """Q with its intervals, a panel a tag."""
    from matplotlib.figure import Figure  # only here: the figures need no matplotlib

    found = judged.by_method[DEFAULT]
    names = [name.replace("$", r"\$") for name in judged.table.categories]  # a $ would begin a formula
    figure = Figure(figsize=(2.2 * len(names) + 2.6, 2.8), layout="constrained")
    panels = figure.subplots(1, len(names) + 1, sharey=True)
    assert found.q is not None and found.low is not None and found.high is not None  # a regression gives them
    for tag, panel in enumerate(panels):
        colours = ["tab:blue" if tag == c + 1 else "lightgrey" for c in range(len(names))]
        panel.bar(names, found.q[tag], color=colours)
        spread = np.abs(np.stack([found.q[tag] - found.low[tag], found.high[tag] - found.q[tag]]))
        panel.errorbar(range(len(names)), found.q[tag], spread, fmt="none", ecolor="black", capsize=3)
        panel.set_title(f"tag: {names[tag - 1]}" if tag else "no tag", fontsize=10)
        panel.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("P(true category | tag)")
    panels[0].set_ylim(0, 1)
    figure.savefig(path, dpi=110)
