"""Site keys stay what they are: a profile and a plan made before the graph was read as it is now still apply.

stored/ holds both of `Ranker`, made at a69ee18 by

    with loka.probe(model) as probe, torch.no_grad():
        model(*inputs())
    probe.profile.save("profile.safetensors")
    options = loka.Options(min_speedup=0, recipes=("int8_rowwise",))
    loka.dispatch(probe.profile, options=options).unpinned().save("plan.json")
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.probe.profile import load_profile
from loka_compile.spec.plan import Plan, load_plan

STORED = Path(__file__).parent / "stored"


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Ranker(nn.Module):
    """What the reading has to see through: a norm and a gate by hand, writes in place, one user for many candidates,
    a chain of products, tokens that are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 16))
        self.top = nn.Sequential(nn.Linear(32, 32), nn.ReLU(inplace=True))
        self.gate, self.up, self.norm, self.mix = nn.Linear(32, 32), nn.Linear(32, 32), Norm(), nn.Linear(4, 4)
        self.head = nn.Linear(32, 16)

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        x = self.top(torch.cat([self.user(user.expand(items.shape[0], -1)), items], -1))
        gate = self.gate(self.norm(x))
        x += self.up(x) * (gate * torch.sigmoid(gate))
        tokens = x.unflatten(-1, (4, 8))
        tokens = tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2)
        return F.silu(self.head((tokens @ tokens.mT @ tokens).flatten(1)))


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 16, generator=generator), torch.randn(64, 16, generator=generator)


def ranker() -> Ranker:
    torch.manual_seed(0)
    return Ranker().eval()


def recipes(plan: Plan) -> dict[str, str]:
    return {each.site.key: each.chosen.recipe for each in plan.lowered}


def keys_of(options: dict) -> tuple[dict[str, str], Tensor]:
    """Which sites are lowered to what, and what comes out."""
    compiled = torch.compile(ranker(), backend="loka", options=options)
    with torch.no_grad():
        out = compiled(*inputs())
    return recipes(loka.plan(compiled)), out


@pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
def test_a_plan_made_before_lowers_the_same_sites() -> None:
    plan = load_plan(STORED / "plan.json")
    assert len(plan.lowered) == 9
    found, out = keys_of({"plan": plan})
    assert found == recipes(plan)
    with torch.no_grad():
        torch.testing.assert_close(out, ranker()(*inputs()), rtol=0.2, atol=0.2)


@pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
def test_a_profile_made_before_knows_the_same_sites() -> None:
    options = {"profile": STORED / "profile.safetensors", "recipes": ("int8_rowwise",), "min_speedup": 0}
    compiled = torch.compile(ranker(), backend="loka", options=options)
    with torch.no_grad():
        compiled(*inputs())
    assert set(loka.plan(compiled).decisions) == set(load_plan(STORED / "plan.json").decisions)


class Short(Ranker):
    """The same model, whose author writes `s` for `self`."""

    def forward(s, user: Tensor, items: Tensor) -> Tensor:
        x = s.top(torch.cat([s.user(user.expand(items.shape[0], -1)), items], -1))
        gate = s.gate(s.norm(x))
        x += s.up(x) * (gate * torch.sigmoid(gate))
        tokens = x.unflatten(-1, (4, 8))
        tokens = tokens + s.mix(tokens.transpose(1, 2)).transpose(1, 2)
        return F.silu(s.head((tokens @ tokens.mT @ tokens).flatten(1)))


def old(name: str) -> str:
    """As it was named while the name of `self` was part of it."""
    return name if name.startswith("self#") or not name else f"s.{name}"


def named_as_before(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        old(key): replace(each, site=replace(each.site, key=old(key), fqn=old(each.site.fqn)))
        for key, each in entries.items()
    }


@pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
@pytest.mark.parametrize("before", [False, True], ids=["named without it", "named before"])
def test_plans_and_profiles_know_a_model_whatever_it_calls_itself(before: bool) -> None:
    """Also those that were made while a site's name began with `s`, for an author who writes so."""
    plan, profile = load_plan(STORED / "plan.json"), load_profile(STORED / "profile.safetensors")
    lowered = recipes(plan)
    if before:
        plan = replace(plan, decisions=named_as_before(plan.decisions))
        profile = replace(profile, sites=named_as_before(profile.sites))
    for given in ({"plan": plan}, {"profile": profile, "recipes": ("int8_rowwise",), "min_speedup": 0}):
        torch._dynamo.reset()
        torch.manual_seed(0)
        compiled = torch.compile(Short().eval(), backend="loka", options={**given, "max_output_error": 1.0})
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            compiled(*inputs())
        assert recipes(loka.plan(compiled)) == lowered
        assert set(loka.plan(compiled).decisions) == set(load_plan(STORED / "plan.json").decisions)
