"""The weights of FNW and ES-DFM make the expected loss that of the true labels."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.zipper.model import es_dfm, fnw, nest, plain

TRUE, EARLY = 0.3, 0.1  # P(converts), P(converts within the wait); the rest of them comes later
LOGIT = torch.tensor([0.4], dtype=torch.float64)


def gradient(loss, labels, weights):
    """Of the loss of a whole stream in which `labels` occur `weights` times an impression."""
    logit = LOGIT.clone().requires_grad_()
    total = sum(
        weight * loss(logit, torch.tensor([label]).double()) for label, weight in zip(labels, weights, strict=True)
    )
    total.backward()
    return logit.grad.item()


def test_es_dfm_with_true_helpers_is_the_loss_of_true_labels():
    late = TRUE - EARLY
    delayed = torch.tensor([late], dtype=torch.float64)
    real = torch.tensor([(1 - TRUE) / (1 - EARLY)], dtype=torch.float64)
    seen = gradient(lambda *of: es_dfm(*of, delayed, real), [1.0, 0.0], [EARLY + late, 1 - EARLY])
    true = gradient(plain, [1.0, 0.0], [TRUE, 1 - TRUE])
    # a converted impression that had waited counts twice, which the weights assume of all: 1 + late in front
    assert seen == pytest.approx((1 + late) * true, rel=1e-9)


def test_fnw_is_at_rest_where_the_model_is_right():
    """Each impression a negative, each conversion a positive more; only at p = TRUE do the weighted pulls cancel."""
    logit = torch.logit(torch.tensor([TRUE], dtype=torch.float64)).requires_grad_()
    (1.0 * fnw(logit, torch.zeros(1).double()) + TRUE * fnw(logit, torch.ones(1).double())).backward()
    assert logit.grad.item() == pytest.approx(0, abs=1e-12)
    naive = torch.logit(torch.tensor([TRUE], dtype=torch.float64)).requires_grad_()
    (1.0 * plain(naive, torch.zeros(1).double()) + TRUE * plain(naive, torch.ones(1).double())).backward()
    assert naive.grad.item() > 0.05  # without weights it is pulled below


def test_nested_heads_are_chances_that_grow_with_the_window():
    logits = torch.tensor([[0.3, -1.0, 2.0], [-40.0, 3.0, -50.0], [60.0, 60.0, 60.0]], dtype=torch.float64)
    found = nest(logits)
    chances, each = found.sigmoid(), logits.sigmoid()
    expected = torch.stack([each.prod(1), each[:, 1:].prod(1), each[:, 2]], dim=1)
    torch.testing.assert_close(chances[:2], expected[:2], rtol=1e-9, atol=0)
    assert bool(found.isfinite().all()) and bool((found.diff(dim=1) >= 0).all())
    torch.testing.assert_close(found[:2, 2], logits[:2, 2])
