"""Which model an operand gets, and the self-check: what does not look like what was seen is drawn from real rows."""

import pytest
import sympy
import torch

from loka_compile.probe.models import checked, kind_of
from loka_compile.probe.rows import SAVED, Rows
from loka_compile.probe.statistics import OperandStatistics
from loka_compile.spec.site import Operand, Site


def site(role="output", gradient="", producer="", static=False):
    one = sympy.Integer(1)
    weight = Operand("w", producer)
    return Site("x", "mm", role, one, one, one, one, torch.float32, static_rhs=static, gradient=gradient, rhs=weight)


def test_who_is_what():
    assert [kind_of(site(static=True), side) for side in ("lhs", "rhs")] == ["activation", "weight"]
    assert kind_of(site(producer="placeholder"), "rhs") == "weight"
    assert kind_of(site(producer="relu.default"), "rhs") == "activation"
    backward = site("grad_input", "lhs", "placeholder")
    assert [kind_of(backward, side) for side in ("lhs", "rhs")] == ["gradient", "weight"]
    backward = site("grad_weight", "rhs", "placeholder")
    assert [kind_of(backward, side) for side in ("lhs", "rhs")] == ["activation", "gradient"]


def measure(x, kind="activation"):
    statistics = OperandStatistics(-1, -2, torch.Generator().manual_seed(0), kind)
    for batch in x.split(500):
        statistics.add(batch)
    return statistics.result()


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_normal_activation_is_a_gaussian():
    found = measure(normal(2000, 32) * 3 + 1)
    assert (found.model, found.fallback) == ("gaussian", "")


def test_heavy_tails_are_drawn_from_real_rows():
    """A Gaussian of the same variance never draws the outlier that sets the scale."""
    x = normal(2000, 32)
    x[::50] *= 1000
    found = measure(x)
    assert found.model == "rows"
    assert found.fallback.startswith("the largest of 1024 rows drawn is") and "the largest seen" in found.fallback


def test_a_relus_output_is_drawn_from_real_rows():
    found = measure(normal(2000, 32).relu())
    assert found.model == "rows" and found.fallback.endswith("and no value seen was negative")
    assert found.distribution.draw(500, torch.Generator()).min() >= 0


def test_gradients_and_weights_have_models_of_their_own():
    assert measure(normal(400, 16) * 1e-4, "gradient").model == "gradient"
    assert measure(normal(64, 16), "weight").model == "matrix_normal"


def test_a_model_that_draws_nonsense_is_given_up():
    class Broken:
        features = 2

        def draw(self, count, generator, features=None):
            return torch.full((count, 2), float("nan"))

    model, reason = checked(Broken(), torch.ones(3, 2), 1.0, -1.0, torch.Generator())
    assert isinstance(model, Rows) and reason == "what it draws is not finite"


def test_rows_are_stored_small_and_drawn_in_full_precision():
    rows = normal(500, 8)
    stored = Rows.of(rows)
    assert stored.rows.shape == (SAVED, 8) and stored.rows.dtype == torch.bfloat16
    drawn = stored.draw(1000, torch.Generator().manual_seed(1))
    nearest = (drawn[:, None] - rows[None, :SAVED]).abs().amax(-1).amin(1)
    assert nearest.max() < 0.02  # every draw is a stored row, up to the bits bfloat16 has not
    assert (drawn.bfloat16().float() != drawn).double().mean() > 0.9
    assert stored.draw(5, torch.Generator(), torch.tensor([3])).shape == (5, 1)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="expected some rows"):
        Rows(torch.zeros(0, 4).bfloat16())
