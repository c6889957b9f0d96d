"""Who learns from what: the serving head from labels alone, the other from the teacher alone, the backbone from
both."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as h

from examples.exfm.distil.auxiliary_head import AuxiliaryHead

ROWS, FEATURES, WIDTH = 12, 5, 4


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    labels = (torch.rand(ROWS, generator=generator) < 0.5).double()
    soft = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return x, labels, soft, torch.ones(ROWS, dtype=torch.bool)


def student(**changes):
    torch.manual_seed(1)
    return AuxiliaryHead(nn.Linear(FEATURES, WIDTH), WIDTH, **changes).double()


def gradients(model, data, target=None, **changes):
    x, labels, soft, scored = data
    model.zero_grad()
    model.loss(model.heads(x), changes.get("labels", labels), changes.get("soft", soft), scored, target).backward()
    return {name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()}


def test_the_loss_is_the_papers(data):
    x, labels, soft, scored = data
    model = student(beta=3.0, alpha=5.0, weight=10.0)
    with torch.no_grad():
        heads = model.heads(x)
        expected = h(heads.serving, labels) + 10 * h(heads.distilled, (5 * soft).clamp(max=1))
        assert torch.allclose(model.loss(heads, labels, soft, scored), expected)
        assert ((5 * soft) > 1).any()  # so that cutting off is tested
        assert torch.equal(model(x), heads.serving)


def test_the_serving_head_never_sees_the_teacher(data):
    one, other = (gradients(student(weight=2.0), data, soft=soft) for soft in (data[2], 1 - data[2]))
    assert all(torch.equal(one[name], other[name]) for name in ("serving.weight", "serving.bias"))
    assert not torch.allclose(one["distilled.weight"], other["distilled.weight"])
    assert not torch.allclose(one["backbone.weight"], other["backbone.weight"])
    alone = gradients(student(weight=0.0), data)
    assert torch.equal(one["serving.weight"], alone["serving.weight"])


def test_the_teachers_head_never_sees_labels(data):
    one, other = (gradients(student(weight=2.0), data, labels=labels) for labels in (data[1], 1 - data[1]))
    assert torch.equal(one["distilled.weight"], other["distilled.weight"])
    assert not torch.allclose(one["serving.weight"], other["serving.weight"])


def test_beta_scales_what_reaches_the_backbone_and_nothing_else(data):
    found = {beta: gradients(student(beta=beta, weight=2.0), data) for beta in (0.0, 1.0, 20.0)}
    labels_alone = found[0.0]["backbone.weight"]
    from_teacher = found[1.0]["backbone.weight"] - labels_alone
    assert torch.allclose(found[20.0]["backbone.weight"] - labels_alone, 20 * from_teacher)
    assert torch.equal(labels_alone, gradients(student(weight=0.0), data)["backbone.weight"])
    for name in ("serving.weight", "distilled.weight"):
        assert torch.equal(found[0.0][name], found[20.0][name])


def test_a_shared_head_is_ordinary_distillation(data):
    x, labels, soft, scored = data
    model = student(shared=True, weight=2.0)
    assert len(list(model.parameters())) == len(list(student().parameters())) - 2
    heads = model.heads(x)
    expected = h(heads.serving, labels) + 2 * h(heads.serving, soft)
    assert torch.allclose(model.loss(heads, labels, soft, scored), expected)
    one, other = (gradients(student(shared=True), data, soft=each) for each in (soft, 1 - soft))
    assert not torch.allclose(one["serving.weight"], other["serving.weight"])


def test_rows_without_a_score_add_their_labels_loss_alone(data):
    x, labels, soft, scored = data
    model, scored = student(weight=3.0, adapter_head=True), scored.clone()
    scored[:5] = False
    soft = soft.clone()
    soft[:5] = torch.nan
    heads = model.heads(x)
    loss = model.loss(heads, labels, soft, scored, target=soft)
    seen = sum(3 * h(heads.distilled[i], soft[i]) + h(heads.adapted[i], soft[i]) for i in range(5, ROWS))
    assert torch.allclose(loss, h(heads.serving, labels) + seen / ROWS)
    found = gradients(model, (x, labels, soft, scored), target=soft)
    assert all(each.isfinite().all() for each in found.values())


def test_the_adapters_head_sees_its_targets_alone(data):
    target = torch.rand(ROWS, dtype=torch.float64)
    one, other = (gradients(student(adapter_head=True), data, target=each) for each in (target, 1 - target))
    for name in ("serving.weight", "distilled.weight"):
        assert torch.equal(one[name], other[name])
    assert not torch.allclose(one["adapted.weight"], other["adapted.weight"])


def test_wrong_settings_are_errors(data):
    for wrong in ({"beta": -1}, {"weight": -0.1}, {"alpha": 0}):
        with pytest.raises(ValueError, match="0 or more"):
            student(**wrong)
    for wrong in ({"beta": 2.0}, {"adapter_head": True}):
        with pytest.raises(ValueError, match="leave beta at 1"):
            student(shared=True, **wrong)
    with pytest.raises(ValueError, match="adapter_head=True"):
        gradients(student(), data, target=data[2])


def test_a_backbone_of_another_shape_is_an_error(data):
    x, *_ = data
    for features, width in ((x, 3), (x[:, None], WIDTH)):
        model = AuxiliaryHead(nn.Linear(FEATURES, WIDTH), width).double()
        for call in (model, model.heads):
            with pytest.raises(ValueError, match=r"the backbone gives .*; expected \(rows, width"):
                call(features)
    with pytest.raises(ValueError, match="beta and weight are 0 or more"):
        student(beta=float("nan"))
