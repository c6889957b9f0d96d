"""The Wukong model and its training: shapes, gradients, the algebra of its blocks, that it learns."""

import pytest
import torch
from torch import nn

from examples.models.wukong import TokenMix, Wukong, factorization_machine
from examples.movielens import Split
from examples.training import predict, steps, train

CARDINALITIES = (7, 5, 3)


def small(**changes):
    torch.manual_seed(0)
    sizes = dict(width=8, tokens=6, k=4, hidden=(16, 12), head=(10,), dropout=0.0)
    return Wukong(CARDINALITIES, 4, **(sizes | changes))


def inputs(batch):
    generator = torch.Generator().manual_seed(batch)
    ids = torch.stack([torch.randint(c, (batch,), generator=generator) for c in CARDINALITIES], dim=1)
    return ids, torch.randint(4, (batch, 3), generator=generator)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_one_logit_for_each_row(batch, layers):
    logits = small(layers=layers)(*inputs(batch))
    assert logits.shape == (batch,) and logits.isfinite().all()


def test_gradients_reach_every_parameter():
    model = small()
    model(*inputs(64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_fast_factorization_machine_equals_the_full_one():
    x, y = torch.randn(3, 6, 8, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(factorization_machine(x, y), (x @ x.transpose(1, 2)) @ y)


def test_token_mix_is_a_product_with_the_tokens():
    mix, x = TokenMix(6, 3), torch.randn(2, 6, 8)
    torch.testing.assert_close(mix(x), mix.linear.weight @ x)


def test_rows_do_not_depend_on_their_neighbours():
    model, (ids, bag) = small().eval(), inputs(5)
    torch.testing.assert_close(model(ids, bag)[:2], model(ids[:2], bag[:2]))


def test_id_dropout_hides_ids_in_training_only():
    model, (ids, bag) = small(id_dropout=(1.0, 1.0, 1.0)), inputs(5)
    hidden = model(torch.zeros_like(ids), bag)
    torch.testing.assert_close(model(ids, bag), hidden)
    assert not torch.allclose(model.eval()(ids, bag), hidden)


def test_padding_of_the_bag_does_not_count():
    model, (ids, _) = small().eval(), inputs(1)
    torch.testing.assert_close(model(ids, torch.tensor([[2, 3, 0]])), model(ids, torch.tensor([[2, 3]])))


def test_the_dense_layers_have_the_size_that_is_asked_for():
    sizes = [tuple(m.weight.shape) for m in Wukong(CARDINALITIES, 4).modules() if isinstance(m, nn.Linear)]
    assert (1024, 1024) in sizes and (512, 1024) in sizes


def test_training_learns_and_ends_in_eval_mode():
    ids, bag = inputs(4096)
    split = Split(ids, bag, (ids[:, 0] > 3).float(), torch.arange(4096))
    model = small()
    losses = list(train(model, split, epochs=10))
    assert len(losses) == steps(split, 10) and not model.training
    assert losses[-1] < 0.8 * losses[0]
    assert predict(model, split.batches(1000)).shape == (5000,)
