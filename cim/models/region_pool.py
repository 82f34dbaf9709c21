"""A light head for laptops: a proposal is what the trunk sees inside its mask, beside what it sees around it.

Instead of RoIAlign on every box, the share of every feature cell that a mask covers is one product over the atoms
(METHOD section 1), and the mean feature inside, and in a ring around, are two more. A box cannot tell an animal from
its surroundings; the ring can, which is what the score of a complete instance rests on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cim.types import Sample


class RegionPool(nn.Module):
    """Mean features inside and around every mask, then two fully connected layers.

    Args:
        channels: D of the trunk.
        hidden: width of the fully connected layers and of the result.
        reduced: channels after a learned 1x1 convolution.
        ring: width of the ring, feature cells.
        dropout: share of the hidden units dropped in training.
    """

    def __init__(
        self, channels: int, hidden: int = 512, reduced: int = 256, ring: int = 2, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.width, self.ring = hidden, ring
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.fc1 = nn.Linear(2 * reduced, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def calibrate(self, maps: list[Tensor]) -> None:
        """Standardise the trunk's channels by their mean and deviation over some feature maps [1, D, h, w].

        Channels of an ImageNet trunk differ in scale by orders of magnitude, and the trunk is not trained.
        """
        cells = torch.cat([features[0].float().flatten(1) for features in maps], 1)
        self.mean.copy_(cells.mean(1))
        self.deviation.copy_(cells.std(1).clamp_min(1e-3))

    def forward(self, features: Tensor, sample: Sample) -> Tensor:
        """Features of every proposal.

        Args:
            features: floating [1, D, h, w].
            sample: its atoms and members are used.

        Returns:
            [N, hidden].
        """
        standard = (features - self.mean[:, None, None]) / self.deviation[:, None, None]
        cells = self.reduce(standard)[0].flatten(1).T
        inside = cell_cover(sample.atoms, sample.members, features.shape[-2:])
        around = ring_cover(inside, self.ring)
        pooled = torch.cat([_mean(inside.flatten(1), cells), _mean(around.flatten(1), cells)], 1)
        hidden = self.dropout(functional.relu(self.fc1(pooled)))
        return self.dropout(functional.relu(self.fc2(hidden)))


def cell_cover(atoms: Tensor, members: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Share of every feature cell that lies inside every proposal, float32 [N, h, w].

    Args:
        atoms: int [H, W], atom of every pixel of the image.
        members: bool [N, A].
        size: (h, w) of the feature map that spans the image.
    """
    rows, columns = (
        torch.arange(long, device=atoms.device) * short // long for long, short in zip(atoms.shape, size, strict=True)
    )
    cells = size[0] * size[1]
    cell = rows[:, None] * size[1] + columns
    count = torch.bincount((atoms.long() * cells + cell).flatten(), minlength=members.shape[1] * cells)
    count = count.view(members.shape[1], cells).float()
    share = count / count.sum(0).clamp_min(1)
    return (members.float() @ share).view(-1, *size)


def ring_cover(inside: Tensor, width: int) -> Tensor:
    """The cells within ``width`` of a proposal that it does not cover itself, float32 [N, h, w]."""
    grown = functional.max_pool2d(inside[:, None], 2 * width + 1, 1, width)[:, 0]
    return grown - inside


def _mean(weight: Tensor, cells: Tensor) -> Tensor:
    """Weighted mean of cells [P, D] for weights [N, P]; zeros where a weight has no support."""
    weight = weight.to(cells.dtype)
    return weight @ cells / weight.sum(1, keepdim=True).clamp_min(1e-6)
