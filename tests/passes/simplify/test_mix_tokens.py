"""mix_tokens: which linears multiply from the left, which stay and why, and the same numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from examples.models.wukong import TokenMix, Wukong
from loka_compile.passes import Context
from loka_compile.passes.simplify.mix_tokens import DID, DID_IN_A_LOOP, LEAST, MOST, MixTokens
from loka_compile.spec.plan import Plan
from tests.passes.exact import agrees, named, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

H100, CPU = Context(Plan("h100", {}), "cpu"), Context(Plan("cpu", {}), "cpu")
B, N, D = 7, 5, 32  # a prime batch


class Mix(nn.Module):
    """Tokens mixed with a bias, written with mT, its result read twice."""

    def __init__(self, d=D):
        super().__init__()
        self.linear = nn.Linear(N, 3)

    def forward(self, x):
        y = self.linear(x.mT)
        return y.mT.relu().flatten(1), y.transpose(-1, 1).contiguous().view(-1)


def test_a_token_mix_as_wukong_writes_it():
    seen = agrees(MixTokens(), nn.Sequential(TokenMix(N, 3), nn.Flatten()), torch.randn(B, N, D), context=H100)
    assert [did for _, did in seen.did] == [DID]
    assert not named(seen.graphs[0], "transpose") and len(named(seen.graphs[0], torch.bmm)) == 1


def test_any_batch():
    mix = TokenMix(N, 3)
    x, other = torch.randn(B, N, D), torch.randn(11, N, D)
    torch._dynamo.mark_dynamic(x, 0)
    seen = rewritten(MixTokens(), mix, x, context=H100)
    torch.testing.assert_close(seen.out, mix(x))
    torch.testing.assert_close(seen.call(other), mix(other))
    assert [did for _, did in seen.did] == [DID]  # and no second graph


def test_with_a_bias_and_several_readers():
    seen = agrees(MixTokens(), Mix(), torch.randn(B, N, D), context=H100)
    assert seen.did == [("linear", DID)]
    assert len(named(seen.graphs[0], torch.baddbmm)) == 1


def test_all_of_a_wukong():
    model = Wukong((5, 7), 3, width=16, layers=2, tokens=4, k=4, hidden=(8,), head=(8,), dropout=0.0).eval()
    seen = agrees(MixTokens(), model, torch.randint(5, (B, 2)), torch.randint(3, (B, 2)), context=H100)
    names = ["layers.0.lcb.linear", "layers.0.residual.linear", "layers.1.lcb.linear"]
    assert [subject for subject, _ in seen.did] == names


@pytest.mark.parametrize("dynamic", [False, True])
def test_on_a_cpu_the_sum_is_written_out(dynamic):
    mix = Mix().eval()
    x, other = torch.randn(B, N, D), torch.randn(11, N, D)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    seen = agrees(MixTokens(), mix, x) if not dynamic else rewritten(MixTokens(), mix, x)
    assert seen.did == [("linear", DID_IN_A_LOOP)]
    assert not named(seen.graphs[0], "transpose") and len(named(seen.graphs[0], "sum")) == 1
    if dynamic:
        torch.testing.assert_close(seen.call(other), mix(other))


@pytest.mark.parametrize(
    ("mix", "dtype", "context", "reason"),
    [
        (TokenMix(N, MOST + 1), torch.float32, CPU, f"it mixes {N} tokens into {MOST + 1}; above {MOST}"),
        (TokenMix(N, 3), torch.bfloat16, CPU, "a GEMM of torch.bfloat16 is faster"),
        (TokenMix(N, 3), torch.float32, Context(Plan("cpu", {}), "cpu", training=True), "gradient of a sum"),
    ],
)
def test_on_a_cpu_others_stay(mix, dtype, context, reason):
    seen = rewritten(MixTokens(), mix.to(dtype), torch.randn(B, N, D, dtype=dtype), context=context)
    assert not seen.did and reason in seen.reasons[0]


def test_few_columns_stay():
    seen = rewritten(MixTokens(), TokenMix(N, 3), torch.randn(B, N, LEAST - 1), context=H100)
    assert not seen.did and f"{LEAST - 1} columns" in seen.reasons[0]


def test_what_is_read_across_stays():
    mix = nn.Linear(N, 3)
    seen = rewritten(MixTokens(), lambda x: mix(x.mT).relu(), torch.randn(B, N, D), context=H100)
    assert not seen.did and seen.reasons[0].startswith("relu reads its result untransposed")


class Written(nn.Module):
    """The tensor that is mixed is written to afterwards, through an index or where nobody could tell."""

    def __init__(self, index):
        super().__init__()
        self.mix, self.index = nn.Linear(N, 3), index

    def forward(self, x):
        x = x + 1
        y = self.mix(x.mT).mT
        if self.index:
            x[0] = 1
        else:
            x.add_(1)
        return y, x


def test_a_tensor_that_is_written_to_stays():
    seen = rewritten(MixTokens(), Written(index=True), torch.randn(B, N, D), context=H100)
    assert not seen.did and "in place" in seen.reasons[0]
    assert agrees(MixTokens(), Written(index=False), torch.randn(B, N, D), context=H100).did


def test_a_plain_linear_is_not_looked_at():
    seen = rewritten(MixTokens(), nn.Linear(D, 3), torch.randn(B, N, D), context=H100)
    assert not seen.did and not seen.reasons
