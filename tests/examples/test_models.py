"""DLRM, DCNv2 and MMoE: shapes, gradients, their formulas; and a rehearsal of the benchmark that runs them."""

from __future__ import annotations

import json

import pytest
import torch

from examples import bench_dispatch, movielens
from examples.models.dcnv2 import CrossLayer, DCNv2
from examples.models.dlrm import DLRM
from examples.models.mmoe import MMoE
from examples.movielens import Split
from examples.training import steps, train
from loka_compile.spec.processor import processor

CARDINALITIES = (7, 5, 3)
SMALL = {
    DLRM: dict(width=8, bottom=(16,), top=(24, 16)),
    DCNv2: dict(width=8, layers=2, deep=(24, 16)),
    MMoE: dict(width=8, experts=3, expert=(24, 16), tower=(12,)),
}
every_model = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


def small(kind, **changes):
    torch.manual_seed(0)
    return kind(CARDINALITIES, 4, **({"dropout": 0.0} | SMALL[kind] | changes))


def inputs(batch):
    generator = torch.Generator().manual_seed(batch)
    ids = torch.stack([torch.randint(c, (batch,), generator=generator) for c in CARDINALITIES], dim=1)
    return ids, torch.randint(4, (batch, 3), generator=generator)


@every_model
@pytest.mark.parametrize("batch", [1, 5])
def test_one_logit_for_each_row(kind, batch):
    logits = small(kind)(*inputs(batch))
    assert logits.shape == (batch,) and logits.isfinite().all()


@every_model
def test_gradients_reach_every_parameter(kind):
    model = small(kind)
    logits = model(*inputs(64), *([True] if kind is MMoE else []))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_model
def test_rows_do_not_depend_on_their_neighbours(kind):
    model, (ids, bag) = small(kind, dropout=0.5).eval(), inputs(5)
    torch.testing.assert_close(model(ids, bag)[:2], model(ids[:2], bag[:2]))


@every_model
def test_training_learns(kind):
    ids, bag = inputs(4096)
    split = Split(ids, bag, (ids[:, 0] > 3).float(), torch.arange(4096))
    model = small(kind)
    losses = list(train(model, split, epochs=40))
    assert len(losses) == steps(split, 40) and losses[-1] < 0.5 * losses[0]


def test_dlrm_reads_every_pair_once():
    model, (ids, bag) = small(DLRM).eval(), inputs(5)
    seen = []
    model.top.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(ids, bag)
    tokens = model.tokens(ids, bag)
    dense = model.bottom(tokens[:, -1])
    vectors = [*tokens[:, :-1].unbind(1), dense]
    pairs = [(a * b).sum(1) for i, a in enumerate(vectors) for b in vectors[i + 1 :]]
    torch.testing.assert_close(seen[0], torch.cat([torch.stack(pairs, dim=1), dense], dim=1))


def test_a_cross_layer_multiplies_by_its_first_input():
    layer, x0, x = CrossLayer(6), torch.randn(3, 6), torch.randn(3, 6)
    w, b = layer.linear.weight, layer.linear.bias
    expected = torch.stack([row0 * (w @ row + b) + row for row0, row in zip(x0, x, strict=True)])
    torch.testing.assert_close(layer(x0, x), expected)


def test_mmoe_serves_its_first_task_or_all():
    model, batch = small(MMoE), inputs(5)
    both = model(*batch, every_task=True)
    assert both.shape == (5, 2)
    torch.testing.assert_close(both[:, 0], model(*batch))


def test_a_gate_that_is_sure_picks_one_expert():
    model, batch = small(MMoE), inputs(5)
    torch.nn.init.zeros_(model.gates[0].weight)
    with torch.no_grad():
        model.gates[0].bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    x = model.tokens(*batch).flatten(1)
    torch.testing.assert_close(model(*batch), model.towers[0](model.experts[1](x)).squeeze(1))


@pytest.mark.slow
def test_a_rehearsal_of_the_benchmark(tmp_path, fresh_dynamo):
    try:
        movielens.folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    path = tmp_path / "results.json"
    bench_dispatch.main(["--quick", "--models", "dlrm", "--engines", "--json", str(path)])  # no other engines
    results = json.loads(path.read_text())
    assert {"batch", "rounds", "threads", "torch", "times", "criteria"} <= set(results)
    assert results["loka_over_inductor_geometric_mean"] > 0

    variants = results["models"]["dlrm"]
    assert {"inductor", "bf16", "fp16", "int8_rowwise", "loka", "loka, again"} <= set(variants)
    for name, variant in variants.items():
        assert (variant["ms"] is None) == bool(variant["skipped"]), name
        assert variant["error"] is None or variant["error"] < 0.05, name
    here = processor()  # this DLRM has five products, and no int8 kernel takes a batch
    assert variants["bf16"]["chosen"] == ({"bf16/aten": 5} if here.fast_16_bits else {"keep": 5})
    if here.fast_int_mm:
        assert variants["int8_rowwise"]["chosen"] == {"int8_rowwise/aten": 4, "keep": 1}
    else:
        assert variants["int8_rowwise_w7"]["chosen"] == {"int8_rowwise_w7/onednn": 4, "keep": 1}
    assert all(variants[name]["skipped"] for name in variants if name.startswith("fp8"))
