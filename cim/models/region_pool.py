"""A light head for laptops: a proposal is what the trunk sees inside its mask, beside what it sees around it.

Instead of RoIAlign on every box, the share of every feature cell that a mask covers is one product over the atoms
(METHOD section 1), and the mean feature inside, and in a ring around, are two more. A box cannot tell an animal from
its surroundings; the ring can, which is what the score of a complete instance rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cim.core.types import Sample


class RegionPool(nn.Module):
    """Mean features inside and around every mask, then two fully connected layers.

    The trunk's features enter along few fixed axes, each with the same spread: on some hundred photos, many axes of a
    thousand deep channels cost a third of the mAP at IoU 0.75, and so does a learned projection (docs/RESULTS.md has
    both, measured). The axes are found by :meth:`calibrate`, before training.

    Args:
        parts: channels of the blocks that a trunk's features consist of, from shallow to deep; their sum is D.
        axes: how many principal axes of each block are kept; a block with no more channels than that stays as it is.
        hidden: width of the fully connected layers and of the result.
        ring: width of the ring, feature cells.
        dropout: share of the hidden units dropped in training.
    """

    axes: Tensor  # [D, d]
    centre: Tensor  # [2 d]
    spread: Tensor  # [2 d]

    def __init__(
        self, parts: Sequence[int], axes: Sequence[int], hidden: int = 512, ring: int = 2, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.parts, self.kept = tuple(parts), tuple(map(min, parts, axes))
        self.width, self.ring = hidden, ring
        pooled = 2 * sum(self.kept)
        first = [torch.eye(width, kept) for width, kept in zip(self.parts, self.kept, strict=True)]
        self.register_buffer("axes", torch.block_diag(*first))
        self.register_buffer("centre", torch.zeros(pooled))
        self.register_buffer("spread", torch.ones(pooled))
        self.fc1 = nn.Linear(pooled, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def calibrate(self, seen: Iterable[tuple[Tensor, Sample]], every: int = 4) -> None:
        """Find the axes on some images: principal ones of the features inside, all channels counting alike.

        Args:
            seen: feature map [1, D, h, w] and sample (atoms, members) of each image.
            every: look at one proposal of so many.
        """
        every_channel = torch.eye(sum(self.parts), device=self.axes.device)
        pooled = [self._pooled(features, sample, every_channel)[::every] for features, sample in seen]
        if sum(map(len, pooled)) < 2:
            return
        inside, around = torch.cat(pooled).chunk(2, 1)
        blocks = [_principal(part, kept) for part, kept in zip(inside.split(self.parts, 1), self.kept, strict=True)]
        self.axes.copy_(torch.block_diag(*blocks))
        along = torch.cat([inside @ self.axes, around @ self.axes], 1)
        spread = along.std(0)
        self.centre.copy_(along.mean(0))
        # few images vary along few axes; on a new one the others would be rounding errors, blown up
        self.spread.copy_(torch.where(spread > 1e-3, spread, torch.inf))

    def forward(self, features: Tensor, sample: Sample) -> Tensor:
        """Features of every proposal.

        Args:
            features: floating [1, D, h, w].
            sample: its atoms and members are used.

        Returns:
            [N, hidden].
        """
        return self.from_pooled(self.pooled(features, sample))

    def pooled(self, features: Tensor, sample: Sample) -> Tensor:
        """What the layers read: means along the axes, inside and around, [N, 2 d]. Nothing of it is trained."""
        return (self._pooled(features, sample, self.axes) - self.centre) / self.spread

    def from_pooled(self, pooled: Tensor) -> Tensor:
        """[N, 2 d] -> [N, hidden]."""
        hidden = self.dropout(functional.relu(self.fc1(pooled)))
        return self.dropout(functional.relu(self.fc2(hidden)))

    def _pooled(self, features: Tensor, sample: Sample, axes: Tensor) -> Tensor:
        """Means along the axes [D, d], inside and around: [N, 2 d]."""
        cells = features[0].flatten(1).T @ axes
        inside = cell_cover(sample.atoms, sample.members, features.shape[-2:])
        around = ring_cover(inside, self.ring)
        return torch.cat([_mean(inside.flatten(1), cells), _mean(around.flatten(1), cells)], 1)


def _principal(values: Tensor, kept: int) -> Tensor:
    """Matrix [D, kept] that takes values [P, D] to their ``kept`` principal axes; the identity for kept = D."""
    if kept == values.shape[1]:
        return torch.eye(kept, device=values.device)
    deviation = values.std(0).clamp_min(1e-3)
    _, vectors = torch.linalg.eigh(torch.cov((values / deviation).double().T))
    return vectors.flip(1)[:, :kept].to(values.dtype) / deviation[:, None]


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
