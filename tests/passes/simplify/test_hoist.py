"""hoist: what comes before the repetition, what does not and why, and the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loka_compile import compat
from loka_compile.passes.simplify.hoist import Hoist
from tests.helpers import speak_of
from tests.passes.exact import agrees, named, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

N = 7  # candidates
LINEAR = F.linear


REPEATS = {
    "expand": lambda u: u.expand(N, -1),
    "expand_as": lambda u: u.expand_as(torch.empty(N, u.shape[1])),
    "broadcast_to": lambda u: torch.broadcast_to(u, (N, u.shape[-1])),
    "repeat": lambda u: u.repeat(N, 1),
    "repeat_interleave": lambda u: u.repeat_interleave(N, 0),
    "torch.repeat_interleave": lambda u: torch.repeat_interleave(u, N, dim=0),
    "index": lambda u: u[torch.zeros(N, dtype=torch.long)],
    "index_select": lambda u: u.index_select(0, torch.zeros(N, dtype=torch.long)),
    "from a vector": lambda u: u[0].expand(N, -1),
    "unsqueeze, expand, reshape": lambda u: u.unsqueeze(1).expand(-1, N, -1).reshape(-1, u.shape[-1]),
    "unsqueeze, repeat, flatten": lambda u: u.unsqueeze(0).repeat(N, 1, 1).flatten(0, 1),
}


def values(nodes):
    return [node.meta["example_value"] for node in nodes]


class Ranker(nn.Module):
    """A user tower, its result repeated for every candidate, and a top that reads both."""

    def __init__(self, repeat=REPEATS["expand"], first=False, inplace=False):
        super().__init__()
        self.tower = nn.Sequential(
            nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(inplace), nn.Dropout(0.1), nn.Linear(16, 8)
        )
        self.top = nn.Sequential(nn.Linear(8 + 5, 12), nn.ReLU(inplace), nn.Linear(12, 1))
        self.repeat, self.first = repeat, first

    def forward(self, user, item):
        user = self.tower(self.repeat(user))
        return self.top(torch.cat([user, item] if self.first else [item, user], -1))


@pytest.mark.parametrize(("dynamic", "inplace"), [(None, False), (None, True), (True, False)])
@pytest.mark.parametrize("form", REPEATS)
def test_a_tower_runs_on_one_row(form, dynamic, inplace):
    user, item = torch.randn(1, 6), torch.randn(N, 5)
    seen = agrees(Hoist(), Ranker(REPEATS[form], inplace=inplace).eval(), user, item, dynamic=dynamic)
    done = [subject for subject, did in seen.did if "before its input is repeated" in did]
    assert done == ["tower.0", "tower.1", "tower.4"]
    rows = [compat.concrete(x.numel() // x.shape[-1]) for x in values(named(seen.graphs[0], LINEAR))]
    assert rows == [1, 1, N, N]


@pytest.mark.parametrize("repeat", ["repeat_interleave", "unsqueeze, expand, reshape", "unsqueeze, repeat, flatten"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_many_users_each_repeated(repeat, dynamic, free):
    user, item = torch.randn(3, 6), torch.randn(3 * N, 5)
    seen = agrees(Hoist(), Ranker(REPEATS[repeat]).eval(), user, item, dynamic=dynamic)
    assert [subject for subject, _ in seen.did] == ["tower.0", "tower.1", "tower.4", "top.0"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_linear_over_user_and_item_is_split_and_the_users_part_is_its_bias(first, dynamic, free):
    seen = agrees(Hoist(), Ranker(first=first).eval(), torch.randn(1, 6), torch.randn(N, 5), dynamic=dynamic)
    assert seen.did[-1] == ("top.0", f"linear, split: columns {'0-7' if first else '5-12'} before they are repeated")
    assert not named(seen.graphs[0], torch.add) and not named(seen.graphs[0], torch.cat)
    once, rest = named(seen.graphs[0], LINEAR)[2:4]
    assert once.meta["example_value"].shape == (1, 12) and rest.meta["example_value"].shape[0] == N


def test_a_split_that_does_not_pay_says_so():
    seen = agrees(Hoist(), Ranker().eval(), torch.randn(1, 6), torch.randn(N, 5))
    assert "splitting off 8 of its columns saves 0 us and adds 6 us for 7 rows (modelled)" in seen.reasons


def test_tokens_side_by_side_are_split_too(free):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix = nn.Embedding(9, 4), nn.Linear(5 * 4, 3)

        def forward(self, user, item):
            user = self.table(user.expand(item.shape[0], -1))
            return self.mix(torch.cat([user, self.table(item)], dim=1).flatten(1))

    seen = agrees(Hoist(), Tokens(), torch.randint(9, (1, 2)), torch.randint(9, (N, 3)))
    assert seen.did == [("mix", "linear, split: columns 0-7 before they are repeated")]


def test_rows_that_count_how_often_they_come_stay():
    model = nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Linear(4, 3))
    assert not rewritten(Hoist(), lambda ids: model(ids.expand(N, -1)), torch.randint(9, (1, 2))).did


def test_keys_and_values_of_a_history_are_made_once(free):
    class History(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, history, item):
            history = history.expand(item.shape[0], -1, -1)
            heads = lambda x: x.unflatten(-1, (2, 4)).transpose(1, 2)  # noqa: E731
            q, k, v = heads(self.q(item.unsqueeze(1))), heads(self.k(history)), heads(self.v(history))
            return F.scaled_dot_product_attention(q, k, v).flatten(1)

    seen = agrees(Hoist(), History(), torch.randn(1, 5, 8), torch.randn(N, 8), dynamic=True)
    assert [subject for subject, _ in seen.did] == ["k", "v"]
    assert any(reason.startswith("scaled_dot_product_attention: ") for reason in seen.reasons)


@pytest.mark.parametrize("kind", ["of the user", "of all", "of the item", "causal"])
@pytest.mark.parametrize("additive", [False, True])
def test_attention_with_a_mask_moves_where_the_mask_is_the_users_or_everybodys(kind, additive):
    """Self-attention over one user's history, of which `length` events are real, repeated for N candidates."""

    class History(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, history, known, item):
            x, known = history.expand(item.shape[0], -1, -1), known.expand(item.shape[0], -1)
            q, k, v = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
            if kind == "of the user":
                mask = known[:, None, None, :] > 0
            elif kind == "of the item":
                mask = (item[:, :5] > -1)[:, None, None, :] | (known[:, None, None, :] > 0)
            else:
                mask = torch.ones(5, 5, dtype=torch.bool).tril()
            mask = torch.where(mask, 0.0, -1e9) if additive else mask
            attended = F.scaled_dot_product_attention(
                q, k, v, None if kind == "causal" else mask, is_causal=kind == "causal"
            )
            return self.out(attended.transpose(1, 2).flatten(2)).mean(1) + item

    known = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    seen = agrees(Hoist(), History(), torch.randn(1, 5, 8), known, torch.randn(N, 8), dynamic=True)
    moved = [what.partition(" ")[0] for _, what in seen.did]
    if kind == "of the item":
        assert moved == ["linear"] and speak_of(seen.reasons, "its mask differs from row to row")
    else:
        assert moved == ["linear", "scaled_dot_product_attention", "linear"]


@pytest.mark.parametrize("take", ["unbind", "index", "select", "iterate"])
def test_queries_keys_and_values_of_one_product_move_though_taken_from_the_front(take):
    """`qkv.unflatten(...).permute(2, 0, 3, 1, 4)` brings another dimension before the repeated one, for a moment."""

    class History(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, history, item):
            x = history.expand(item.shape[0], -1, -1)
            front = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            if take == "index":
                q, k, v = front[0], front[1], front[2]
            elif take == "select":
                q, k, v = (front.select(0, i) for i in range(3))
            else:
                q, k, v = front.unbind(0) if take == "unbind" else front
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1) + item

    seen = agrees(Hoist(), History(), torch.randn(1, 5, 8), torch.randn(N, 8), dynamic=True)
    assert [what.partition(" ")[0] for _, what in seen.did] == ["linear", "scaled_dot_product_attention", "linear"]


@pytest.mark.parametrize("back", [lambda x: x[:, 0], lambda x: x[1:].sum(0), lambda x: x.unbind(1)[0], lambda x: x + 1])
def test_what_else_reads_such_a_front_stays(back):
    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 6)

        def forward(self, history, item):
            return back(self.linear(history.expand(item.shape[0], -1, -1)).permute(2, 0, 1)).sum() + item

    seen = agrees(Hoist(), Front(), torch.randn(1, 5, 8), torch.randn(N, 8))
    assert [what.partition(" ")[0] for _, what in seen.did] == ["linear"]


def test_dropout_in_training_draws_anew():
    seen = rewritten(Hoist(), Ranker().train(), torch.randn(1, 6), torch.randn(N, 5))
    assert [subject for subject, _ in seen.did] == ["tower.0", "tower.1"]
    assert speak_of(seen.reasons, "dropout")


def test_batch_norm_reads_all_rows_in_training():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    repeated = lambda u: model(u.expand(N, -1))  # noqa: E731
    seen = rewritten(Hoist(), repeated, torch.randn(1, 6))
    assert not seen.did and "batch_norm in training reads all rows" in seen.reasons[0]
    model.eval()
    assert rewritten(Hoist(), repeated, torch.randn(1, 6)).did == [("model.1", "linear before its input is repeated")]


def test_what_is_written_in_place_stays():
    def scribbled(u, w):
        wide = u.repeat(N, 1)
        out = F.linear(wide, w)
        wide[:, 0] = 1.0
        return out, F.linear(wide, w)

    u, w = torch.randn(1, 6), torch.randn(4, 6)
    seen = rewritten(Hoist(), scribbled, u, w)
    assert not seen.did
    torch.testing.assert_close(seen.out, scribbled(u, w))


def test_a_source_written_to_later_stays():
    def later(u, w):
        wide = u.repeat(N, 1)
        u.mul_(2)
        return F.linear(wide, w)

    w = torch.randn(4, 6)
    seen = rewritten(Hoist(), later, torch.ones(1, 6), w)
    assert not seen.did
    torch.testing.assert_close(seen.out, F.linear(torch.ones(N, 6), w))


def test_what_leaves_the_graph_is_ones_own_memory():
    seen = rewritten(Hoist(), lambda u, w: F.linear(u.expand(N, -1), w), torch.randn(1, 6), torch.randn(4, 6))
    assert seen.did and seen.out.is_contiguous()
    seen.out.add_(1)  # and can be written to


def test_a_norm_over_the_repeated_dimension_stays():
    seen = rewritten(Hoist(), lambda u: F.layer_norm(u.expand(N, 6), (N, 6)), torch.randn(1, 6))
    assert not seen.did and "it normalises over 2 dimensions, and the replication reaches them" in seen.reasons[0]


def test_activations_alone_are_not_worth_it():
    seen = rewritten(Hoist(), lambda u, i: (u.expand(N, -1).relu() * 2 + i).sum(), torch.randn(1, 6), torch.randn(N, 6))
    assert not seen.did and not seen.reasons


def test_one_row_for_one_row_is_no_repetition():
    seen = rewritten(Hoist(), lambda u, w: F.linear(u.expand(1, -1), w), torch.randn(1, 6), torch.randn(4, 6))
    assert not seen.did


def test_each_part_of_a_broken_graph():
    class Broken(Ranker):
        def forward(self, user, item):
            user = self.tower(self.repeat(user))
            torch._dynamo.graph_break()
            return self.top(torch.cat([item, user], -1))

    seen = agrees(Hoist(), Broken().eval(), torch.randn(1, 6), torch.randn(N, 5))
    assert len(seen.results) == 2 and [subject for subject, _ in seen.did] == ["tower.0", "tower.1", "tower.4"]
