"""Calls that nothing is learned from: op by op while they are few, compiled without a plan once they are many."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import loka_compile as loka
from loka_compile import compat
from loka_compile.online.calls import QUIET
from tests.online.calls import compiled_with, lowered, mlp, off

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "op_by_op", "home")]


@pytest.fixture
def compilations(op_by_op, monkeypatch):
    """How often code was generated."""
    made, honest = [], compat.compile_inductor
    monkeypatch.setattr(compat, "compile_inductor", lambda *args, **more: made.append(1) or honest(*args, **more))
    return made


@torch.no_grad()
def test_constant_numbers_for_good_are_compiled_and_later_ones_are_learned_from(compilations):
    model, ones = mlp(), torch.ones(64, 32)
    compiled = compiled_with(model)
    for call in range(QUIET + 6):
        assert torch.equal(compiled(ones), model(ones))
        assert len(compilations) == (call >= QUIET)  # once, and it lowers nothing
    said = str(loka.explain(compiled))
    assert f"0 of 3 calls measured, then a plan is made; {QUIET + 6} others told nothing" in said
    x = torch.randn(64, 32)
    for _ in range(4):
        out = compiled(x)
    assert lowered(compiled) == 2 and 0 < off(out, model(x)) < 0.05
    assert "told nothing" not in str(loka.explain(compiled))


@torch.no_grad()
def test_other_sizes_are_compiled_too(compilations):
    model = mlp()
    compiled = compiled_with(model, dynamic=False)
    for rows in (64, 16) * (QUIET + 2):
        x = torch.full((rows, 32), 0.5)
        assert torch.equal(compiled(x), model(x))
    assert len(compilations) == 2


class OfIds(nn.Module):
    """Ids, and a mask of floats that lets everything through."""

    def __init__(self):
        super().__init__()
        self.table, self.net = nn.Embedding(50, 32), mlp()

    def forward(self, ids, mask):
        return self.net((self.table(ids) * mask.unsqueeze(-1)).sum(1))


@torch.no_grad()
def test_ids_tell_enough_where_numbers_never_change():
    torch.manual_seed(0)
    model = OfIds()
    compiled, of = compiled_with(model), (torch.randint(50, (64, 5)), torch.ones(64, 5))
    for _ in range(4):
        out = compiled(*of)
    assert lowered(compiled) == 2 and 0 < off(out, model(*of)) < 0.05


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_training_on_constant_numbers_has_its_gradients(compilations, reentrant):
    model, x = mlp(), torch.ones(64, 32, requires_grad=True)
    compiled = compiled_with(model)
    for _ in range(QUIET + 4):
        wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
        model.zero_grad()
        x.grad = None
        out = compiled(x) if reentrant is None else checkpoint(compiled, x, use_reentrant=reentrant)
        out.square().sum().backward()
        for expected, tensor in zip(wanted, (x, *model.parameters()), strict=True):
            torch.testing.assert_close(tensor.grad, expected)
    assert len(compilations) >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@torch.no_grad()
def test_a_forked_process_compiles_what_its_parent_had_not(compilations):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and the child would wait for them
    model, x = mlp(), torch.randn(64, 32)
    compiled = compiled_with(model)
    compiled(x)
    child = os.fork()
    if child == 0:  # no assertion leaves this branch
        right = all(torch.equal(compiled(x), model(x)) for _ in range(QUIET + 3))
        told = "of a forked process" in str(loka.explain(compiled))
        os._exit(0 if right and told and len(compilations) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for _ in range(3):
        compiled(x)
    assert lowered(compiled) == 2
