import torch
from torch import nn


class Net(nn.Module):
    def forward(self, x1):
        x2 = x1 * 1
        c3 = x2 - x2.mean(-1, keepdim=True)
        var4 = c3.pow(2).mean(-1, keepdim=True)
        n5 = c3 / (var4 + 1e-12).sqrt()
        x2 -= 0.25
        return n5, x2


def inputs():
    return [torch.randn(5, 11, 32).requires_grad_()]


TRAINING = True
DYNAMIC = False
