"""Numbers drawn as vectors are those that Inductor draws one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.compat.faster_draws import WORDS
from loka_compile.spec.processor import processor

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def drawing(x: Tensor) -> tuple[Tensor, ...]:
    """A loop that fills all vectors, one with an end that does not, one along other columns, ones of other types."""
    transposed = torch.rand(40, 37).t() + x[:37, :40]
    return F.dropout(x, 0.3), torch.rand(77, 1001), transposed, F.dropout(x.double(), 0.5), F.dropout(x.bfloat16(), 0.5)


def test_the_numbers_are_those_of_scalar_code() -> None:
    x, codes = torch.randn(300, 256), []

    def vectors(gm, inputs):
        settings = {"joint": lambda graph: None, "post_grad": lambda graph: None, "uuid": "draws", "patches": {}}
        compiled, artifacts = compat.compile_inductor(gm, inputs, **settings)
        codes.extend(artifact.source_code for artifact in artifacts)
        return compiled

    outs, states = [], []
    for backend in ("inductor", vectors):
        torch.manual_seed(0)
        outs.append(torch.compile(drawing, backend=backend, **APART)(x))
        states.append(torch.get_rng_state())
    assert all(torch.equal(one, many) for one, many in zip(*outs, strict=True)) and torch.equal(*states)
    here = processor()
    if here.architecture == "x86_64" and "avx2" in here.aten:
        wide = WORDS["CPU_CAPABILITY_AVX512" if "avx512f" in here.aten else "CPU_CAPABILITY_AVX2"]
        assert sum(code.count(wide.times("a", wide.every("0xD2511F53u"))) for code in codes) >= 4
