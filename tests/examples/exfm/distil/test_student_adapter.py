import pytest
import torch

from examples.exfm.distil.student_adapter import StudentAdapter


@pytest.fixture
def logit():
    return 2 * torch.randn(400, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_starts_as_the_identity(logit, hidden):
    assert torch.allclose(StudentAdapter(hidden)(logit), logit)


def test_no_gradient_leads_back_from_its_targets(logit):
    adapter = StudentAdapter()
    target = adapter.target(logit)
    assert not target.requires_grad and torch.allclose(target, logit.sigmoid())


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_learns_what_a_stale_teacher_misses(logit, hidden):
    """The world's logits have become 0.5 z - 1: the adapter finds it from labels, and the NE of its targets is
    better."""
    torch.manual_seed(0)
    fresh = 0.5 * logit - 1
    adapter, scored = StudentAdapter(hidden), torch.ones(400, dtype=torch.bool)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.05)
    before = adapter.loss(logit, fresh.sigmoid(), scored).item()
    for _ in range(300):
        optimizer.zero_grad()
        loss = adapter.loss(logit, fresh.sigmoid(), scored)
        loss.backward()
        optimizer.step()
    assert loss.item() < before - 0.05
    assert (adapter(logit) - fresh).abs().mean() < 0.1


def test_rows_without_a_score_teach_nothing(logit):
    adapter, labels = StudentAdapter(), (logit > 0).float()
    scored = torch.arange(400) % 2 == 0
    holes = torch.where(scored, logit, torch.nan)
    adapter.loss(holes, labels, scored).backward()
    found = adapter.affine.weight.grad.clone()
    assert found.isfinite().all()
    adapter.zero_grad()
    adapter.loss(logit, labels, scored).backward()
    assert torch.equal(adapter.affine.weight.grad, found)
    assert adapter.target(holes).isfinite().all()
