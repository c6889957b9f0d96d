"""What copied a transposed tensor does not copy a contiguous one, and is written."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(11, 4)

    def forward(self, x1):
        h2 = self.mix(x1.transpose(1, 2)).transpose(1, 2)
        h3 = h2.flatten(1)
        h3.add_(1)
        h4 = h2.contiguous()
        h4[:, 0] = 0.5
        return h2 * 2, F.dropout(h3, 0.5, True), h4


def inputs(batch=6):
    x1 = torch.randn(batch, 11, 16)
    return [x1]


TRAINING = False
DYNAMIC = False
