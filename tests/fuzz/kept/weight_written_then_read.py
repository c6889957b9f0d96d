import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32, dtype=torch.float16)
        self.second = nn.Linear(32, 16, dtype=torch.float16)

    def forward(self, x1):
        with torch.no_grad():
            self.first.weight.mul_(0.5).add_(self.first.weight, alpha=0.5)
        return self.second(self.first(x1).relu())


def inputs(batch=16):
    return [torch.randn(batch, 11, 32, dtype=torch.float16).requires_grad_()]


TRAINING = True
DYNAMIC = False
