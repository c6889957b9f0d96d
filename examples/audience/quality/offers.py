"""Which tags are worth their price, source by source, to reach users of a category."""

from __future__ import annotations

import numpy as np

from examples.audience.quality.report import DEFAULT, Report
from examples.audience.quality.uses import believed, choose


def offers(report: Report, category: str, price: float, value: float) -> str:
    """A table. price: of one user; value: of one who is of the category. Raises ValueError for an unknown category.

    A tag of a source that its campaigns do not explain is bought only if it pays by the least that it may reach.
    """
    doubts: list[str] = []
    lines = [
        f"Users at {price:g} each, of whom one of {category!r} is worth {value:g}:",
        "",
        f"| source | tag | P({category}) | earned by user bought | buy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, judged in report.sources.items():
        table, source = judged.table, judged.by_method[DEFAULT]
        if category not in table.categories:
            raise ValueError(f"there is no category {category!r}; there are {', '.join(map(repr, table.categories))}")
        at = table.categories.index(category)
        chances = source.chance(at)[0]
        assert source.low is not None and source.high is not None  # `chance` wants them
        bought = choose(np.clip(believed(source, at), 0, 1), price, value).chosen
        doubts += [] if source.sure else [f"{name}: {source.flags[0]}. Its tags are bought by their low ends."]
        for tag, words in enumerate(("none", *table.categories)):
            ends = f"{chances[tag]:.2f} ({source.low[tag, at]:.2f} to {source.high[tag, at]:.2f})"
            yes = "yes" if bought[tag] else "no"
            lines.append(f"| {name} | {words} | {ends} | {value * chances[tag] - price:.4g} | {yes} |")
    return "\n".join([*lines, *(["", *doubts] if doubts else [])]) + "\n"
