"""Importances: those of the definition, whatever the calls' size; noise is measured; a compiled model gives the
same."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.apart import APART
from examples.lattice.filter.importance import Feature, columns_of, dealt, permutation_importances

COUNT = 400


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(COUNT, 4, generator=generator)
    ids = torch.randint(3, (COUNT, 2), generator=generator)
    table = torch.tensor([-2.0, 0.0, 2.0])

    def predict(dense, ids):
        return torch.stack([3 * dense[:, 0] + dense[:, 1], table[ids[:, 0]] + dense[:, 1]], dim=1)

    labels = torch.rand(COUNT, 2, generator=generator).lt(predict(dense, ids).sigmoid()).float()
    features = (*columns_of(("a", "b", "c", "d"), 0), Feature("id", 1, (0,)), Feature("both ids", 1))
    return predict, (dense, ids), labels, features


def slowly(predict, inputs, labels, features, repeats, seed):
    """One call a feature and repeat."""
    generator = torch.Generator().manual_seed(seed)
    permutations = [torch.randperm(COUNT, generator=generator) for _ in range(repeats)]
    permutations = [dealt(order, torch.zeros(COUNT, dtype=torch.int64), generator) for order in permutations]
    known = ~labels.isnan()

    def loss(*inputs):
        each = binary_cross_entropy_with_logits(
            predict(*inputs).double(), labels.nan_to_num().double(), reduction="none"
        )
        return torch.stack([each[known[:, task], task].mean() for task in range(labels.shape[1])])

    found = []
    for feature in features:
        rises = []
        for order in permutations:
            mixed = [column.clone() for column in inputs]
            columns = list(feature.columns) or list(range(inputs[feature.input].shape[1]))
            mixed[feature.input][:, columns] = inputs[feature.input][order][:, columns]
            rises.append(loss(*mixed) - loss(*inputs))
        found.append(torch.stack(rises).mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("batch", [1, 64, 399, 400, 401, 1000, 10**5])
def test_importances_are_those_of_one_feature_at_a_time(problem, batch):
    predict, inputs, labels, features = problem
    if batch == 1:
        inputs, labels, features = tuple(x[:400] for x in inputs), labels, features[:1]
    found = permutation_importances(predict, inputs, labels, features, repeats=2, batch=batch, seed=3)
    torch.testing.assert_close(found.mean, slowly(predict, inputs, labels, features, 2, 3))


def test_rows_of_other_domains_do_not_count(problem):
    predict, inputs, labels, features = problem
    labels = labels.clone()
    labels[::2, 0], labels[::3, 1] = torch.nan, torch.nan
    found = permutation_importances(predict, inputs, labels, features, repeats=1, batch=777)
    torch.testing.assert_close(found.mean, slowly(predict, inputs, labels, features, 1, 0))


def test_what_matters_stands_out_of_the_noise(problem):
    predict, inputs, labels, features = problem
    found = permutation_importances(predict, inputs, labels, features, repeats=3)
    matters = found.mean > 4 * found.sigma
    names = {feature.name: matters[place].tolist() for place, feature in enumerate(features)}
    assert names == {
        "a": [True, False],
        "b": [True, True],
        "c": [False, False],
        "d": [False, False],
        "id": [False, True],
        "both ids": [False, True],
    }
    assert found.mean[2].tolist() == [0, 0] and found.sigma[2].tolist() == [0, 0]


@pytest.mark.parametrize("repeats", [1, 2, 8])
@pytest.mark.parametrize("task, share", [(0, 1.0), (1, 0.5)])
def test_sigma_is_the_error_of_the_mean(problem, repeats, task, share):
    """Over samples of rows, the importances scatter as sigma says: by their labels and by the values that they give."""
    predict, _, _, features = problem
    means, sigmas = [], []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        dense = torch.randn(COUNT, 4, generator=generator)
        ids = torch.randint(3, (COUNT, 2), generator=generator)
        labels = torch.rand(COUNT, 2, generator=generator).lt(predict(dense, ids).sigmoid()).float()
        labels[torch.rand(COUNT, generator=generator) >= share] = torch.nan
        of = features[1:2] if task else features[:1]
        found = permutation_importances(predict, (dense, ids), labels, of, seed=seed, repeats=repeats)
        means.append(found.mean[0, task])
        sigmas.append(found.sigma[0, task])
    assert torch.stack(sigmas).mean() == pytest.approx(torch.stack(means).std(), rel=0.25)


def test_of_one_row_nothing_is_certain(problem):
    predict, inputs, labels, features = problem
    labels = labels.clone()
    labels[1:, 0] = torch.nan
    found = permutation_importances(predict, inputs, labels, features)
    assert found.sigma[:, 0].isinf().all() and found.sigma[:, 1].isfinite().all()


@pytest.mark.parametrize("repeats", [1, 3])
def test_values_are_dealt_within_a_group_alone(problem, repeats):
    """A feature that says nothing but the group has no importance there, and much where values cross."""
    _, _, _, features = problem
    group = torch.arange(COUNT) % 3
    inputs = (torch.stack([group.float() - 1, torch.randn(COUNT)], dim=1),)
    predict = lambda dense: 3 * dense[:, :1] + dense[:, 1:]  # noqa: E731
    labels = predict(*inputs).gt(0).float()
    own = permutation_importances(predict, inputs, labels, features[:2], repeats=repeats, within=group)
    crossed = permutation_importances(predict, inputs, labels, features[:2], repeats=repeats)
    assert own.mean[0] == 0 and own.mean[1] > 0.01 and crossed.mean[0] > 0.3


@pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
def test_a_model_under_loka_sees_one_shape(problem):
    _, inputs, labels, features = problem
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    shapes = []

    def seen(*inputs):
        shapes.append(inputs[0].shape)
        return compiled(*inputs)

    compiled = torch.compile(model, backend="loka", options={"recipes": ()}, **APART)
    under = permutation_importances(seen, inputs[:1], labels, features[:4], batch=256)
    plain = permutation_importances(model, inputs[:1], labels, features[:4], batch=256)
    torch.testing.assert_close(under.mean, plain.mean, atol=1e-6, rtol=1e-4)
    assert set(shapes) == {(256, 4)}


def test_nothing_to_do_is_refused(problem):
    predict, inputs, labels, _ = problem
    with pytest.raises(ValueError, match="got 400 rows, 0 features and 1"):
        permutation_importances(predict, inputs, labels, ())
