"""Models that the tests of the backend compile, and the numerics they are held against."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from loka_compile.probe.score import emulate
from loka_compile.spec.recipes import RECIPES

SIGNED = [name for name, recipe in RECIPES.items() if not recipe.unsigned]
"""Recipes for operands of any sign; tests/kernels/test_unsigned.py has the others."""

AGREE_DB = 40.0
"""A sum in another order moves a value over a rounding edge now and then, so two runs of one recipe agree in
decibels, not bit by bit; 29 dB is what one product in e4m3 keeps."""


class EmulatedLinear(torch.autograd.Function):
    """A linear whose three products are in a recipe's numerics: what a compiled one must agree with."""

    @staticmethod
    def forward(ctx, x, weight, recipe):
        ctx.recipe = recipe
        ctx.save_for_backward(x, weight)
        return emulate(recipe, x, weight.t()).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        grad_x = emulate(ctx.recipe, gradient, weight, gradient="lhs").to(x.dtype)
        grad_weight = emulate(ctx.recipe, gradient.t(), x, gradient="lhs").to(x.dtype)
        return grad_x, grad_weight, None


class Emulated(TorchFunctionMode):
    """Every F.linear within runs in a recipe's numerics."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = RECIPES[recipe]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.linear:
            return function(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        out = EmulatedLinear.apply(x, weight, self.recipe)
        return out if bias is None else out + bias


def emulated(recipe, model, *inputs):
    with Emulated(recipe):
        return model(*inputs)


class Ranker(nn.Module):
    """An embedding, a tower with a norm, a dot interaction: one linear, one linear, one bmm, one linear."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.bottom = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.middle = nn.Linear(64, 32)
        self.top = nn.Linear(8, 1)

    def forward(self, ids, dense):
        x = torch.cat([self.table(ids), dense], 1)
        x = self.middle(self.norm(self.bottom(x)).relu())
        x = x.view(-1, 2, 16)
        pairs = torch.cat([x @ x.transpose(1, 2), x[:, :, :2]], 2).flatten(1)
        return self.top(pairs).squeeze(1)


class Linear(nn.Module):
    def __init__(self, k=32, n=48, bias=True):
        super().__init__()
        self.fc = nn.Linear(k, n, bias)

    def forward(self, x):
        return self.fc(x)


class MLP(nn.Module):
    def __init__(self, *widths, norm=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k, n) for k, n in pairwise(widths))
        self.norm = nn.BatchNorm1d(widths[-1]) if norm else nn.Identity()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.norm(x)


def compiled_with(plan, model, **options):
    return torch.compile(model, backend="loka", **options, options={"plan": plan})


def two_dimensional(site):
    return site.op in ("mm", "addmm")


def emulated_linear(recipe, x, weight, bias=None):
    out = emulate(RECIPES[recipe], x, weight.t())
    return out if bias is None else out + bias
