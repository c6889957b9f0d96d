"""Indexing that takes all of a tensor is an alias to ATen, and no argument of it has a name: products of it crashed."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x1):
        one = x1.mean(-1, keepdim=True)
        every, column = x1[...], self.down(x1)[..., :1]
        tokens = self.up(x1)[:, None].expand(-1, 4, -1)[:, :4]
        return one[:, :1] @ one.mT @ every, every.mT[:] @ (column @ every[:1]), tokens[:] @ tokens.mT[..., :4]


def inputs(batch=6):
    return [torch.randn(batch, 16).requires_grad_()]


TRAINING = True
DYNAMIC = True
