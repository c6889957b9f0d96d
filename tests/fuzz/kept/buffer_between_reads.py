import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(64))

    def forward(self, x):
        g = torch.sigmoid(self.kept)
        self.kept[0] = 2.0
        return x * (self.kept * g)


def inputs():
    return [torch.randn(8, 64)]


TRAINING = False
DYNAMIC = False
