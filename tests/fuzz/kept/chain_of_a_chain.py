import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.y = nn.Parameter(torch.randn(32, 3))
        self.z = nn.Parameter(torch.randn(16, 2))

    def forward(self, x):
        p = x @ x.transpose(1, 2) @ x @ self.y
        return p @ p.transpose(1, 2) @ self.z


def inputs():
    return [torch.randn(6, 16, 32).requires_grad_()]


TRAINING = True
DYNAMIC = False
