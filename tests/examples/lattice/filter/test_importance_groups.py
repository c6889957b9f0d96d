"""Values are dealt within groups of any size: never a row's own, every other with the same chance, noise measured."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.filter.importance import columns_of, dealt, permutation_importances

WEIGHTS = torch.tensor([[1.5, -1.0], [0.7, 0.2]])
FEATURES = columns_of(("a", "b"), 0)


def predict(x):
    return x @ WEIGHTS


def draw(groups: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return dealt(torch.randperm(len(groups), generator=generator), groups, generator)


def sample(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    return x, (torch.rand(count, 2, generator=generator) < predict(x).sigmoid()).float()


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_each_value_comes_from_every_other_row_of_the_group_with_the_same_chance(size):
    groups = torch.arange(size * 300) % 300  # rows of a group do not lie together
    counts = torch.zeros(size, size)
    for seed in range(20):
        gives = draw(groups, seed)
        assert torch.equal(groups[gives], groups) and torch.equal(gives.sort().values, torch.arange(len(groups)))
        counts.index_put_((torch.arange(len(groups)) // 300, gives // 300), torch.ones(len(groups)), accumulate=True)
    assert counts.diagonal().sum() == 0
    chances = counts[~torch.eye(size, dtype=torch.bool)] / 6000
    assert chances.tolist() == pytest.approx([1 / (size - 1)] * len(chances), abs=0.035)


def test_a_draw_without_fixed_rows_is_as_it_was_drawn():
    """And one with few changes in few places: importances of large groups are what they were, but for 1 / n."""
    groups, generator = torch.zeros(400, dtype=torch.int64), torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = torch.randperm(400, generator=generator)
        found, own = dealt(drawn, groups, generator), int((drawn == torch.arange(400)).sum())
        assert int((found != drawn).sum()) <= 2 * own


@pytest.mark.parametrize("size", [1, 2, 3])
def test_of_a_row_alone_only_its_own_value_is_there(size):
    assert draw(torch.arange(size), 0).tolist() == list(range(size))


@pytest.mark.parametrize("size", [2, 4, 600])
def test_importances_do_not_shrink_in_small_groups(size):
    """Means over samples of 600 rows, in groups that say nothing: 0.19 in pairs and 0.28 in fours, where rows kept
    their own value as often as another's."""
    found = []
    for seed in range(30):
        x, labels = sample(600, seed)
        of = permutation_importances(
            predict, (x,), labels, FEATURES, seed=seed, within=torch.arange(600) % (600 // size)
        )
        found.append(of.mean[0, 0])
    assert float(torch.stack(found).mean()) == pytest.approx(0.379, abs=0.012)


def test_a_row_alone_in_its_group_is_left_out_and_counted():
    x, labels = sample(300, 0)
    within = torch.cat([torch.zeros(200), torch.arange(1, 101)])
    found = permutation_importances(predict, (x,), labels, FEATURES, seed=5, within=within, batch=77)
    unsaid = labels.index_fill(0, torch.arange(200, 300), torch.nan)
    plain = permutation_importances(predict, (x,), unsaid, FEATURES, seed=5, within=within)
    assert found.alone == 100 and permutation_importances(predict, (x,), labels, FEATURES).alone == 0
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.sigma, plain.sigma)
    assert found.mean[0, 0] > 0.2
    nobody = permutation_importances(predict, (x,), labels, FEATURES, within=torch.arange(300))
    assert nobody.alone == 300 and not nobody.mean.any() and bool(nobody.sigma.isinf().all())


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("size", [2, 3, 5, 0])
def test_sigma_is_the_error_of_the_mean_in_groups_of_any_size(size, repeats):
    """0: of sizes from 1 to 24, with labels for the half of the rows."""
    count = 300
    within = torch.arange(count) // size if size else torch.arange(count).float().sqrt().long().mul(2)
    means, sigmas = [], []
    for seed in range(250):
        x, labels = sample(count, seed)
        if not size:
            labels = labels.where(torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) < 0.5, torch.nan)
        found = permutation_importances(predict, (x,), labels, FEATURES, seed=seed, within=within, repeats=repeats)
        means.append(found.mean)
        sigmas.append(found.sigma)
    ratio = torch.stack(sigmas).square().mean(0).sqrt() / torch.stack(means).std(0)
    assert ratio.flatten().tolist() == pytest.approx([1.0] * 4, abs=0.12)
