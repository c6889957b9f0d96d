"""What is detached of one user's rows stays detached where it is computed once."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.gate = nn.Linear(16, 16)

    def forward(self, x1, u2):
        y3 = self.linear(u2.expand(x1.shape[0], -1))
        g4 = torch.sigmoid(self.gate(F.silu(y3.detach())))
        return y3 * g4 + x1


def inputs(batch=7):
    return [torch.randn(batch, 16).requires_grad_(), torch.randn(1, 16)]


TRAINING = True
DYNAMIC = False
