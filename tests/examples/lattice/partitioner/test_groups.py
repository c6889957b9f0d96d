"""Models of groups: sizes within their budgets, losses of their own rows, and conflicts that gradients show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.lattice.data import Data, DataError, Rows
from examples.lattice.partitioner import groups
from examples.lattice.partitioner.describe import agreement, jaccard
from examples.lattice.partitioner.groups import Key
from examples.movielens import UNKNOWN


def opposed(count: int = 2000, by: int = 0) -> Data:
    """Three domains: what the first two like the third dislikes, or, by=1, judges by another feature."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (count, 2), generator=generator)
    domain = torch.randint(3, (count,), generator=generator)
    likes = (ids.gather(1, by * (domain == 2).long()[:, None])[:, 0] <= 4) ^ (domain == 2)
    labels = (torch.rand(count, generator=generator) < 0.1 + 0.8 * likes).float()[:, None]
    zeros = torch.zeros(count, dtype=torch.int64)
    rows = Rows(ids, zeros[:, None], torch.zeros(count, 0), domain, labels, zeros, zeros, ids[:, 0])
    cut = count * 3 // 4
    return Data("opposed", rows[:cut], rows[cut:], ("a", "b"), (9, 9), 1, (), ("x", "y", "z"), ("liked",))


@pytest.mark.parametrize("flops", [2_000.0, 30_000.0, 500_000.0])
@pytest.mark.parametrize("heads", [1, 6])
def test_a_backbone_fits_its_flops_and_one_wider_does_not(flops, heads):
    found = opposed(8)
    hidden = groups.hidden_for(found, flops, heads)
    assert groups.flops_of(found, hidden, heads) <= flops < groups.flops_of(found, hidden + 1, heads)


def test_a_loss_counts_each_portfolios_own_rows():
    found = opposed(200)
    keys = groups.keys_of(found)
    assert [groups.name_of(found, key) for key in keys] == ["x: liked", "y: liked", "z: liked"]
    model = groups.Shared(found, 3, 8)
    rows, logits = found.train, model(*found.train.inputs)
    own = logits.gather(1, rows.domain[:, None]).squeeze(1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(own, rows.labels[:, 0])
    torch.testing.assert_close(groups.loss_of(model, rows, keys), expected)


def test_gradients_of_portfolios_that_want_other_features_have_nothing_in_common():
    found = opposed(8_000, by=1)
    x, y, z = (each.gradient for each in groups.describe(found, groups.keys_of(found), 30_000.0, [0.0], 0))
    assert agreement(x, y) > max(agreement(x, z), agreement(y, z)) + 0.4


def test_folds_are_of_rows_so_that_a_domains_tasks_share_none_between_different_folds(monkeypatch):
    found, seen = opposed(400), {}

    def note(model, rows, place, key):
        seen.setdefault(place, []).append({tuple(row) for row in rows.ids.tolist()})
        return model(*rows.inputs).sum()

    ids = torch.arange(400).unsqueeze(1).expand(-1, 2)  # each row names itself
    parts = [replace(part, ids=of) for part, of in zip((found.train, found.test), ids.split((300, 100)), strict=True)]
    parts = [replace(part, labels=part.labels.expand(-1, 2)) for part in parts]
    found = replace(found, train=parts[0], test=parts[1], cardinalities=(400, 400), tasks=("liked", "again"))
    monkeypatch.setattr(groups, "_calibrated_loss", note)
    groups.describe(found, [Key(0, 0), Key(0, 1)], 5_000.0, [0.0, 0.0], 0)
    rows = {
        place: [set().union(*each[fold :: groups.FOLDS]) for fold in range(groups.FOLDS)]
        for place, each in seen.items()
    }
    for one in range(groups.FOLDS):
        for other in range(groups.FOLDS):
            assert bool(rows[0][one] & rows[1][other]) == (one == other)


def test_groups_are_judged_on_their_own_rows():
    found = opposed()
    keys = groups.keys_of(found)
    scores = groups.evaluate(found, keys, [(0, 1), (2,)], [20_000.0, 10_000.0], 0, 15)
    assert set(scores) == set(keys) and min(scores.values()) > 0.8


def test_portfolios_count_their_ids_and_positives():
    found = opposed(400)
    each = groups.describe(found, [Key(0, 0)], 5_000.0, [60.0], 0)[0]
    own = found.train[found.train.domain == 0]
    assert each.items.get_estimate() == len(own.items.unique()) and each.delay == 60
    assert each.revenue == float(own.labels.sum()) and each.flops == 5_000


def test_a_portfolio_without_two_rows_agrees_with_nothing():
    found = opposed(400)
    few = found.train[
        (found.train.domain != 2) | (torch.arange(len(found.train)) == int((found.train.domain == 2).int().argmax()))
    ]
    x, y, z = groups.describe(replace(found, train=few), groups.keys_of(found), 5_000.0, [0.0], 0)
    assert not z.gradient.any() and agreement(x.gradient, z.gradient) == 0 and x.gradient.any() and y.gradient.any()


def test_labels_that_are_not_there_count_nowhere():
    found = opposed(400)
    holes = found.train.labels.clone()
    holes[::3] = torch.nan
    found = replace(found, train=replace(found.train, labels=holes))
    keys = groups.keys_of(found)
    each = groups.describe(found, keys, 5_000.0, [0.0], 0)
    assert all(p.gradient.isfinite().all() for p in each)
    own = found.train.labels[found.train.domain == 1]
    assert each[1].revenue == float(own[~own.isnan()].sum())
    assert groups.loss_of(groups.Shared(found, 3, 8), found.train[:0], keys).item() == 0


def test_what_a_group_has_not_learned_is_unknown_to_its_model():
    found = opposed(400)
    ids = found.train.ids.where(found.train.domain[:, None] == 0, found.train.ids.clamp(max=4))
    found = replace(found, train=replace(found.train, ids=ids))  # the second domain's rows have no id above 4
    model = groups.Shared(found, 1, 8)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    groups.judge(found, model, [Key(1, 0)])
    test = found.test.ids
    assert torch.equal(seen[0], test.where(test <= 4, UNKNOWN)) and bool((test > 4).any())
    groups.judge(found, model, [Key(0, 0)])
    assert torch.equal(seen[1], test)


def test_what_cannot_be_judged_is_named():
    found = opposed(400)
    test = found.test[found.test.domain != 1]
    keys = groups.keys_of(found)
    with pytest.raises(DataError, match="y: liked has 0 test rows"):
        groups.judge(replace(found, test=test), groups.Shared(found, 3, 8), keys)


def taken(monkeypatch, found, keys, longer, grouped=((0, 1, 2), (0,))):
    """Steps that each group's model takes."""
    counts = []
    honest, loss = groups.fit, groups.loss_of
    monkeypatch.setattr(groups, "fit", lambda *of, **more: counts.append(0) or honest(*of, **more))

    def count(*of):
        counts[-1] += 1
        return loss(*of)

    monkeypatch.setattr(groups, "loss_of", count)
    groups.evaluate(found, keys, grouped, [9_000.0] * len(grouped), 0, 2, longer)
    monkeypatch.undo()
    return counts


def test_models_of_few_rows_can_take_as_many_steps(monkeypatch):
    found = opposed()
    keys = groups.keys_of(found)
    own = int((found.train.domain == 0).sum())
    assert taken(monkeypatch, found, keys, False) == [2 * 6, 2 * -(-own // groups.BATCH)]
    assert taken(monkeypatch, found, keys, True) == [12, 12]


def test_rows_without_a_label_are_no_steps(monkeypatch):
    found = opposed()
    labels = found.train.labels.clone()
    labels[(found.train.domain == 0) & (torch.arange(1500) % 8 > 0)] = torch.nan
    found = replace(found, train=replace(found.train, labels=labels))
    all_rows = -(-int((~labels.isnan()).sum()) // groups.BATCH)
    keys = groups.keys_of(found)
    assert taken(monkeypatch, found, keys, False) == [2 * all_rows, 2]
    assert taken(monkeypatch, found, keys, True) == [2 * all_rows] * 2


def test_what_looks_is_shown_as_many_moments_as_are_said():
    found = opposed()
    for epochs, moments in ((1, 6), (8, 25)):  # a training of 6 steps has no more
        seen = []
        groups.fit(found, groups.keys_of(found), 4, 0, epochs, seen.append)
        assert len(seen) == moments


def test_users_and_items_are_those_of_rows_that_say_something():
    found = opposed(2000)
    half = torch.arange(1500) % 2
    labels = found.train.labels.expand(-1, 2).clone()
    labels[half == 0, 1], labels[half == 1, 0] = torch.nan, torch.nan
    users, items = torch.randint(500, (2, 1500)) + half * 10_000
    train = replace(found.train, labels=labels, users=users, items=items)
    found = replace(found, train=train, test=replace(found.test, labels=labels[:500]), tasks=("a", "b"))
    a, b = groups.describe(found, [Key(0, 0), Key(0, 1)], 5_000.0, [0.0, 0.0], 0)
    assert jaccard(a.users, b.users)[1] == jaccard(a.items, b.items)[1] == 0
    own = users[(found.train.domain == 0) & (half == 0)]
    assert a.users.get_estimate() == len(own.unique())


def test_numbers_are_read():
    """A data set of numbers alone: what decides is in them."""
    found = opposed()
    dense = found.train.ids[:, :1].float() - 4.5, found.test.ids[:, :1].float() - 4.5
    blank = [
        replace(part, ids=part.ids * 0, dense=of) for part, of in zip((found.train, found.test), dense, strict=True)
    ]
    found = replace(found, train=blank[0], test=blank[1], numbers=("taste",))
    keys = groups.keys_of(found)
    scores = groups.evaluate(found, keys, [(0, 1), (2,)], [20_000.0, 10_000.0], 0, 15)
    assert min(scores.values()) > 0.8
    assert groups.flops_of(found, 8, 1) == 2 * ((3 * groups.WIDTH + 1) * 8 + 8 * 8 + 8)
