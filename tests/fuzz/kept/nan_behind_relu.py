"""A gradient that is NaN, behind ReLUs that cut some values off: those have no gradient."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.din8 = nn.Sequential(nn.Linear(128, 16), nn.Sigmoid(), nn.Linear(16, 1))
        self.linear12 = nn.Linear(32, 16)
        self.linear14 = nn.Linear(32, 16)
        self.linear16 = nn.Linear(32, 16)
        self.linear18 = nn.Linear(32, 16)
        self.linear20 = nn.Linear(32, 16)
        self.linear22 = nn.Linear(32, 16)
        self.linear24 = nn.Linear(16, 8)
        self.linear26 = nn.Linear(16, 8)
        self.linear28 = nn.Linear(16, 8)
        self.linear30 = nn.Linear(16, 8)
        self.linear32 = nn.Linear(16, 8)
        self.linear34 = nn.Linear(16, 8)
        self.head37 = nn.Linear(48, 1)
        self.drop40 = nn.Dropout(0.5)
        self.din46 = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x1, seen3, seen42):
        x2 = x1 * 1
        seen4 = seen3.expand(x2.shape[0], -1, -1)
        item5 = x2[:, 0]
        wide6 = item5[:, None].repeat(1, 3, 1)
        c7 = torch.cat([wide6, seen4, wide6 - seen4, wide6 * seen4], -1)
        w9 = self.din8(c7).softmax(1).squeeze(-1)
        o10 = torch.bmm(w9.unsqueeze(1), seen4).squeeze(1)
        n11 = F.layer_norm(seen4.float(), (32,)).to(seen4.dtype)
        e13 = F.relu(self.linear12(n11))
        e15 = F.relu(self.linear14(n11))
        e17 = F.relu(self.linear16(n11))
        e19 = F.relu(self.linear18(n11))
        e21 = F.relu(self.linear20(n11))
        e23 = F.relu(self.linear22(n11))
        e25 = self.linear24(e13)
        e27 = self.linear26(e15)
        e29 = self.linear28(e17)
        e31 = self.linear30(e19)
        e33 = self.linear32(e21)
        e35 = self.linear34(e23)
        h36 = torch.cat([e25, e27, e29, e31, e33, e35], -1)
        logit38 = self.head37(h36)
        r39 = logit38.std(-1, keepdim=True) * logit38
        d41 = o10 * torch.rand(o10.shape[0], 1, dtype=o10.dtype)
        item43 = e17.mean(1)
        wide44 = item43.unsqueeze(1).expand_as(seen42)
        c45 = torch.cat([wide44, seen42, wide44 - seen42, wide44 * seen42], -1)
        w47 = self.din46(c45).squeeze(-1)
        o48 = torch.cat([(w47.unsqueeze(1) @ seen42).squeeze(1), item43], -1)
        return r39, d41, o48


def inputs(batch=5):
    x1 = torch.randn(batch, 3, 32, dtype=torch.float32).requires_grad_()
    seen3 = torch.randn(1, 3, 32)
    seen42 = torch.randn(batch, 3, 16)
    return [x1, seen3, seen42]


TRAINING = True
DYNAMIC = False
