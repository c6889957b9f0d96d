"""What the tests of CompSkip share: a small Kunlun and a residual stack, run with a schedule."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.dynamo import run_on_dynamo
from loka_compile.spec.compskip import CompSkip

B, T, D, KEYS = 5, 11, 8, 3  # a prime batch


class Attention(nn.Module):
    """x + W MHA(norm(x))"""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.qkv, self.out, self.drop = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D), dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        out = self.out(heads.transpose(1, 2).flatten(2))
        return x + (F.dropout(out, self.drop, self.training) if self.drop else out)


class PFFN(nn.Module):
    """act(s K(x)) V(x) + s, weights from the context"""

    def __init__(self):
        super().__init__()
        self.k, self.v = nn.Linear(D, KEYS * D), nn.Linear(D, KEYS * D)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        k, v = self.k(x).unflatten(-1, (KEYS, D)), self.v(x).unflatten(-1, (KEYS, D))
        return F.gelu(s @ k.mT) @ v + s


class Pool(nn.Module):
    def __init__(self, tokens=2):
        super().__init__()
        self.seeds, self.kv = nn.Parameter(torch.randn(tokens, D)), nn.Linear(D, D)

    def forward(self, s: Tensor) -> Tensor:
        kv = self.kv(s)
        return F.scaled_dot_product_attention(self.seeds.expand(s.shape[0], -1, -1), kv, kv)


class Layer(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.pffn, self.attention, self.pool, self.interaction = PFFN(), Attention(dropout), Pool(), nn.Linear(D, D)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = self.attention(self.pffn(x, s))
        return x + self.interaction(x + self.pool(s).mean(1)), s


class Sequences(nn.Module):
    """A small Kunlun: a context x, a sequence s."""

    def __init__(self, layers=4, dropout=0.0):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer(dropout) for _ in range(layers)), nn.Linear(D, 1)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        for layer in self.layers:
            x, s = layer(x, s)
        return self.head(x)

    def alternating(self, x: Tensor, s: Tensor) -> Tensor:
        """Kunlun's rule by hand."""
        for number, layer in enumerate(self.layers):
            if number % 2 == 0:
                s = layer.pffn(x, s)
                summary = layer.pool(s)
            else:
                s = layer.attention(s)
            x = x + layer.interaction(x + summary.mean(1))
        return self.head(x)


def inputs(dtype=torch.float32):
    return torch.randn(B, D, dtype=dtype), torch.randn(B, T, D, dtype=dtype)


def skipped(model, schedule, *args, dynamic=None, whole=None):
    """Output of one call with the pass on every graph, and (graph before, graph after, result) of each."""
    found = []

    def backend(gm, _):
        part = compat.is_whole(gm) if whole is None else whole
        changed, (change,) = run_on_dynamo(gm, (Skip(CompSkip.of(schedule), part),))
        found.append((gm.graph, changed.graph, change.result))
        return changed.forward

    return torch.compile(model, backend=backend, dynamic=dynamic, **APART)(*args), found


def subjects(result):
    return {r.site: r.did for r in result.rewrites}, {r.site: r.reason for r in result.rejects}


# ---------------------------------------------------------------- any schedule


class Stack(nn.Module):
    """Pre-norm blocks, residuals written around the branches."""

    def __init__(self, depth, dropout=0.0):
        super().__init__()
        self.blocks, self.dropout = nn.ModuleList(self.block() for _ in range(depth)), dropout

    @staticmethod
    def block():
        return nn.ModuleDict({"norm": nn.LayerNorm(D), "mix": nn.Linear(D, D), "ffn": nn.Linear(D, D)})

    def forward(self, x, gone=frozenset()):
        for number, block in enumerate(self.blocks):
            if f"{number}.mix" not in gone:
                branch = 0.5 * block["mix"](block["norm"](x))
                x = x + (F.dropout(branch, self.dropout, self.training) if self.dropout else branch)
            if f"{number}.ffn" not in gone:
                x = block["ffn"](x) + x
        return x
