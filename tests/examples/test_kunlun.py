"""Kunlun: that the future and the filling never matter, that it learns, and what it costs."""

import math

import pytest
import torch

from examples import movielens
from examples.kunlun import data, flops
from examples.kunlun.data import CONTEXT, SOURCES, Events
from examples.kunlun.model import Kunlun
from examples.kunlun.scaling import fit, plot, summary
from examples.kunlun.sizes import SIZES, Size, SourceSize, size, without_personalisation
from examples.kunlun.train import learn
from examples.movielens import FIELDS

CARDINALITIES = (5, 4, 3, 4, 9, 6, 5, 7, 7)
GENRES = 4
LIKED = SourceSize(width=16, heads=2, tokens=4, layers=3, seeds=6, keys=8, rank=2)
DISLIKED = SourceSize(width=8, heads=1, tokens=2, layers=2, seeds=4, keys=4, rank=2)
SMALL = Size(12, 3, (LIKED, DISLIKED), summary=4, k=4, hidden=(16,), head=(16,))


@pytest.fixture(scope="module")
def found():
    return data.load()


def small(**changes):
    torch.manual_seed(0)
    return Kunlun(CARDINALITIES, GENRES, SMALL, SOURCES, **changes)


def inputs(batch, lengths=((5, 3, 1), (2, 7, 4)), seed=0, fill=0):
    """Random requests whose histories have these lengths; `fill` more positions at the end that hold nothing."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    ids = torch.stack([draw(c, batch) for c in CARDINALITIES], dim=1)
    genres = torch.rand(batch, GENRES, generator=generator)
    events = []
    for each in lengths:
        known = torch.tensor(each)[torch.arange(batch) % len(each)]
        longest = max(each)
        seconds = (1e5 * torch.rand(batch, longest, generator=generator)).cumsum(1)
        one = Events(
            draw(9, batch, longest),
            draw(6, batch, longest),
            torch.rand(batch, longest, GENRES, generator=generator),
            seconds,
            torch.arange(longest) < known[:, None],
        )
        events.append(Events(*(torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, fill)) for x in one)))
    return ids, genres, tuple(events)


# The data


def test_a_history_is_what_the_same_user_rated_in_earlier_seconds(found):
    ratings = movielens.ratings_by_time()
    users, times = [r["user_id"] for r in ratings], [int(float(r["timestamp"])) for r in ratings]
    item = FIELDS.index("item")
    for row in (0, 1, 777, 40_000, 79_999, 80_000, 99_999):
        for source, liked in enumerate((True, False)):
            past = [
                i
                for i in range(row + 1)
                if users[i] == users[row] and times[i] < times[row] and (float(ratings[i]["rating"]) >= 4) == liked
            ]
            events = found.batch(torch.tensor([row])).events[source]
            valid = events.mask[0]
            assert valid.sum() == min(len(past), data.MAX_LENGTH - 1) + 1
            newest_first = past[::-1][: data.MAX_LENGTH - 1]
            columns = (column[0, valid][1:].tolist() for column in (events.seconds, events.items, events.stars))
            stars = [int(float(rating["rating"])) for rating in ratings]
            expected = [(times[row] - times[i], int(found.ids[i, item]), stars[i]) for i in newest_first]
            assert sorted(zip(*columns, strict=True)) == sorted(expected)


def test_the_request_stands_first_and_knows_no_stars(found):
    batch = found.batch(torch.arange(50_000, 50_064))
    for events in batch.events:
        assert torch.equal(events.items[:, 0], batch.ids[:, FIELDS.index("item")])
        assert not events.stars[:, 0].any() and not events.seconds[:, 0].any() and events.mask[:, 0].all()
        assert (events.seconds.where(events.mask, math.inf).diff(dim=1).nan_to_num(0) >= 0).all()  # newest first
        assert (events.seconds[:, 1:][events.mask[:, 1:]] > 0).all()


def test_no_later_rating_changes_a_batch(found):
    """Whatever is rated from the request's second on, its own stars included, the model's input stays the same."""
    users = torch.tensor([int(rating["user_id"]) for rating in movielens.ratings_by_time()])
    for row in torch.tensor([[500], [40_000], [81_000]]):
        stars = found.stars.where(found.times < found.times[row], 1 + (found.stars + 2) % 5)
        sources = tuple(data.find(users, found.times, chosen) for chosen in (stars >= 4, stars < 4))
        changed = data.Histories(**(vars(found) | {"stars": stars, "sources": sources}))
        later = row + (users[row + 1 :] == users[row]).nonzero()[:1, 0] + 1  # the same user's next: it does change
        for rows, same in ((row, True), (later[found.times[later] > found.times[row]], False)):
            if len(rows):
                before, after = found.batch(rows).inputs[2], changed.batch(rows).inputs[2]
                assert same == all(
                    torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
                )


def test_batches_hold_every_rating_once(found):
    rows = found.train[:5000]
    for shuffle in (False, True):
        batches = list(found.batches(rows, 256, shuffle=shuffle))
        assert sum(len(b.labels) for b in batches) == 5000
        seen = torch.cat([b.ids for b in batches])
        assert torch.equal(seen.sum(0), found.ids[rows].sum(0))
        assert all(e.mask.shape[1] % 8 == 0 for b in batches for e in b.events)


def test_a_batch_can_be_filled_up_and_cut(found):
    rows = torch.arange(60_000, 60_032)
    batch = found.batch(rows, max_length=16, pad_to=40)
    for events, length in zip(batch.events, found.lengths(rows, 16).T, strict=True):
        assert events.items.shape == (32, 40) and torch.equal(events.mask.sum(1), length) and length.max() <= 16


def test_genre_shares():
    shares = data.genre_shares(torch.tensor([[1, 3, 0], [0, 0, 0], [2, 0, 0]]), 4)
    assert shares.tolist() == [[0, 0.5, 0, 0.5], [0, 0, 0, 0], [0, 0, 1, 0]]


# The model


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"gdpa": False}, {"hsp": False}])
def test_one_logit_a_request(batch, changes):
    logits = small(**changes)(*inputs(batch))
    assert logits.shape == (batch,) and logits.isfinite().all()


def test_gradients_reach_every_parameter():
    model = small(dropout=0.0)
    model(*inputs(24)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_fills_up_never_matters():
    model = small().eval()
    plain, filled = inputs(6), inputs(6, fill=5)
    expected = model(*plain)
    torch.testing.assert_close(model(*filled), expected)
    junk = tuple(
        Events(
            e.items.where(e.mask, 8),
            e.stars.where(e.mask, 5),
            e.genres + 9.0 * ~e.mask[..., None],
            e.seconds.where(e.mask, 1e7),
            e.mask,
        )
        for e in filled[2]
    )
    torch.testing.assert_close(model(*filled[:2], junk), expected)


def test_every_event_matters():
    model, (ids, genres, events) = small().eval(), inputs(3)
    expected = model(ids, genres, events)
    for which, source in enumerate(events):
        changed = list(events)
        changed[which] = source._replace(items=(source.items + 1) % 9)
        assert not torch.isclose(model(ids, genres, tuple(changed)), expected, rtol=1e-6, atol=0).any()


def test_requests_do_not_depend_on_their_neighbours():
    model, (ids, genres, events) = small().eval(), inputs(6)
    alone = model(ids[:2], genres[:2], tuple(Events(*(x[:2] for x in e)) for e in events))
    torch.testing.assert_close(alone, model(ids, genres, events)[:2])


def test_layers_are_laid_out_for_schedules():
    layers = small().layers
    assert [name for name, _ in layers[0].named_children()] == ["weight_generation", "sources", "interaction"]
    assert {*layers[1].sources["disliked"]._modules} == {"pffn", "attention", "pool"}
    assert {*layers[2].sources["disliked"]._modules} == {"pool"}  # two layers of its own, and still pooled
    assert {*layers[2].sources["liked"]._modules} == {"pffn", "attention", "pool"}


def test_sizes():
    assert len(SIZES) >= 5
    for of in SIZES.values():
        assert of.layers % 2 == 1 and of.sources[1].width < of.sources[0].width
        assert len(set(without_personalisation(of).sources)) == 1
    assert CONTEXT == 10 and size(64, 3).sources[0].heads == 2


def test_a_few_steps_learn(found):
    torch.manual_seed(0)
    of = SIZES["tiny"]
    model = Kunlun(found.cardinalities, found.genres.shape[1], of, SOURCES)
    losses = list(learn(model, model, found, found.train[:12_000], of.max_length))
    assert not model.training
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.02


# FLOPs and the law


def test_flops_are_those_of_the_products():
    a, b, bias = torch.randn(3, 5), torch.randn(5, 7), torch.randn(7)
    q = torch.randn(2, 4, 6, 8)
    assert flops.count(lambda: a @ b) == flops.count(lambda: torch.addmm(bias, a, b)) == 2 * 3 * 5 * 7
    assert flops.count(lambda: q @ q.mT) == 2 * 2 * 4 * 6 * 6 * 8
    attention = lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert flops.count(attention) == 2 * flops.count(lambda: q @ q.mT)


def test_flops_are_counted_after_the_passes(fresh_dynamo):
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)), torch.randn(16, 6)
    step = lambda call: call(x).sum().backward()  # noqa: E731
    forward = 2 * 16 * (6 * 8 + 8 * 4)
    assert flops.of_graph(model, {}, step) == flops.count(lambda: step(model)) == 2 * forward + 2 * 16 * 8 * 4
    with torch.no_grad():
        assert flops.of_graph(model, {}, lambda call: call(x)) == forward


def test_the_law_is_found(tmp_path):
    c = [1.0, 4.0, 16.0]
    law = fit(c, [0.9 - 0.01 * math.log(each) for each in c])
    assert law["ne_0"] == pytest.approx(0.9) and law["eta"] == pytest.approx(0.01) and law["residual"] < 1e-9
    points = {
        str((skip, each)): {
            "compskip": skip,
            "gflops": each * (0.5 if skip else 1),
            "ne": [0.9 - (0.02 if skip else 0.01) * math.log(each)],
        }
        for skip in (False, True)
        for each in c
    }
    results = summary(points)
    assert results["efficiency"] == pytest.approx(2)
    plot(results, tmp_path / "law.png")
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
