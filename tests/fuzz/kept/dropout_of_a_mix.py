"""Dropout draws in the order of memory, and a linear over tokens that multiplies from the left lies otherwise."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix4 = nn.Linear(11, 4)
        self.y8 = nn.Parameter(torch.randn(4, 3))
        self.y11 = nn.Parameter(torch.randn(4, 4))
        self.norm13 = nn.LayerNorm(16)
        self.drop15 = nn.Dropout(0.5)

    def forward(self, x1):
        x2 = x1 * 1
        x3 = x1.unsqueeze(1) * torch.linspace(-1, 1, 11, dtype=x1.dtype).unsqueeze(1)
        t5 = x3.transpose(1, 2)
        h6 = self.mix4(t5).transpose(1, 2)
        t7 = h6.permute(0, 2, 1)
        p9 = t7 @ self.y8
        p10 = h6 @ p9
        p12 = torch.einsum("bnm,mk->bnk", torch.einsum("bnd,bmd->bnm", h6, h6), self.y11)
        n14 = self.norm13(p12.flatten(1))
        d16 = F.dropout(t7, 0.5, True)
        return x2, p10, n14, d16


def inputs(batch=6):
    x1 = torch.randn(batch, 16, dtype=torch.float32).requires_grad_()
    return [x1]


TRAINING = True
DYNAMIC = False
