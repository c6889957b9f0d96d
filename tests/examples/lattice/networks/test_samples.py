"""What networks read of MovieLens and clothing: histories end before the impression, rows and labels stay together."""

from dataclasses import replace

import pytest
import torch

from examples import movielens as ratings
from examples.lattice import data
from examples.lattice.ktap.record import Knowledge
from examples.lattice.networks import fit, samples
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.size import Size


@pytest.fixture(scope="module")
def movielens():
    return samples.movielens()


def test_events_are_what_the_user_did_in_earlier_seconds_newest_first(movielens):
    rows = data.movielens().everything()
    item = ratings.FIELDS.index("item")
    for row in (0, 5, 40_000, 79_999, 99_999):
        past = (rows.users[:row] == rows.users[row]) & (rows.times[:row] < rows.times[row])
        for source, liked in enumerate((True, False)):
            its = (past & ((rows.labels[:row, 0] == 1) == liked)).nonzero()[:, 0]
            there = movielens.inputs.mask[row, source]
            known = min(len(its), movielens.schema.length - 1)
            assert there.tolist() == [True] * (1 + known) + [False] * (movielens.schema.length - 1 - known)
            seconds = movielens.inputs.seconds[row, source, 1 : 1 + known]
            ago = (rows.times[row] - rows.times[its]).float().flip(0)[:known]
            assert torch.equal(seconds, ago)
            items = movielens.inputs.events[row, source, 1 : 1 + known, 0]
            times = rows.times[its].flip(0)[:known]
            for second in times.unique():  # what happens within a second has no order; the last may be cut
                if second != times[-1:].min():
                    expected = rows.ids[its[rows.times[its] == second], item]
                    assert sorted(items[times == second].tolist()) == sorted(expected.tolist())


def test_every_sequence_begins_with_a_token_of_its_own(movielens):
    for found in (movielens, samples.clothing()):
        of = found.inputs
        assert not of.events[:, :, 0].any() and not of.seconds[:, :, 0].any() and of.mask[:, :, 0].all()
        assert torch.equal(of.ids[:, -1], of.domain + 1) and found.fields[-1] == "domain"
        assert (of.ids.amax(0) < torch.tensor(found.schema.cardinalities)).all()


def test_the_words_of_a_review_are_its_sequence():
    found = samples.clothing(length=5)
    words = found.inputs.events[:, 0, 1:, 0]
    assert torch.equal(words, found.inputs.bag[:, :4]) and torch.equal(found.inputs.mask[:, 0, 1:], words > 0)


def test_a_portfolio_is_one_domains_rows_and_one_tasks_labels(movielens):
    known = Knowledge(torch.randn(100_000, 3), torch.randn(100_000, 2), torch.rand(100_000) < 0.5)
    taught = movielens.taught(known)
    own = taught.portfolio(1, 1)
    rows = (movielens.inputs.domain == 1).nonzero()[:, 0]
    inputs, target = own.batch(torch.arange(len(rows)))
    assert torch.equal(target.labels, movielens.labels[rows][:, [1]]) and own.schema.tasks == 1
    assert torch.equal(target.knowledge.logits, known.logits[rows][:, [1]])
    assert torch.equal(inputs.known, known.embedding[rows]) and own.schema.known == 3
    assert own.cut == int((rows < movielens.cut).sum()) and len(own.test) == len(rows) - own.cut
    assert {*fit.judge(own, own.test, torch.randn(len(own.test), 1))} == {"25 to 34: loved"}


def test_labels_of_other_portfolios_are_unknown(movielens):
    found = movielens.only([(0, 1), (2, 0)])
    known = ~found.labels.isnan()
    domain = movielens.inputs.domain
    assert torch.equal(known, torch.stack([domain == 2, domain == 0], dim=1))
    alone = movielens.only([(0, 1), (2, 1)])
    assert alone.tasks == ("loved",) and alone.schema.tasks == 1 and alone.labels.shape[1] == 1
    scores = fit.judge(found, found.test, torch.randn(len(found.test), 2))
    assert {*scores} == {"under 25: loved", "35 and over: liked"}


def test_fields_that_are_dropped_are_gone_and_the_domain_stays(movielens):
    found = movielens.with_fields(("item", "user"), bag=False)
    assert found.fields == ("user", "item", "domain") and not found.inputs.bag.any()
    assert found.schema.bag == 1 and movielens.with_fields(("item",)).schema.bag == movielens.schema.bag > 1
    places = [movielens.fields.index(name) for name in found.fields]
    assert torch.equal(found.inputs.ids, movielens.inputs.ids[:, places])
    for name in ("cardinalities", "id_dropout"):
        its, all_ = getattr(found.schema, name), getattr(movielens.schema, name)
        assert its == tuple(all_[i] for i in places)


def test_training_takes_batches_of_one_shape_and_prediction_every_row(movielens):
    few, shapes = movielens.last(1000), []

    def call(*inputs):
        shapes.append(len(inputs[0]))
        return inputs[0][:, :2].float()

    assert few.cut == 800 and fit.steps(800, 2, 256) == 6 and fit.steps(100, 1, 256) == 1
    logits = fit.predict(call, few, few.test, 128)
    assert shapes == [128, 128] and torch.equal(logits, few.inputs.ids[few.test, :2].float())


def test_ids_that_were_not_learned_are_unknown_in_rows_that_are_held_out(movielens):
    few = movielens.last(2000)
    early, held = few.train[:1200], few.train[1200:]
    hidden = few.unseen_hidden(held, early).inputs.ids
    for now, before in zip(few.inputs.ids.T, hidden.T, strict=True):
        new = ~torch.isin(now[held], now[early])
        assert torch.equal(before[held], now[held].masked_fill(new, data.UNKNOWN))
        assert torch.equal(before[early], now[early]) and torch.equal(before[few.cut :], now[few.cut :])
    assert (hidden[held] != few.inputs.ids[held]).any()


def seen_in(found, rows):
    """By source the films of the events that are there."""
    of = found.inputs
    return [of.events[rows, source, :, 0][of.mask[rows, source]] for source in range(of.events.shape[1])]


def test_events_and_bag_that_were_not_learned_are_unknown_too(movielens):
    few = movielens.last(2000)
    early, held = few.train[:1200], few.train[1200:]
    hidden = few.unseen_hidden(held, early)
    for now, before, learned in zip(seen_in(hidden, held), seen_in(few, held), seen_in(few, early), strict=True):
        new = ~torch.isin(before, learned)
        assert new.any() and torch.equal(now, before.masked_fill(new, data.UNKNOWN))
    stars = hidden.inputs.events[..., 1]
    assert torch.equal(stars, few.inputs.events[..., 1]) and torch.equal(hidden.inputs.mask, few.inputs.mask)
    for rows in (early, few.test):
        assert torch.equal(hidden.inputs.events[rows], few.inputs.events[rows])
    filled = few.inputs.events[early].where(few.inputs.mask[early].unsqueeze(-1), 1)
    few.inputs.events[early] = filled  # what fills up has not been learned
    assert torch.equal(few.unseen_hidden(held, early).inputs.events[held], hidden.inputs.events[held])
    words = samples.clothing().last(500)
    bag = words.unseen_hidden(words.test, words.train).inputs.bag[words.test]
    new = ~torch.isin(words.inputs.bag[words.test], words.inputs.bag[words.train])
    assert new.any() and torch.equal(bag, words.inputs.bag[words.test].masked_fill(new, data.UNKNOWN))


def test_a_network_of_one_portfolio_knows_what_its_own_rows_have_taught(movielens):
    alone, group = movielens.portfolio(1, 0), movielens.only([(1, 0), (1, 1)])
    own = group.inputs.domain == 1
    for found, test in ((alone, alone.test), (group, group.test[own[group.test]])):
        train = found.train[~found.labels[found.train].isnan().all(1)]
        for now, learned in zip(found.inputs.ids[test].T, found.inputs.ids[train].T, strict=True):
            assert torch.isin(now[now != data.UNKNOWN], learned).all()
        for now, learned in zip(seen_in(found, test), seen_in(found, train), strict=True):
            assert torch.isin(now[now != data.UNKNOWN], learned).all()
    rows = (movielens.inputs.domain == 1).nonzero()[:, 0]
    item = movielens.inputs.ids[rows[alone.cut :], 4]
    assert (alone.inputs.ids[alone.test, 4] != item).any() and (item != data.UNKNOWN).any()
    assert torch.equal(alone.inputs.ids[alone.test], group.inputs.ids[group.test[own[group.test]]])
    assert torch.equal(alone.inputs.ids[: alone.cut], movielens.inputs.ids[rows[: alone.cut]])


def own_data(rows=60, domains=4, tasks=3):
    """What someone else might hold: numbers, no bag to speak of, labels that are partly missing."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(rows, tasks, generator=generator) < 0.5).float()
    labels[::5, 0] = torch.nan
    zeros = torch.zeros(rows, dtype=torch.int64)
    every = data.Rows(
        ids=torch.randint(1, 7, (rows, 2), generator=generator),
        bag=zeros[:, None],
        dense=torch.randn(rows, 3, generator=generator),
        domain=torch.arange(rows) % domains,
        labels=labels,
        times=torch.arange(rows),
        users=zeros,
        items=zeros,
    )
    names = tuple("abcd"[:domains]), tuple("xyz"[:tasks])
    return data.Data("mine", every[:40], every[40:], ("f", "g"), (7, 7), 1, ("p", "q", "r"), *names)


@pytest.mark.parametrize("sources", [0, 2])
def test_any_data_set_becomes_samples_that_a_network_learns(sources):
    found, events = own_data(), None
    if sources:
        ids = torch.randint(0, 5, (60, sources, 3, 2))
        events = samples.Events(ids, torch.rand(60, sources, 3), torch.rand(60, sources, 3) < 0.7, ((5, 5),) * sources)
    mine = samples.of(found, events, id_dropout=(0.1, 0.2))
    assert mine.schema.length == (4 if sources else 1) and mine.cut == 40 and mine.schema.tasks == 3
    if sources:  # none of one's own events gives its place to the token that sequences begin with
        assert torch.equal(mine.inputs.events[:, :, 1:], events.ids) and torch.equal(
            mine.inputs.mask[:, :, 1:], events.mask
        )
    torch.manual_seed(0)
    model = LatticeNetwork(mine.schema, Size(width=8, heads=1))
    losses = list(fit.train(model, model, mine, mine.train, Objective(0.1), batch=20))
    assert len(losses) == 2 and all(loss == loss for loss in losses)
    assert fit.predict(model, mine, mine.test).shape == (20, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: replace(d, cardinalities=(3, 7)), r"ids lie from 0 to below \(3, 7\), got up to \[6, 6\]"),
        (lambda d: replace(d, domains=("a", "b")), "domain lie from 0 to below"),
        (lambda d: replace(d, tasks=("x",)), "names 2 fields, 3 numbers and 1 tasks"),
        (
            lambda d: replace(d, train=replace(d.train, ids=d.train.ids.float())),
            "ids is .* of integers, got torch.float32",
        ),
        (lambda d: replace(d, train=replace(d.train, labels=d.train.labels[:, 0])), "labels is .* of floats"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(change, said):
    with pytest.raises(data.DataError, match=said):
        change(own_data())


def test_what_a_teacher_knew_of_other_rows_is_refused(movielens):
    known = Knowledge(torch.randn(100, 3), torch.randn(100, 2), torch.rand(100) < 0.5)
    with pytest.raises(data.DataError, match="of 100000 rows and 2 tasks, got 100 embeddings"):
        movielens.taught(known)


def test_rows_are_chosen_once_and_in_their_order(movielens):
    few = movielens.last(300)
    third = torch.arange(0, 300, 3)
    mask = torch.zeros(300, dtype=torch.bool)
    mask[third] = True
    for chosen in (few.rows(third), few.rows(mask), few.few(3)):
        assert torch.equal(chosen.labels, few.labels[third]) and chosen.cut == 80 == int((third < few.cut).sum())
    assert len(few.rows(third[:0]).labels) == 0 and few.last(300).cut == few.cut
    for wrong in (third.flip(0), torch.tensor([1, 1]), mask[:-1], third.float(), third[:, None]):
        with pytest.raises(data.DataError, match="rising places of rows, each once, or a mask of 300"):
            few.rows(wrong)
    for wrong in (torch.tensor([-1, 5]), torch.tensor([5, 300])):
        with pytest.raises(data.DataError, match=r"from 0 to below 300, got -1 to 5|got 5 to 300"):
            few.rows(wrong)
    for count in (301, 0, -5):
        with pytest.raises(data.DataError, match=f"expected 1 to 300 rows of movielens, got {count}"):
            few.last(count)
    with pytest.raises(data.DataError, match="one row of 1 or more, got one of 0"):
        few.few(0)


@pytest.mark.parametrize(("domain", "task"), [(3, 0), (-1, 0), (0, 2), (0, -1)])
def test_portfolios_that_are_not_there_are_refused(movielens, domain, task):
    for ask in (movielens.portfolio, lambda *key: movielens.only([key])):
        with pytest.raises(data.DataError, match=f"3 domains and 2 tasks, got domain {domain}, task {task}"):
            ask(domain, task)


def test_names_that_are_not_there_are_refused(movielens):
    with pytest.raises(data.DataError, match="no field usr; it has user"):
        movielens.with_fields(("usr",))
    with pytest.raises(data.DataError, match="there is no 'kuaivideo'; there are movielens, clothing"):
        samples.load("kuaivideo")
