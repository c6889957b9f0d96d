"""`set_` gives a tensor other memory; what is written there is the tensor's."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.y4 = nn.Parameter(torch.randn(3, 4, dtype=torch.bfloat16))

    def forward(self, x1):
        x2 = x1.unsqueeze(1) * torch.linspace(-1, 1, 3, dtype=x1.dtype).unsqueeze(1)
        v3 = x2.to(x2.dtype)
        v3.set_(v3.clone())
        p5 = torch.matmul(x2 @ x2.mT, self.y4)
        v3[-1].add_(1)
        return p5, v3


def inputs(batch=6):
    x1 = torch.randn(batch, 16, dtype=torch.bfloat16)
    return [x1]


TRAINING = False
DYNAMIC = False
