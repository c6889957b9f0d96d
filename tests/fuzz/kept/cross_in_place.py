"""A cross network that adds to its own input: what a layer gives reaches the next one by a write alone."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x1):
        x = x1.clone()
        for layer in self.layers:
            x.add_(x1 * layer(x))
        y = torch.zeros_like(x)
        y[:, ::2] = self.layers[0](x)[:, ::2]
        return self.layers[1](y)


def inputs(batch=6):
    return [torch.randn(batch, 16)]


TRAINING = False
DYNAMIC = False
