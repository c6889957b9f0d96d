"""What stands behind a product that its kernel could do, and what Dispatch makes of it for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.spec.site import Site

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
D = 512


def sites(sites_of, fn, *args):
    with torch.no_grad():
        return {site.key.removesuffix(":output"): site for site in sites_of(fn, *args)[0]}


def stack(*parts):
    return nn.Sequential(nn.Linear(D, D), *parts, nn.Linear(D, D)).bfloat16()


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([nn.LayerNorm(D), nn.ReLU()], "norm"),
        ([nn.RMSNorm(D), nn.GELU()], "norm"),
        ([nn.SiLU()], "activation"),
        ([nn.Hardswish()], "activation"),
        ([], ""),
    ],
)
def test_what_stands_behind_a_product(sites_of, parts, kind):
    found = sites(sites_of, stack(*parts), torch.randn(8, D, dtype=torch.bfloat16))
    first, last = found.values()
    assert (first.epilogue, last.epilogue) == (kind, "")
    assert last.lhs.made_by == first.key and last.lhs.only_products
    assert not first.lhs.made_by
    assert Site.from_json(last.to_json()) == last and Site.from_json(first.to_json()) == first


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        y = F.layer_norm(self.a(x), (D,)).relu()
        return self.b(y) + y


class Mixed(Branches):
    def forward(self, x):
        y = self.a(x)
        return self.b((y * x).relu())


class OverRows(Branches):
    def forward(self, x):
        y = self.a(x)
        return self.b(y - y.mean(0, keepdim=True))


def test_others_that_read_it_are_seen(sites_of):
    a, b = sites(sites_of, Branches(), torch.randn(8, D)).values()
    assert a.epilogue == "norm" and b.lhs.made_by == a.key and not b.lhs.only_products


@pytest.mark.parametrize("model", [Mixed, OverRows])
def test_what_is_not_of_its_rows_alone_is_no_epilogue(sites_of, model):
    a, b = sites(sites_of, model(), torch.randn(8, D)).values()
    assert a.epilogue == "" and not b.lhs.made_by


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([nn.LayerNorm(D), nn.ReLU()], ("norm", True)),
        ([nn.LayerNorm(D)], ("norm", True)),
        ([nn.RMSNorm(D), nn.GELU()], ("norm", True)),
        ([nn.GELU()], ("activation", True)),
        ([nn.ReLU()], ("activation", False)),
        ([], ("", False)),
    ],
)
def test_in_training_the_backward_reads_the_product_too(sites_of, parts, expected):
    """Of a ReLU it reads the result; of a norm also statistics, and casts of them that are made for it alone."""
    first, last, *backward = sites_of(stack(*parts), torch.randn(8, D, dtype=torch.bfloat16))[0]
    assert (first.epilogue, first.kept) == expected and (last.epilogue, last.kept) == ("", False)
    assert not any(site.kept for site in backward)
    assert Site.from_json(first.to_json()) == first


class Block(nn.Module):
    """A norm of a residual and a linear; the sum goes on, or not."""

    def __init__(self, on=False, norm=True):
        super().__init__()
        self.linear, self.norm, self.on = nn.Linear(D, D), nn.LayerNorm(D) if norm else nn.ReLU(), on

    def forward(self, x):
        y = x + self.linear(x.relu())
        return (self.norm(y), y) if self.on else self.norm(y)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("shape", [(8, D), (2, 4, D)])
def test_a_residual_before_a_norm(sites_of, training, on, shape):
    with torch.set_grad_enabled(training):
        site = sites_of(Block(on).bfloat16(), torch.randn(shape, dtype=torch.bfloat16))[0][0]
    assert (site.epilogue, site.kept) == ("norm", on or training)


class Twice(Block):
    def forward(self, x):
        return self.norm(x + (x.sin() + self.linear(x)))


class Broadcast(Block):
    def forward(self, x):
        return self.norm(x[:1] + self.linear(x))


@pytest.mark.parametrize("model", [Block(norm=False), Twice(), Broadcast()])
def test_what_is_no_residual_before_a_norm(sites_of, model):
    """Inductor fuses an activation with the sum as well; the kernel adds one, of the product's shape."""
    with torch.no_grad():
        assert sites_of(model, torch.randn(8, D))[0][0].epilogue == ""


def test_dispatch_says_what_rides_where():
    tower = [each for _ in range(3) for each in (nn.Linear(D, D), nn.LayerNorm(D), nn.ReLU())]
    model, x = nn.Sequential(*tower, nn.Linear(D, 1)).bfloat16(), torch.randn(4096, D, dtype=torch.bfloat16)
    with torch.no_grad(), loka.probe(model, pairs=2) as probe:
        model(x)
    plan = loka.dispatch(probe.profile, "h100")
    first, *rest, head = plan.decisions.values()
    assert str(first.chosen) == "bf16/triton" and "the norm behind it in its epilogue" in first.reason
    for before, decision in zip([first, *rest], rest, strict=False):
        assert str(decision.chosen) == "fp8_rowwise/triton"
        assert f"its cast rides in the epilogue of {before.site.key}" in decision.reason
    assert not head.lowered
    alone = loka.dispatch(probe.profile, "h100", loka.Options(recipes=("int8_rowwise",)))
    assert not alone.lowered  # at this size no cast that is a kernel of its own pays
