"""Training learns what can be learned, its FLOPs are those of one domain's copy."""

from dataclasses import replace

import pytest
import torch

from examples.lattice.data import Data, Rows
from examples.lattice.networks import fit, samples
from examples.lattice.networks.baselines import baseline
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.model import LatticeNetwork
from tests.examples.lattice.networks.small import SCHEMA, SIZE, network, toy


def test_training_learns_and_ends_in_eval_mode():
    found = toy(1500, 1000)  # of fewer rows what is learned depends on the seed
    model = network()
    losses = list(fit.train(model, model, found, found.train, Objective(0.1), epochs=20, batch=100))
    assert len(losses) == fit.steps(1000, 20, 100) == 200 and not model.training
    scores = fit.judge(found, found.test, fit.predict(model, found, found.test, 128))
    assert {*scores} == {f"{d}: {t}" for d in "xyz" for t in ("one", "two")}
    assert min(each["auc"] for each in scores.values()) > 0.8 and losses[-1] < losses[0] - 0.1


def test_steps_are_taken_as_they_are_said():
    found, model = toy(60), network()
    for total in (1, 7):  # five an epoch
        assert len(list(fit.train(model, model, found, found.train[:50], Objective(), batch=10, total=total))) == total


def test_untied_copies_cost_parameters_and_no_flops():
    tied, untied = (LatticeNetwork(SCHEMA, replace(SIZE, untied=of, towers=bool(of))) for of in ((), (0, 1, 2)))
    found = toy(20)
    assert fit.flops_of(tied, found) == fit.flops_of(untied, found)
    assert fit.parameters(tied)[0] == fit.parameters(untied)[0]  # tables
    assert fit.parameters(tied)[1] < fit.parameters(untied)[1]
    assert sum(fit.parameters(tied)) == sum(p.numel() for p in tied.parameters())


def test_rows_of_nobody_are_not_judged():
    found = toy(100, 40)
    assert not fit.judge(found, found.test, torch.zeros(60, 2))  # some 20 rows a domain


def test_a_training_that_was_broken_off_does_not_change_what_is_predicted():
    found = toy()
    found = replace(found, schema=replace(SCHEMA, id_dropout=(0.5, 0.5, 0.5)))
    model = network(schema=found.schema)
    losses = fit.train(model, model, found, found.train, Objective(), batch=100)
    next(losses)
    assert model.training
    once, again = (fit.predict(model, found, found.test) for _ in range(2))
    assert torch.equal(once, again) and model.training and next(losses) > 0


def test_ten_steps_are_trained():
    found = toy()
    model = network()
    assert len(list(fit.train(model, model, found, found.train, Objective(), batch=30))) == 10


def test_flops_of_few_rows_are_those_of_many():
    few, many = toy(1, 1), toy(20)
    assert fit.flops_of(network(), few) == fit.flops_of(network(), many)
    assert fit.flops_of(baseline("DLRM", few, 8, 12), few) == fit.flops_of(baseline("DLRM", many, 8, 12), many)


@pytest.mark.parametrize("count", [1, 3])
def test_a_label_that_the_size_of_numbers_decides_is_learned(count):
    torch.manual_seed(0)
    x, zeros = torch.randn(4000, count), torch.zeros(4000, dtype=torch.int64)
    size = x.norm(dim=1)
    labels = (size > size.median()).float()[:, None]
    rows = Rows(zeros[:, None], zeros[:, None], x, zeros, labels, torch.arange(4000), zeros, zeros)
    data = Data("sizes", rows[:3000], rows[3000:], ("f",), (2,), 1, tuple("xyz"[:count]), ("all",), ("large",))
    found = samples.of(data)
    model = LatticeNetwork(found.schema, replace(SIZE, layers=1, untied=()))
    for _ in fit.train(model, model, found, found.train, Objective(), epochs=8, batch=64):
        pass
    assert fit.judge(found, found.test, fit.predict(model, found, found.test))["all: large"]["auc"] > 0.95
