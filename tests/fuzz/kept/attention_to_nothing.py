"""Attention to sequences without positions, of batches without rows, over keys without columns."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.none = nn.Linear(16, 0)

    def forward(self, x1):
        found = []
        for x in (x1[:, :0], x1[:0], x1):
            q = self.q(x)
            found.append(F.relu(q @ q.mT) @ x)
            found.append(F.scaled_dot_product_attention(q.unsqueeze(1), q.unsqueeze(1), x.unsqueeze(1)))
        k = self.none(x1)
        return *found, F.relu(k @ k.mT), F.relu(k.mT @ k), F.silu(self.none(x1))


def inputs(batch=6):
    return [torch.randn(batch, 5, 16).requires_grad_()]


TRAINING = True
DYNAMIC = True
