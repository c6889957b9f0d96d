"""The correlation loss against numpy's coefficient, its guard, and what unknown labels and misses count."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.ktap.record import Knowledge
from examples.lattice.ktap.student import Use
from examples.lattice.ktap.student import loss as of_the_student
from examples.lattice.networks.loss import Objective, Soft, Target, correlation_loss


def draw(rows=50, tasks=2):
    torch.manual_seed(0)
    return torch.randn(rows, tasks, dtype=torch.float64), torch.randint(2, (rows, tasks)).double()


def test_correlation_loss_is_one_less_the_coefficient():
    p, y = draw()
    expected = [1 - np.corrcoef(p[:, t], y[:, t])[0, 1] for t in range(2)]
    np.testing.assert_allclose(correlation_loss(p, y), expected, atol=1e-5)
    known = torch.rand(50, 2) < 0.5
    expected = [1 - np.corrcoef(p[known[:, t], t], y[known[:, t], t])[0, 1] for t in range(2)]
    np.testing.assert_allclose(correlation_loss(p, y, known), expected, atol=1e-5)


def test_labels_of_one_kind_give_no_nan_and_no_gradient():
    p = torch.rand(8, 1, requires_grad=True)
    for y, known in ((torch.ones(8, 1), None), (torch.ones(8, 1), torch.zeros(8, 1, dtype=torch.bool))):
        found = correlation_loss(p, y, known)
        (gradient,) = torch.autograd.grad(found.sum(), p)
        assert found.item() == pytest.approx(1) and not gradient.any()
    constant = torch.full((8, 1), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(correlation_loss(constant, torch.tensor([[0.0], [1.0]] * 4)).sum(), constant)
    assert gradient.isfinite().all() and (gradient[1::2] < 0).all()  # positives should rise


def test_unknown_labels_do_not_count():
    z, y = draw()
    partly = y.clone()
    partly[:20, 0] = torch.nan
    each = binary_cross_entropy_with_logits(z, y, reduction="none")
    torch.testing.assert_close(Objective()(z, Target(partly)), torch.cat([each[20:, 0], each[:, 1]]).mean())
    assert Objective(correlation=0.3)(z, Target(torch.full_like(y, torch.nan))).isfinite()


def test_soft_labels_are_those_of_ktap():
    z, y = draw()
    known = Knowledge(torch.zeros(50, 3), torch.randn(50, 2).double(), torch.rand(50) < 0.5)
    use = Use(weight=0.7, smooth=0.1)
    soft = Objective(soft=Soft(0.7, 0.1))
    torch.testing.assert_close(soft(z, Target(y, known)), of_the_student(z, y, known, use))
    assert soft(z, Target(y)) == Objective()(z, Target(y)) == Objective()(z, Target(y, known))


def test_tasks_without_labels_do_not_thin_out_what_the_others_learn():
    z, y = draw(tasks=3)
    known = Knowledge(torch.zeros(50, 3), torch.randn(50, 3).double(), torch.rand(50) < 0.5)
    alone = y.clone()
    alone[:, 1:] = torch.nan
    every = Objective(0.3, Soft())
    first = Knowledge(known.embedding, known.logits[:, :1], known.hit)
    torch.testing.assert_close(every(z, Target(alone, known)), every(z[:, :1], Target(y[:, :1], first)))
