"""A norm over the rows of a batch, of one value each: what is normalized has no dimension but its own."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 1)

    def forward(self, x1):
        y = self.linear(x1).squeeze(-1)
        return F.layer_norm(y, (6,)), F.relu(F.rms_norm(y, (6,))) * F.silu(y.sum())


def inputs(batch=6):
    return [torch.randn(6, 16).requires_grad_()]


TRAINING = True
DYNAMIC = False
