"""A history says what it holds and nothing else, and the teacher can use it where no other feature helps."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.exfm.errors import ExfmError
from examples.exfm.past import Past
from examples.exfm.stream.events import Schema, event
from examples.exfm.teacher import SIZES, Teacher

SCHEMA = Schema(("user", "item"), (50, 10), 4, 2, ("feed",), history=5)


def inputs(rows, seed=0):
    """Items 1 and 2, which the users liked or did not; the label is what they said of the item that is shown."""
    draw = torch.Generator().manual_seed(seed)
    liked = torch.randint(2, (rows, 2), generator=draw)
    shown = torch.randint(2, (rows,), generator=draw)
    ids = torch.stack([torch.randint(50, (rows,), generator=draw), 1 + shown], dim=1)
    bag = torch.zeros(rows, 7, dtype=torch.long)
    bag[:, 2], bag[:, 3] = event(1, 1 + liked[:, 0]), event(2, 1 + liked[:, 1])
    return ids, bag, liked.gather(1, shown.unsqueeze(1)).squeeze(1).float()


def test_places_that_hold_nothing_say_nothing():
    torch.manual_seed(0)
    past = Past(8, 5, heads=2, tokens=3).eval()
    shown, items = torch.randn(4, 8), torch.randn(4, 5, 8)
    events = torch.tensor([[4, 5, 0, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0], [5, 5, 5, 5, 5]])
    found = past(shown, items, events)
    assert found.shape == (4, 3, 8) and found.isfinite().all()
    other = torch.where(events.unsqueeze(2) > 0, items, 100 * torch.randn(4, 5, 8))
    torch.testing.assert_close(past(shown, other, events), found)
    assert not torch.equal(past(shown, items, events.where(events != 4, 3)), found)  # how it ended counts
    assert not torch.equal(past(shown, items.flip(1), events), found)  # so does what it was


def test_a_teacher_learns_what_the_history_alone_says():
    torch.manual_seed(0)
    model = Teacher(SCHEMA, replace(SIZES["tiny"], past=2)).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(120):
        ids, bag, label = inputs(128, step)
        loss = binary_cross_entropy_with_logits(model(ids, bag)[0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, bag, label = inputs(1000, 10_000)
    logit, _ = model.eval()(ids, bag)
    assert ((logit > 0) == (label > 0)).float().mean() > 0.95  # by any other feature it is one half


def test_a_log_without_histories_has_the_model_that_it_had():
    plain = Teacher(replace(SCHEMA, history=0), SIZES["tiny"])
    assert plain.past is None and not any("past" in name for name in plain.state_dict())
    ids, bag, _ = inputs(3)
    assert plain(ids, bag[:, :2])[0].shape == (3,)


def test_a_history_needs_items():
    with pytest.raises(ExfmError, match="of the field 'item'; the fields are user, film"):
        replace(SCHEMA, fields=("user", "film"))
