import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, x):
        x = x.clone()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x[x > 0.5] = 0.25
        return x * scale


def inputs():
    return [torch.randn(8, 64)]


TRAINING = False
DYNAMIC = False
