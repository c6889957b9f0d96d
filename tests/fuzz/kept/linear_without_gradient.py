"""Linears of one input, or of equal sizes, of which one has no gradient: it is not one of zeros."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.gate = (nn.Linear(32, 32) for _ in range(3))
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
        self.buckets = nn.Embedding(6, 32)
        self.register_buffer("bounds", torch.linspace(-1, 1, 5))

    def forward(self, x1):
        y2, y3, g4 = self.one(x1), self.two(x1), self.gate(x1)
        i5 = torch.bucketize(g4.detach(), self.bounds)
        made = [expert(x1 * k) for k, expert in enumerate(self.experts)]
        return y2 * y3 + self.buckets(i5).sum(1), sum(made[:-1]) * made[-1].detach().sigmoid()


def inputs(batch=16):
    return [torch.randn(batch, 32).requires_grad_()]


TRAINING = True
DYNAMIC = False
