"""The theorems' claims on convex problems, in float64, with the modules as they are."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from examples.exfm.distil.auxiliary_head import AuxiliaryHead
from examples.exfm.distil.bounds import shared_head_bias, tracking_bound
from examples.exfm.distil.student_adapter import StudentAdapter

ROWS, FEATURES = 200, 4


def problem(bias=1.0):
    """Features, and the probabilities that the labels and the teacher give: of one model each,
    the teacher's weights off by `bias`."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(ROWS, FEATURES)))
    weights = torch.from_numpy(rng.normal(size=FEATURES)) * 0.5
    off = bias * torch.from_numpy(rng.normal(size=FEATURES))
    return x, (x @ weights).sigmoid(), (x @ (weights + off)).sigmoid()


def fitted(x, labels, soft, **changes):
    """An AuxiliaryHead on the features as they are, fitted to the end; the serving head's weights."""
    model = AuxiliaryHead(nn.Identity(), FEATURES, **changes).double()
    for head in (model.serving, model.distilled):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    scored = torch.ones(ROWS, dtype=torch.bool)

    def closure():
        optimizer.zero_grad()
        loss = model.loss(model.heads(x), labels, soft, scored)
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.cat([model.serving.weight.detach()[0], model.serving.bias.detach()])


def curvatures(x, points):
    """The least and the greatest eigenvalue of the cross-entropy's Hessian at any of these weights."""
    design = torch.cat([x, torch.ones(ROWS, 1, dtype=x.dtype)], dim=1)
    found = []
    for point in points:
        p = (design @ point).sigmoid()
        found.append(torch.linalg.eigvalsh((design * (p * (1 - p))[:, None]).T @ design / ROWS))
    return float(min(each[0] for each in found)), float(max(each[-1] for each in found)), design


@pytest.mark.parametrize("weight", [0.3, 1.0, 10.0])
def test_separate_heads_take_none_of_the_teachers_bias_and_a_shared_one_takes_what_the_bound_says(weight):
    x, labels, soft = problem()
    alone = fitted(x, labels, soft, weight=0.0)
    separate = fitted(x, labels, soft, weight=weight, beta=5.0)
    shared = fitted(x, labels, soft, weight=weight, shared=True)
    assert (separate - alone).norm() < 1e-6
    path = [alone + share * (shared - alone) for share in torch.linspace(0, 1, 51, dtype=torch.float64)]
    mu, smoothness, design = curvatures(x, path)
    gradient = float((design.T @ ((design @ alone).sigmoid() - soft) / ROWS).norm())
    low, high = shared_head_bias(gradient, weight, mu, smoothness)
    distance = float((shared - alone).norm())
    assert low <= distance <= high and distance > 0.05


def test_a_teacher_without_bias_does_a_shared_head_no_harm():
    x, labels, _ = problem()
    assert (fitted(x, labels, labels, weight=3.0, shared=True) - fitted(x, labels, labels, weight=0.0)).norm() < 1e-6


def drifting(periods=60):
    """A teacher frozen at period 0, and what is true of its logits in each period: scale and offset move steadily."""
    rng = np.random.default_rng(1)
    logit = torch.from_numpy(rng.normal(size=500) * 1.5)
    return logit, [(1 - 0.006 * t, -0.02 * t) for t in range(periods)]


def test_the_adapter_tracks_the_drift_within_the_bound_and_a_stale_teacher_does_not():
    logit, truth = drifting()
    design = torch.stack([logit, torch.ones_like(logit)], dim=1)

    def hessian(point):
        p = (design @ point).sigmoid()
        return torch.linalg.eigvalsh((design * (p * (1 - p))[:, None]).T @ design / len(logit))

    adapter = StudentAdapter(hidden=0).double()
    rate = 1.0
    optimizer = torch.optim.SGD(adapter.parameters(), lr=rate)
    everywhere = torch.ones(len(logit), dtype=torch.bool)
    here = lambda: torch.stack([adapter.affine.weight.detach()[0, 0], adapter.affine.bias.detach()[0]])  # noqa: E731
    distances, moves, spectra = [], [], []
    for before, now in pairwise(truth):
        before, now = (torch.tensor(each, dtype=torch.float64) for each in (before, now))
        moves.append(float((now - before).norm()))
        spectra += [hessian(here() + share * (now - here())) for share in torch.linspace(0, 1, 11, dtype=torch.float64)]
        optimizer.zero_grad()
        adapter.loss(logit, (design @ now).sigmoid(), everywhere).backward()
        optimizer.step()
        distances.append(float((here() - now).norm()))
    mu, smoothness = (float(pick([each[i] for each in spectra])) for pick, i in ((min, 0), (max, -1)))
    bounds = tracking_bound(0.0, moves, rate, mu, smoothness)
    assert all(distance <= bound + 1e-12 for distance, bound in zip(distances, bounds, strict=True))
    assert max(bounds) < 0.2  # so it says something: what is not adapted ends 1.2 away
    stale = [float(np.hypot(scale - 1, offset)) for scale, offset in truth[1:]]
    assert distances[-1] < 0.15 * stale[-1] and stale[-1] > 1.0
