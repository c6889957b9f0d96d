"""In-target reach: corrected where tags lie, with an interval that holds the truth."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.join import Corrected, Source
from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.fitted import fitted
from examples.audience.quality.methods import constrained_regression, holdout
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.query import And, Everybody, In, Not, Or, Range
from examples.audience.reach.schema import AudienceError
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, err, guessing, joined, simulate

NAMES = ("young", "middle", "old")
SHARES = np.array([0.2, 0.5, 0.3])
RIGHT = 0.6
"""Of the tags; the others claim one of the two wrong categories."""


def tags_of(truth, rng, coverage=0.8):
    wrong = (truth + rng.integers(1, 3, len(truth))) % 3
    claimed = np.where(rng.random(len(truth)) < RIGHT, truth, wrong)
    return np.where(rng.random(len(truth)) < coverage, claimed, -1)


def named(tags):
    return pa.array([None if tag < 0 else NAMES[tag] for tag in tags.tolist()])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sample with two tag columns, the truth of all rows, and campaigns of the first source."""
    folder, rng = tmp_path_factory.mktemp("tags"), np.random.default_rng(0)
    truth = rng.choice(3, 40_000, p=SHARES)
    device = rng.choice(["phone", "web"], len(truth), p=[0.7, 0.3])
    acme, other = tags_of(truth, rng), tags_of(truth, rng)
    columns = {"acme": named(acme), "other": named(other), "device": device, "spend": rng.random(len(truth))}
    pq.write_table(pa.table(columns), folder / "p.parquet")
    build([folder / "p.parquet"], Columns(("acme", "other", "device"), ("spend",)), folder / "s", 3000)
    counts, reports = [], []
    for _ in range(40):  # campaigns aimed at tags, not at the truth: Q stays what it is
        share = rng.dirichlet(np.ones(4))
        users = np.concatenate([rng.choice(np.flatnonzero(acme == a - 1), int(4000 * s)) for a, s in enumerate(share)])
        counts.append(np.bincount(acme[users] + 1, minlength=4))
        reports.append(np.bincount(truth[users], minlength=3) / len(users))
    campaigns = Campaigns.of(counts, reports)
    return Estimator(Local(folder / "s")), truth, columns, (acme, other), campaigns


def test_the_corrected_reach_holds_the_truth_where_tags_alone_do_not(made):
    estimator, truth, columns, _, campaigns = made
    corrected = Corrected(estimator, [Source("acme", constrained_regression(campaigns))], NAMES)
    for category, name in enumerate(NAMES):
        asked = (Everybody(), np.ones(len(truth), bool)), (In("device", ("web",)), columns["device"] == "web")
        for query, rows in (*asked, (Range("spend", 0.5), columns["spend"] >= 0.5)):
            there = ((truth == category) & rows).sum()
            found = corrected.reach(query, name)
            assert found.reach.low <= there <= found.reach.high
            assert abs(found.reach.value - there) < 0.1 * there
            assert (found.sampling > 1) == isinstance(query, Range) and found.quality > 1  # tags are counted in full
            if name != "old":
                assert not found.tagged.low <= there <= found.tagged.high  # 3 tags in 10 are wrong, a fifth has none


def test_an_audience_with_a_mix_of_its_own_is_seen_by_how_tags_err(made):
    """Of those the first source calls old most are: a second source's Q, learned on everybody, is wrong about them."""
    estimator, truth, _, tags, _ = made
    source = Source("other", holdout(tags[1][:5000] + 1, truth[:5000], 3, Bootstrap(60)))
    query, rows = In("acme", ("old",)), tags[0] == 2
    corrected = Corrected(estimator, [source], NAMES)
    there = ((truth == 2) & rows).sum()
    by_tags, by_errors = (corrected.reach(query, "old", holds) for holds in ("tags", "errors"))
    assert by_errors.reach.low <= there <= by_errors.reach.high < 1.35 * there
    assert not by_tags.reach.low <= there <= by_tags.reach.high  # it pulls everybody to the shares of all
    with pytest.raises(AudienceError, match="`holds` is one of fits, tags, errors"):
        corrected.reach(query, "old", "nothing")


@pytest.fixture(scope="module")
def erring(tmp_path_factory):
    """Two sources that err alike; campaigns aimed at people, whose mix is not the sample's; more young on phones."""
    folder, rng = tmp_path_factory.mktemp("erring"), np.random.default_rng(4)
    device = rng.choice(["phone", "web"], 40_000)
    truth = np.where(rng.random(40_000) < np.where(device == "phone", 0.5, 0.2), 0, rng.integers(1, 3, 40_000))
    errors = {"acme": guessing(0.8, 0.25), "bolt": guessing(0.6, 0.1)}
    tags = {name: np.array([rng.choice(4, p=own[c]) for c in truth]) - 1 for name, own in errors.items()}
    columns = {name: named(own) for name, own in tags.items()} | {"device": device}
    pq.write_table(pa.table(columns), folder / "p.parquet")
    build([folder / "p.parquet"], Columns(("acme", "bolt", "device")), folder / "s", 4000)
    sources = [
        Source(name, fitted(err(own, 40, 4000, 1000, seed), Bootstrap(60)))
        for seed, (name, own) in enumerate(errors.items())
    ]
    return Corrected(Estimator(Local(folder / "s")), sources, NAMES, [1 / 3] * 3, 0.5), truth, device, tags


def test_errors_are_those_of_the_campaigns_whatever_the_sample_holds(erring):
    """They were taken from Q and the sample's tags, as if its mix were the campaigns', and flattened for two."""
    corrected, truth, device, _ = erring
    for query, there in ((Everybody(), device != ""), (In("device", ("phone",)), device == "phone")):
        for category, name in enumerate(NAMES):
            found, wanted = corrected.reach(query, name), ((truth == category) & there).sum()
            assert found.reach.low <= wanted <= found.reach.high and found.holds == "errors" and found.notes == ()
            assert found.reach.high - found.reach.low < 0.2 * wanted
    young = ((truth == 0) & (device == "phone")).sum()
    by_tags = corrected.reach(In("device", ("phone",)), "young", "tags")
    assert not by_tags.reach.low <= young <= by_tags.reach.high
    assert "tags do not mean the same" in by_tags.notes[0]  # and that is said


def test_criteria_about_the_tags_choose_among_those_of_the_audience(erring):
    corrected, truth, device, tags = erring
    phone, old = In("device", ("phone",)), In("acme", ("old",))
    for query, there in (
        (old, tags["acme"] == 2),
        (And((phone, old)), (tags["acme"] == 2) & (device == "phone")),
        (
            And((phone, Not(Or((old, In("bolt", (None,))))))),
            (device == "phone") & (tags["acme"] != 2) & (tags["bolt"] >= 0),
        ),
    ):
        for category in (0, 2):
            found, wanted = corrected.reach(query, NAMES[category]), ((truth == category) & there).sum()
            assert found.reach.low <= wanted <= found.reach.high and found.notes == ()


def test_an_audience_that_is_tagged_otherwise_is_seen_and_left_open(tmp_path):
    """The source does not tag on the web: no mix of categories has so few tags."""
    rng = np.random.default_rng(0)
    device, truth = rng.choice(["phone", "web"], 20_000), rng.integers(0, 3, 20_000)
    tags = np.array([rng.choice(4, p=guessing(0.8)[c]) for c in truth]) - 1
    tags = np.where((device == "web") & (rng.random(20_000) < 0.8), -1, tags)
    pq.write_table(pa.table({"acme": named(tags), "device": device}), tmp_path / "p.parquet")
    build([tmp_path / "p.parquet"], Columns(("acme", "device")), tmp_path / "s", 3000)
    source = Source("acme", fitted(err(guessing(0.8), 40, 4000, 1000, 0), Bootstrap(60)))
    corrected = Corrected(Estimator(Local(tmp_path / "s")), [source], NAMES)
    phone, web = (corrected.reach(In("device", (name,)), "young") for name in ("phone", "web"))
    assert phone.notes == () and "do not give such tags" in web.notes[0]
    alone = [corrected.reach(In("device", ("web",)), "young", holds).reach for holds in ("tags", "errors")]
    assert web.reach.low == min(each.low for each in alone) and web.reach.high == max(each.high for each in alone)


def test_a_source_that_no_assumption_fits_gets_what_either_would_say(made):
    estimator, truth, *_ = made
    odd = joined([simulate(q, 20, 5000, seed) for seed, q in enumerate((TRUTH, TRUTH[[0, 2, 1, 3]]))])
    found = Corrected(estimator, [Source("acme", fitted(odd, Bootstrap(60)))], NAMES).reach(Everybody(), "young")
    assert "NEITHER" in found.notes[0] and found.reach.low <= (truth == 0).sum() <= found.reach.high
    assert found.reach.high - found.reach.low > 0.3 * len(truth)


def test_both_uncertainties_are_in_the_interval(made):
    estimator, _, _, _, campaigns = made
    wide, narrow = (
        Corrected(estimator, [Source("acme", constrained_regression(data, Bootstrap(100)))], NAMES).reach(
            Range("spend", 0.5), "old"
        )
        for data in (Campaigns(*(each[:12] for each in vars(campaigns).values())), campaigns)
    )
    assert wide.quality > narrow.quality and wide.sampling == pytest.approx(narrow.sampling, rel=0.3)
    half = narrow.reach.high - narrow.reach.value
    assert half == pytest.approx(np.sqrt(narrow.sampling**2 + narrow.quality**2 + narrow.chance**2))
    assert 0 < narrow.chance < narrow.sampling  # a seventh of the rows are sampled


def test_two_sources_are_combined(made):
    estimator, truth, _, tags, _ = made
    sources = [
        Source(name, holdout(own[:5000] + 1, truth[:5000], 3, Bootstrap(60)))
        for name, own in zip(("acme", "other"), tags, strict=True)
    ]
    found = Corrected(estimator, sources, NAMES, SHARES.tolist()).reach(In("acme", ("young",)), "young")
    there = ((truth == 0) & (tags[0] == 0)).sum()
    assert found.reach.low <= there <= found.reach.high


def test_what_cannot_be_corrected_is_an_error(made):
    estimator, _, _, _, campaigns = made
    source = Source("acme", constrained_regression(campaigns, Bootstrap(5)))
    with pytest.raises(AudienceError, match="no category 'yuong'; did you mean 'young'"):
        Corrected(estimator, [source], NAMES).reach(Everybody(), "yuong")
    with pytest.raises(AudienceError, match="with several the shares"):
        Corrected(estimator, [source, source], NAMES)
    with pytest.raises(AudienceError, match="'device' has the value 'phone', which is no category"):
        Corrected(estimator, [Source("device", source.quality)], NAMES)


def test_a_category_that_no_row_is_tagged_as_has_its_answer(made, tmp_path):
    """Nobody is tagged old; from a holdout it is known how many of the others are."""
    _, truth, columns, tags, _ = made
    told = tags[0] != 2
    kept = {"acme": pa.array(columns["acme"]).filter(pa.array(told)), "device": columns["device"][told]}
    pq.write_table(pa.table(kept), tmp_path / "p.parquet")
    build([tmp_path / "p.parquet"], Columns(("acme", "device")), tmp_path / "s", 3000)
    quality = holdout(tags[0][told][:5000] + 1, truth[told][:5000], 3, Bootstrap(60))
    found = Corrected(Estimator(Local(tmp_path / "s")), [Source("acme", quality)], NAMES).reach(Everybody(), "old")
    assert found.reach.low <= (truth[told] == 2).sum() <= found.reach.high
    assert (found.tagged.value, found.tagged.low, found.tagged.high) == (0, 0, 0)
