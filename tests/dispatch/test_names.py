"""Plans and profiles of a whole model for its parts, and of a part for the whole: told by names, sizes and lines of
code, and where they cannot be, nothing is lowered and it is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "op_by_op")

LOWER = {"target": "h100", "min_speedup": 0, "recipes": ("fp8_tensorwise",), "max_output_error": 1.0}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        return torch.relu(self.fc(x))


class OtherBlock(nn.Module):
    """Of equal names and sizes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        return torch.sigmoid(self.fc(x))


class Net(nn.Module):
    def __init__(self, kinds=(Block, Block, Block)):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for kind in kinds)
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def batch():
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def profile_of(model, **how):
    with torch.no_grad(), loka.probe(model, **how) as probe:
        model(batch())
    return probe.profile


def explained(model, x=None, **given):
    """What explain says of a model after one call with a plan or a profile, and what was warned of."""
    compiled = torch.compile(model, backend="loka", options={**LOWER, **given}, **APART)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compiled(batch() if x is None else x)
    return loka.explain(compiled), [str(each.message) for each in said if "loka: the p" in str(each.message)]


def outcomes(explanation):
    return {row.key: row.recipe for row in explanation.found}


def test_a_layer_compiled_alone_is_lowered_where_all_that_are_alike_may_be(net):
    profile = profile_of(net)
    for block in net.blocks:
        explanation, warned = explained(block, profile=profile)
        assert outcomes(explanation) == {"fc#0:output": "fp8_tensorwise"} and not warned
        assert explanation.origin.endswith("read as blocks.0, blocks.1, blocks.2, all of which hold")


def test_the_worst_of_all_places_counts(net):
    with torch.no_grad():
        net.blocks[0].fc.bias[0] = 1e6
        net.blocks[1].fc.weight[:, 0] = 0  # it ignores what is large, and what is not is lost beside it
    profile = profile_of(net)
    bad, good = (profile.sites[f"blocks.{i}.fc#0:output"].error("fp8_tensorwise") for i in (1, 0))
    assert good.mere < 0.2 < bad.mere
    explanation, warned = explained(net.blocks[0], profile=profile)
    (row,) = explanation.found
    assert row.recipe == "keep" and not warned
    assert f"MERE {bad.mere:.3g}, budget 0.2" in dict(row.rejected)["fp8_tensorwise/aten"]


def test_a_gemm_of_equal_name_by_another_line_is_not_meant(net):
    """`fc` of the whole is not `fc` of a block: the worst of the blocks counts, and the whole's own does not."""
    explanation, _ = explained(net.blocks[0], profile=profile_of(net))
    assert "read as blocks.0" in explanation.origin
    explanation, warned = explained(OtherBlock(), profile=profile_of(Net((Block,)).blocks[0]))
    assert outcomes(explanation) == {"fc#0:output": "fp8_tensorwise"}  # by its very name, as ever: a file is edited
    assert not warned
    explanation, warned = explained(OtherBlock(), profile=profile_of(nn.Sequential(Block())))
    assert outcomes(explanation) == {"fc#0:output": "keep"} and len(warned) == 1


def test_a_linear_compiled_alone(net):
    explanation, warned = explained(net.blocks[2].fc, profile=profile_of(net))
    assert outcomes(explanation) == {"self#0:output": "fp8_tensorwise"} and not warned
    assert "read as blocks.0.fc, blocks.1.fc, blocks.2.fc, fc" in explanation.origin


def test_a_model_that_is_wrapped(net):
    profile = profile_of(net)
    explanation, warned = explained(nn.Sequential(net), profile=profile)
    assert set(outcomes(explanation).values()) == {"fp8_tensorwise"} and len(explanation.found) == 4 and not warned
    assert "read as what is 0 here" in explanation.origin
    explanation, _ = explained(lambda x: net(x), profile=profile)
    assert set(outcomes(explanation).values()) == {"fp8_tensorwise"} and len(explanation.found) == 4


def test_a_profile_of_one_layer_is_not_one_of_the_others(net):
    explanation, warned = explained(net, profile=profile_of(net.blocks[0]))
    assert set(outcomes(explanation).values()) == {"keep"}
    assert warned == [
        "loka: the profile given knows none of the GEMMs of this graph (blocks.0.fc#0:output, blocks.1.fc#0:output, "
        "blocks.2.fc#0:output, fc#0:output): it is of fc#0:output. Nothing is lowered here: probe the module that is "
        "compiled, or compile the one that was probed"
    ]
    only = Net((Block, OtherBlock))
    explanation, warned = explained(only, profile=profile_of(only.blocks[0]))
    assert outcomes(explanation)["blocks.0.fc#0:output"] == "fp8_tensorwise" and not warned
    assert outcomes(explanation)["blocks.1.fc#0:output"] == "keep"


def test_what_knows_nothing_is_a_warning_that_names_both(net):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(32, 8)

        def forward(self, x):
            return self.out(x)

    profile = profile_of(net)
    plan = loka.dispatch(profile, options=loka.Options(**LOWER)).unpinned()
    for name, given in (("profile", {"profile": profile}), ("plan", {"plan": plan})):
        explanation, warned = explained(Narrow(), **given)
        (message,) = warned
        assert message.startswith(f"loka: the {name} given knows none of the GEMMs of this graph (out#0:output): it is")
        assert "knows none of the GEMMs" in explanation.origin and outcomes(explanation) == {"out#0:output": "keep"}


def test_a_graph_without_gemms_is_no_reason_to_warn(net):
    compiled = torch.compile(nn.ReLU(), backend="loka", options={**LOWER, "profile": profile_of(net)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert compiled(batch()).shape == (64, 32)


def test_a_plan_for_layers_that_are_alike(net):
    """Pinned to its model, and still taken for a layer of it; what it decides differently for them is kept."""
    plan = loka.dispatch(profile_of(net), options=loka.Options(**{**LOWER, "target": "cpu"}))
    assert plan.pins
    explanation, warned = explained(net.blocks[1], plan=plan, target="cpu")
    assert outcomes(explanation) == {"fc#0:output": "fp8_tensorwise"} and not warned
    assert "read as blocks.0, blocks.1, blocks.2" in explanation.origin
    differs = plan.with_decision(plan.decisions["blocks.2.fc#0:output"].demoted("by hand"))
    explanation, _ = explained(net.blocks[1], plan=differs, target="cpu")
    (row,) = explanation.found
    assert row.recipe == "keep"
    assert row.reason == (
        "one graph serves blocks.0.fc#0:output and blocks.2.fc#0:output, but the plan decides them differently"
    )


def test_training_and_any_batch(net):
    with loka.probe(net) as probe:
        net(batch()).sum().backward()
    options = {**LOWER, "profile": probe.profile, "max_mere": 1.0, "max_gradient_error": float("inf")}
    compiled = torch.compile(net.blocks[0], backend="loka", dynamic=True, options=options)
    for rows in (64, 32):
        x = torch.randn(rows, 32, requires_grad=True)
        compiled(x).sum().backward()
    rows = loka.explain(compiled).found
    assert {row.role: row.recipe for row in rows} == dict.fromkeys(
        ("output", "grad_input", "grad_weight"), "fp8_tensorwise"
    )
