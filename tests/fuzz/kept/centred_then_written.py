"""What is centred is written before its variance is taken: no layer norm of what it was."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x1):
        c2 = x1 - x1.mean(-1, keepdim=True)
        c2[torch.tensor([0, 2])] = -1.0
        n3 = c2 * torch.rsqrt(c2.pow(2).mean(-1, keepdim=True) + 1e-5)
        c4 = x1 - x1.mean(-1, keepdim=True)
        c4.clamp_(-1, 1)
        c4[:, 1] += 1
        n5 = c4 / torch.sqrt(c4.square().mean(-1, keepdim=True) + 1e-5)
        x6 = x1.clone()
        w7 = x6.double()
        n8 = (w7 * torch.rsqrt(w7.pow(2).mean(-1, keepdim=True) + 1e-6)).float()
        x6[0] = 3.0
        return n3, n5, n8 * self.gain, x6


def inputs(batch=6):
    return [torch.randn(batch, 16)]


TRAINING = False
DYNAMIC = False
