"""BST, SASRec, DIN and PLE: their formulas, gradients, and that they infer and train under a plan within budgets."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import loka_compile as loka
from examples.models.bst import BST
from examples.models.din import DIN
from examples.models.ple import PLE
from examples.models.sasrec import SASRec
from loka_compile.trial.gradients import gradient_error

COUNT, LENGTH, ROWS = 40, 6, 256
MODELS = {
    "bst": lambda: BST(COUNT, LENGTH, 3, width=16, heads=2, hidden=(32, 16), dropout=0.0),
    "sasrec": lambda: SASRec(COUNT, LENGTH, width=16, dropout=0.0),
    "din": lambda: DIN(COUNT, 3, width=16, fit=(16, 8), hidden=(32, 16), dropout=0.0),
    "ple": lambda: PLE((7, 5), 4, width=8, expert=(24, 16), tower=(12,), dropout=0.0),
}
every_model = pytest.mark.parametrize("name", MODELS)
SLOW = ("sasrec", "ple")
"""To train."""
OPTIONS = {"target": "h100", "min_speedup": 0, "race": False, "recipes": ("int8_rowwise",), "max_probe_overhead": 0}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]()


def batch(name, seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    lengths = 1 + draw(LENGTH, rows, 1)
    history = (1 + draw(COUNT - 1, rows, LENGTH)) * (torch.arange(LENGTH) < lengths)
    return {
        "bst": (history, 1 + draw(COUNT - 1, rows), torch.randn(rows, 3, generator=generator)),
        "sasrec": (history, 1 + draw(COUNT - 1, rows, LENGTH, 4)),
        "din": (history, 1 + draw(COUNT - 1, rows), torch.randn(rows, 3, generator=generator)),
        "ple": (torch.stack([draw(7, rows), draw(5, rows)], dim=1), draw(4, rows, 3)),
    }[name]


def gradients(model, call, inputs):
    model.zero_grad()
    logits = call(*inputs)
    binary_cross_entropy_with_logits(
        logits, (torch.arange(len(logits)) % 3 == 0).float().expand(logits.T.shape).T
    ).backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@every_model
@pytest.mark.parametrize("rows", [1, 5])
def test_logits(name, rows):
    logits = made(name)(*batch(name, rows=rows))
    shape = {"sasrec": (rows, LENGTH, 4), "ple": (rows, 2)}.get(name, (rows,))
    assert logits.shape == shape and logits.isfinite().all()


@every_model
def test_gradients_reach_every_parameter(name):
    model = made(name)
    _, found = gradients(model, model, batch(name))
    assert all(gradient.abs().sum() > 0 for gradient in found)


@every_model
def test_rows_do_not_depend_on_their_neighbours(name):
    model, inputs = made(name).eval(), batch(name, rows=5)
    torch.testing.assert_close(model(*inputs)[:2], model(*(each[:2] for each in inputs)))


def test_a_state_does_not_know_what_comes_later():
    model, (history, _) = made("sasrec").eval(), batch("sasrec")
    changed = history.clone()
    changed[:, 3:] = 1
    states = [model.states(each)[:, :3] for each in (history, changed)]
    torch.testing.assert_close(*states)


def test_what_is_no_item_has_no_weight():
    model, (history, target, dense) = made("din").eval(), batch("din")
    longer = torch.cat([history, torch.zeros(len(history), 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(longer, target, dense), model(history, target, dense))


def test_the_target_is_read_with_the_history():
    model, (history, target, dense) = made("bst").eval(), batch("bst")
    assert not torch.allclose(model(history, target, dense), model(history, 1 + target % (COUNT - 1), dense))


def test_a_task_reads_its_own_experts_and_the_shared_ones():
    model, inputs = made("ple"), batch("ple")
    model(*inputs)[:, 0].sum().backward()
    last = model.layers[-1]
    size = lambda module: module.weight.grad.abs().sum()  # noqa: E731
    assert size(last.own[1][0][0][0]) == size(model.towers[1][0]) == 0
    assert size(last.own[0][0][0][0]) > 0 and size(last.shared[0][0][0]) > 0


@every_model
def test_inference_under_a_plan(name, fresh_dynamo, op_by_op, tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model = made(name).eval()
    compiled = torch.compile(model, backend="loka", options=OPTIONS)
    with torch.no_grad():
        for seed in range(5):
            out, wanted = compiled(*batch(name, seed)), model(*batch(name, seed))
    assert loka.plan(compiled).lowered and not torch.equal(out, wanted)
    assert (out - wanted).norm() < 0.06 * wanted.norm()


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in MODELS])
def test_training_under_a_plan(name, fresh_dynamo, op_by_op, tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model = made(name)
    compiled = torch.compile(model, backend="loka", options=OPTIONS)
    for seed in range(5):
        out, found = gradients(model, compiled, batch(name, seed))
        wanted, right = gradients(model, model, batch(name, seed))
    assert loka.plan(compiled).lowered and not torch.equal(out, wanted)
    assert (out - wanted).norm() < 0.06 * wanted.norm() and gradient_error(found, right) < 0.15
