"""Tags that are worth their price, by what each is known to reach."""

import pytest

from examples.audience.quality.fitted import fitted
from examples.audience.quality.methods import constrained_regression
from examples.audience.quality.offers import offers
from examples.audience.quality.report import DEFAULT, Judged, Report
from examples.audience.quality.table import Table
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, joined, simulate


def test_a_tag_is_bought_if_it_earns_more_than_it_costs():
    data = simulate(TRUTH, 60, 5000, 0)
    table = Table(data, ("young", "middle", "old"), ("c",) * 60, None)
    judged = Judged(table, {DEFAULT: constrained_regression(data, Bootstrap(20))}, None)
    lines = offers(Report({"acme": judged}, []), "young", 0.5, 1).splitlines()[4:]
    bought = {line.split(" | ")[1]: line.split(" | ")[-1].strip(" |") for line in lines}
    assert bought == {
        name: "yes" if TRUTH[tag, 0] > 0.5 else "no" for tag, name in enumerate(("none", "young", "middle", "old"))
    }
    assert "yes" in bought.values() and "no" in bought.values()
    with pytest.raises(ValueError, match="no category 'yuong'; there are 'young'"):
        offers(Report({"acme": judged}, []), "yuong", 0.5, 1)


def test_tags_that_no_assumption_explains_are_bought_by_their_low_ends():
    data = joined([simulate(TRUTH, 20, 5000, 0), simulate(TRUTH[[0, 2, 1, 3]], 20, 5000, 1)])
    source = fitted(data, Bootstrap(20))
    judged = Judged(Table(data, ("young", "middle", "old"), ("c",) * 40, None), {DEFAULT: source}, None)
    price = float(source.q[1:, 0].max()) - 0.01  # what the point says pays, the low end does not
    table, note = offers(Report({"acme": judged}, []), "young", price, 1).rstrip().split("\n\n")[1:]
    assert not source.sure and "| yes |" not in table and note.startswith("acme: NEITHER")
    cheap = offers(Report({"acme": judged}, []), "young", float(source.low[1:, 0].max()) / 2, 1)
    assert "| yes |" in cheap
