"""Probed calls that do not go through forward: methods that train and serve, functions, another object's methods."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.probe.session import ProbeError
from tests.probe.small import Mlp

pytestmark = pytest.mark.usefixtures("seeded")


class Recommender(nn.Module):
    """Trained by one method and served by another, as RecBole's models are; it has no forward."""

    def __init__(self):
        super().__init__()
        self.tower = Mlp()

    def calculate_loss(self, x):
        return self.tower(x).square().mean()

    def predict(self, x):
        return self.tower(x).sigmoid()


SITES = {f"tower.{layer}#0:{role}" for layer in ("first", "second") for role in ("output", "grad_weight")}
SITES |= {"tower.second#0:grad_input"}


def test_a_method_is_measured_whoever_calls_it():
    model, x = Recommender(), torch.randn(24, 12)
    expected = model.calculate_loss(x)

    def train():
        loss = model.calculate_loss(x)
        loss.backward()
        return loss

    with loka.probe(model, call=model.calculate_loss) as probe:
        assert torch.equal(train(), expected) and torch.equal(probe.call(x), expected)
    assert probe.calls == 2 and set(probe.profile.sites) == SITES
    assert "calculate_loss" not in vars(model) and torch.equal(model.calculate_loss(x), expected)
    assert probe.call == model.calculate_loss


def test_a_profile_of_a_method_is_known_where_that_is_compiled(op_by_op):
    model, x = Recommender(), torch.randn(24, 12)
    with loka.probe(model, call=model.predict) as probe, torch.no_grad():
        model.predict(x)
    options = {"profile": probe.profile, "min_speedup": 0, "recipes": ("int8_rowwise",), "race": False}
    compiled = torch.compile(model.predict, backend="loka", options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(x)
    assert {row.key: row.recipe for row in loka.explain(compiled).found} == {
        "tower.first#0:output": "int8_rowwise",
        "tower.second#0:output": "int8_rowwise",
    }


def test_a_function_and_another_objects_method_are_measured():
    class Trainer:
        def __init__(self, model):
            self.model = model

        def step(self, x):
            return self.model.calculate_loss(x)

    model, x = Recommender(), torch.randn(24, 12)
    trainer = Trainer(model)
    for call in (lambda x: model.calculate_loss(x), trainer.step):
        with loka.probe(model, call=call) as probe:
            probe.call(x).backward()
        assert len(probe.profile.sites) == len(SITES) and probe.call is not None
    with loka.probe(model, call=trainer.step) as probe:
        trainer.step(x)
    assert probe.calls == 1 and vars(trainer) == {"model": model}


def test_a_method_that_the_object_itself_holds_is_put_back():
    model, x = Recommender(), torch.randn(24, 12)
    own = model.score = torch.compiler.disable(model.predict)
    model.predict = model.predict
    mine = model.predict
    with loka.probe(model, call=model.predict) as probe:
        model.predict(x)
    assert model.predict is mine and model.score is own and probe.calls == 1


def test_what_is_no_call_of_a_model_is_refused():
    for wrong in ("calculate_loss", Mlp()):
        with pytest.raises(TypeError, match="call is a method or a function that runs the model"):
            loka.probe(Recommender(), call=wrong)
    model = Recommender()
    with loka.probe(model) as probe:
        model.calculate_loss(torch.randn(24, 12))
    with pytest.raises(ProbeError, match=r"loka.probe\(model, call=model.calculate_loss\)"):
        _ = probe.profile
