"""The gradient of a norm whose result another norm reads, of any number of rows."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear3 = nn.Linear(16, 1, dtype=torch.float16)

    def forward(self, x1):
        x2 = x1 * 1
        y4 = F.linear(x2, self.linear3.weight, self.linear3.bias)
        n5 = F.rms_norm(x2.unflatten(-1, (-1, 8)), (8,)).flatten(-2)
        c6 = n5 - n5.mean(-1, keepdim=True)
        var7 = c6.pow(2).mean(-1, keepdim=True)
        n8 = c6 * torch.rsqrt(var7 + 1e-3)
        return y4, n8


def inputs(batch=6):
    x1 = torch.randn(batch, 16, dtype=torch.float16).requires_grad_()
    return [x1]


TRAINING = True
DYNAMIC = True
