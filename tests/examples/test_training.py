"""Training of any number of steps, and modes: eval when a training ends or is broken off, and while one predicts."""

import pytest
import torch
from torch import nn

from examples.training import RATE, evaluating, fit, one_cycle, predict


def batches(count):
    return (((torch.randn(4, 2),), torch.ones(4, 1)) for _ in range(count))


def rates(total):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([{"params": [weight]}, {"params": []}])
    schedule, found = one_cycle(optimizer, total), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"] / RATE)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("total", [1, 2, 5, 9, 10, 11, 20, 100])
def test_every_number_of_steps_is_trained(total):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    assert len(list(fit(model, batches(total), model, total))) == total
    assert (model.weight - before).abs().max() > 1e-4  # Adam's first step is as long as the rate


def test_rates_of_few_steps_begin_at_the_top_and_fall():
    assert rates(1)[0] > 0.5
    for total in (9, 10):
        found = rates(total)
        assert found[0] > 0.99 and found == sorted(found, reverse=True)
    assert rates(11)[0] < 0.05 and rates(11)[1] > 0.95  # from here on there is a rise


def test_a_training_that_is_broken_off_leaves_eval_mode():
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    losses = fit(model, batches(5), model, 5)
    next(losses)
    assert model.training
    losses.close()
    assert not model.training and not model[1].training


def test_predictions_are_made_in_eval_mode_and_modes_come_back():
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5), nn.Dropout(0.5)).train()
    model[2].eval()
    x = torch.randn(6, 2)
    assert torch.equal(predict(model, [(x,)]), model[0](x)) and model.training
    assert [each.training for each in model] == [True, True, False]
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(RuntimeError), evaluating(compiled):
        assert not model.training and not model[1].training and torch.equal(compiled(x), model[0](x))
        raise RuntimeError
    assert [each.training for each in (compiled, *model)] == [True, True, True, False]
    with evaluating(lambda: None):  # has no mode
        pass
