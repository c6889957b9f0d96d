"""The weights of FNW and ES-DFM make the expected loss that of the true labels; nested heads rest at the truth."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.zipper.model import NestedHeads, es_dfm, fnw, nest, nested, plain

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


def outcomes(scores):
    """What can happen to one impression: converted within each window or none of them, and with what chance."""
    chances = nest(scores).sigmoid()[0]  # grow with the window
    within = torch.tensor([[True, True, True], [False, True, True], [False, False, True], [False, False, False]])
    edges = torch.cat([torch.zeros(1).double(), chances, torch.ones(1).double()])
    return within, edges.diff()


@pytest.mark.parametrize("head", [0, 1, 2])
def test_nested_heads_rest_at_the_truth_whatever_window_an_impression_waits_for(head):
    scores = torch.tensor([[0.3, -0.7, 0.4]], dtype=torch.float64)
    within, chance = outcomes(scores)
    learned = scores.expand(4, 3).clone().requires_grad_()
    heads = torch.full((4,), head)
    for row in range(4):
        loss = nested(learned[row : row + 1], heads[:1], within[row : row + 1, head].double(), within[row : row + 1])
        (chance[row] * loss).backward()
    torch.testing.assert_close(learned.grad.sum(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    asked = learned.grad.abs().sum(0) > 0
    assert asked.tolist() == [head > 0, head > 1, True]  # of how soon, the windows that closed before


def test_nested_heads_read_nothing_of_windows_that_are_open():
    scores = torch.tensor([[0.3, -0.7, 0.4]], dtype=torch.float64)
    for head, same in (
        (0, [[True, False, False], [True, True, True]]),
        (1, [[False, True, False], [False, True, True]]),
    ):
        losses = {float(nested(scores, torch.tensor([head]), torch.ones(1), torch.tensor([row]))) for row in same}
        assert len(losses) == 1


def test_how_soon_reads_the_backbone_and_leaves_it_as_it_is():
    torch.manual_seed(0)
    module = NestedHeads((9,), 1, 3)
    ids, bag = torch.arange(8)[:, None], torch.zeros(8, 1, dtype=torch.int64)
    soon, whether = module.scores(ids, bag)[:, :2], module.scores(ids, bag)[:, 2]
    assert soon.unique(dim=0).shape[0] == 1  # says the same of all, to begin with
    torch.nn.init.normal_(module.heads.weight)
    module.scores(ids, bag)[:, :2].sum().backward()
    moved = {name for name, each in module.named_parameters() if each.grad is not None and bool(each.grad.any())}
    assert moved == {"heads.weight", "heads.bias"} and not bool(module.heads.weight.grad[2].any())
    torch.testing.assert_close(module(ids, bag)[:, 2], module.scores(ids, bag)[:, 2])
    assert whether.shape == (8,)
