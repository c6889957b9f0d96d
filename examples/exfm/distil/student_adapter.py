"""The Student Adapter of ExFM (arXiv 2502.17494 [B], equations [C]): a stale teacher's score, as it would be today.

    z_SA = adapter(teacher's logit)
    step 1: minimise h(z_SA, y) over the adapter
    step 2: t = stopgrad(sigmoid(z_SA))
    step 3: minimise L_ah + h(z_D2(x), t) over the student

`step` in step.py takes the three in this order on one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.exfm.distil.auxiliary_head import masked


class StudentAdapter(nn.Module):
    """Teacher's logits (B,) to adapted logits (B,): a z + c, and an MLP of one layer added.

    It reads the logit and not the probability, which conditions better ([I]), and starts as the identity: before it
    has learned anything its targets are the teacher's ([I]; the paper's is said to be a plain MLP). hidden: width of
    the MLP; 0 for none, which makes fitting it a convex problem.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.affine = nn.Linear(1, 1)
        self.curve = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1)) if hidden else None
        nn.init.ones_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        if self.curve is not None:
            nn.init.zeros_(self.curve[-1].weight)
            nn.init.zeros_(self.curve[-1].bias)

    def forward(self, logit: Tensor) -> Tensor:
        z = logit.unsqueeze(1)
        adapted = self.affine(z)
        if self.curve is not None:
            adapted = adapted + self.curve(z)
        return adapted.squeeze(1)

    def loss(self, logit: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
        """Step 1: of fresh labels, over the rows that have a score."""
        return masked(self(torch.where(scored, logit, 0)), labels, scored)

    @torch.no_grad()
    def target(self, logit: Tensor) -> Tensor:
        """Step 2: what the student's second distillation head is to say. No gradient leads back."""
        return self(torch.nan_to_num(logit)).sigmoid()
