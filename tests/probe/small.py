"""Small models to probe."""

from __future__ import annotations

import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.second = nn.Linear(16, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.second(self.dropout(self.first(x).relu()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.a(x)))


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x = self.layer(x)
        torch._dynamo.graph_break()
        return self.layer(x.relu())
