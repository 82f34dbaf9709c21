"""The MaskFuse head: what lies inside a proposal's mask, seen beside what lies in its box (METHOD section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cim.core.regions import GRID
from cim.core.types import Sample
from cim.models.roi_align import Backend, check_backend, roi_align


class MaskFuse(nn.Module):
    """RoIAlign, fusion with the 7x7 mask grid, two fully connected layers.

    Args:
        channels: D of the trunk.
        stride: of the trunk, pixels.
        hidden: width of the fully connected layers and of the result.
        backend: of RoIAlign.
    """

    def __init__(self, channels: int, stride: int, hidden: int = 4096, backend: Backend = "torchvision") -> None:
        super().__init__()
        check_backend(backend)
        self.stride, self.width, self.backend = stride, hidden, backend
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.fc1 = nn.Linear(channels * GRID * GRID, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor, sample: Sample) -> Tensor:
        """Features of every proposal.

        Args:
            features: floating [1, D, h, w].
            sample: its boxes and grids are used.

        Returns:
            [N, hidden].
        """
        box = roi_align(features, sample.boxes, self.stride, self.backend)
        inside = box * sample.grids[:, None].to(box.dtype)
        fused = functional.relu(self.fuse(torch.cat([box, inside], 1)))
        return functional.relu(self.fc2(functional.relu(self.fc1(fused.flatten(1)))))
