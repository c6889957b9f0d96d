import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def forward(self, x1):
        n3 = F.layer_norm(x1.float(), (16,)).to(x1.dtype)
        n3[:2, ...] = n3[-2:, ...].clone()
        return n3


def inputs():
    return [torch.randn(6, 3, 16, dtype=torch.bfloat16).requires_grad_()]


TRAINING = True
DYNAMIC = False
