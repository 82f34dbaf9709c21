"""From proposal features to the scores of all branches (METHOD section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cim.core.types import RoiScores


class Predictor(nn.Module):
    """The anti-noise branch (``cls``, ``det``) and K refinement branches (``refine_cls``, ``refine_iou``), all linear.

    Args:
        width: of the proposal features.
        num_classes: C, without background.
        refinements: K.
    """

    def __init__(self, width: int, num_classes: int, refinements: int = 3) -> None:
        super().__init__()

        def linear() -> nn.Linear:
            layer = nn.Linear(width, num_classes + 1)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
            return layer

        self.cls, self.det = linear(), linear()
        self.refine_cls = nn.ModuleList(linear() for _ in range(refinements))
        self.refine_iou = nn.ModuleList(linear() for _ in range(refinements))

    def forward(self, features: Tensor) -> RoiScores:
        """[N, width] -> float32 scores, whatever the autocast mode."""
        return RoiScores(
            cls=self.cls(features).float().softmax(1),
            det=self.det(features).float().softmax(0),
            refine_cls=torch.stack([layer(features) for layer in self.refine_cls]).float().softmax(2),
            refine_iou=torch.stack([layer(features) for layer in self.refine_iou]).float().sigmoid(),
        )
