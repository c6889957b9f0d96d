import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, x):
        s = x.pow(2)
        s.add_(1)
        return x * torch.rsqrt(s.mean(-1, keepdim=True) + 1e-6)


def inputs():
    return [torch.randn(8, 64)]


TRAINING = False
DYNAMIC = False
