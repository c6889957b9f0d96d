"""What a run decides: copies by gradients, sizes that come back from JSON, rows of a rehearsal."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import torch

from examples.lattice.networks.size import Size
from examples.lattice.pipeline.arms import tuples
from examples.lattice.pipeline.stages import copies_of, size_of


def portfolios(*gradients):
    return [SimpleNamespace(gradient=torch.tensor(each).expand(4, 1, -1)) for each in gradients]


def test_domains_share_a_copy_where_gradients_agree():
    of = portfolios([1.0, 0.0], [0.9, 0.2], [0.0, 1.0], [0.1, 1.0])
    assert copies_of(4, dict(enumerate(range(4))), of) == [0, 0, 1, 1]
    assert copies_of(2, {0: 0, 1: 0, 2: 1}, of) == [0, 1]  # a domain's gradient is the sum over its portfolios
    assert copies_of(3, {2: 2}, of) == [0, 0, 0]  # one domain alone, the others are not asked for
    assert copies_of(2, {0: 0, 1: 1}, portfolios([1.0, 0.0], [-1.0, 0.0])) == [0, 1]


def test_a_domain_whose_gradient_is_chance_has_no_copy_of_its_own():
    of = portfolios([1.0, 0.0], [0.0, 1.0], [0.0, 0.0])
    of[0].gradient = torch.stack([torch.ones(1, 2), -torch.ones(1, 2)] * 2)
    assert copies_of(3, dict(enumerate(range(3))), of) == [0, 0, 0]
    of[2] = portfolios([1.0, 0.0])[0]
    assert copies_of(3, dict(enumerate(range(3))), of) == [0, 0, 1]


def test_a_size_comes_back_from_json():
    values = {"width": 8, "layers": 1, "tokens": 4, "k": 5, "hidden": 40, "keys": 8}
    size = size_of(values, [0, 1, 0])
    assert size == Size(width=8, layers=1, tokens=4, k=5, hidden=(40,), keys=8, untied=(0, 1, 0))
    assert Size(**tuples(json.loads(json.dumps(asdict(size))))) == size
