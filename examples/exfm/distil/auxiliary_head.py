"""The Auxiliary Head of ExFM (arXiv 2502.17494 [B], equations [C]), for any backbone.

    x    = backbone(features)
    L_s  = h(z_S(x), y)                                      serving head: true labels alone
    L_d  = h(z_D(gradscale_beta(x)), clip(alpha y_F))        a head of its own: the teacher's soft labels alone
    L_ah = L_s + w L_d

h is the cross-entropy of a logit and a label or soft label. Only z_S is served: what alpha does to z_D's calibration
harms nobody ([I]). With `shared` there is one head for both, ordinary distillation, the baseline.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.exfm.distil.gradient_scale import GradientScale


class Heads(NamedTuple):
    """Logits (B,) of the heads: of the labels, of the teacher's scores, and of the Student Adapter's if there is
    one."""

    serving: Tensor
    distilled: Tensor
    adapted: Tensor | None


class AuxiliaryHead(nn.Module):
    """A model to serve out of a backbone that gives (B, width): called, it gives the serving head's logits (B,).

    beta    the teacher's gradient into the backbone is scaled by it
    alpha   soft labels are multiplied by it, and cut off at 1: they lie near 0 where positives are rare
    weight  w, of the teacher's loss
    shared  the baseline: one head for labels and soft labels
    adapter_head  a second distillation head, for the Student Adapter's targets
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        *,
        beta: float = 1.0,
        alpha: float = 1.0,
        weight: float = 1.0,
        shared: bool = False,
        adapter_head: bool = False,
    ) -> None:
        super().__init__()
        if not (beta >= 0 and weight >= 0 and alpha > 0):  # NaN is neither
            raise ValueError(f"beta and weight are 0 or more, alpha is above 0; got {beta=}, {weight=}, {alpha=}")
        if shared and (beta != 1 or adapter_head):
            raise ValueError("a shared head has no gradient of its own to scale, and no second head; leave beta at 1")
        self.backbone = backbone
        self.serving = nn.Linear(width, 1)
        self.distilled = self.serving if shared else nn.Linear(width, 1)
        self.adapted = nn.Linear(width, 1) if adapter_head else None
        self.scale = GradientScale(beta)
        self.alpha, self.weight, self.shared = alpha, weight, shared

    def forward(self, *features: Any) -> Tensor:
        """What is served: logits (B,). Nothing of the teacher is computed."""
        return self.serving(self._trunk(*features)).squeeze(1)

    def heads(self, *features: Any) -> Heads:
        """All heads' logits, for training."""
        x = self._trunk(*features)
        from_teacher = self.scale(x)
        serving = self.serving(x).squeeze(1)
        distilled = serving if self.shared else self.distilled(from_teacher).squeeze(1)
        return Heads(serving, distilled, None if self.adapted is None else self.adapted(from_teacher).squeeze(1))

    def _trunk(self, *features: Any) -> Tensor:
        """What the backbone gives. Raises ValueError if that is not (B, width)."""
        x = self.backbone(*features)
        if x.dim() != 2 or x.shape[1] != self.serving.in_features:
            raise ValueError(f"the backbone gives {tuple(x.shape)}; expected (rows, width {self.serving.in_features})")
        return x

    def loss(self, heads: Heads, labels: Tensor, soft: Tensor, scored: Tensor, target: Tensor | None = None) -> Tensor:
        """L_ah, and the adapter's term where there is a `target`; means over the rows.

        labels, soft (the teacher's probabilities, not its logits), target: (B,), floats. scored: (B,) bool; a row
        without a score adds its label's loss alone, whatever its `soft` and `target` hold.
        """
        loss = binary_cross_entropy_with_logits(heads.serving, labels)
        wanted = (self.alpha * soft).clamp(0, 1)
        loss = loss + self.weight * masked(heads.distilled, wanted, scored)
        if target is not None:
            if heads.adapted is None:
                raise ValueError("there is no head for the adapter's targets: make it with adapter_head=True")
            loss = loss + masked(heads.adapted, target, scored)
        return loss


def masked(logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """The cross-entropies of some rows, summed, over the number of all rows. Other rows' targets may be NaN."""
    losses = binary_cross_entropy_with_logits(logits, torch.where(rows, targets, 0), reduction="none")
    return torch.where(rows, losses, 0).mean()
