"""Proposals from Segment Anything (1, 2 or 3) through Hugging Face transformers: trained on a billion masks.

Better than grouping, but no longer learnt from tags alone: docs/PROPOSALS.md says what that means for a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.proposals.frame import enlarge, shrink
from cim.proposals.sam_network import SamNetwork, load_sam

_SIDE = 1024  # SAM's own input; a larger photo would only make its masks larger, 200 at a time


@dataclass(frozen=True)
class SamOptions:
    """Settings of :class:`SamProposer`.

    Attributes:
        max_proposals: the best n are kept.
        grid: points along each side of a regular grid over the photo; 0: none.
        points_per_batch: prompt points decoded together; less needs less memory.
        iou_threshold, stability_threshold: masks that the model itself trusts less are dropped.
        box_iou: of two masks whose boxes overlap by more, the better one stays; Segment Anything's own rule.
        min_area, max_area: size limits, fractions of the picture.
    """

    max_proposals: int = 1000
    grid: int = 32
    points_per_batch: int = 32
    iou_threshold: float = 0.7
    stability_threshold: float = 0.85
    box_iou: float = 0.7
    min_area: float = 0.0008
    max_area: float = 0.9


_DEFAULT = SamOptions()


class SamProposer:
    """Masks of a photo; call it with uint8 [H, W, 3] and, beside the grid's, points of one's own.

    Args:
        checkpoint: name on the Hugging Face hub ("facebook/sam-vit-base", "facebook/sam2.1-hiera-tiny",
            "facebook/sam3") or a folder written by ``save_pretrained``.
        options: see :class:`SamOptions`.
        device: torch device.

    Raises:
        CimError: no checkpoint named, transformers is not installed, or the checkpoint cannot be loaded.
    """

    def __init__(self, checkpoint: str | Path | None, options: SamOptions = _DEFAULT, device: str = "cpu") -> None:
        if not checkpoint:
            raise CimError("SAM needs a checkpoint", fix="--checkpoint facebook/sam-vit-base (or a folder)")
        self.options = options
        self._network = load_sam(str(checkpoint), device)

    def __call__(self, photo: np.ndarray, points: np.ndarray | None = None) -> RegionSet:
        """At most ``max_proposals`` regions in the photo's frame, best first; scores are SAM's own IoU estimates.

        Args:
            points: float [P, 2], x and y as fractions of the photo; prompts beside the grid's.

        Raises:
            CimError: no GPU memory.
        """
        small, prompts = shrink(photo, _SIDE), grid_points(self.options.grid)
        if points is not None:
            prompts = np.concatenate([points, prompts])
        try:
            regions = _propose(self._network, small, prompts, self.options)
        except torch.cuda.OutOfMemoryError as error:
            fix = "use a smaller checkpoint, or the CPU"
            raise CimError("SAM ran out of GPU memory", found=f"photo {list(photo.shape)}", fix=fix) from error
        return RegionSet(enlarge(regions.atoms, photo.shape[:2]), regions.members, regions.scores)


def grid_points(side: int) -> np.ndarray:
    """Middles of side x side equal rectangles: float64 [side * side, 2], x and y as fractions of a photo."""
    middles = (np.arange(side) + 0.5) / max(side, 1)
    return np.stack([axis.ravel() for axis in np.meshgrid(middles, middles)], 1)


def _propose(network: SamNetwork, photo: np.ndarray, prompts: np.ndarray, options: SamOptions) -> RegionSet:
    size, found = photo.shape[:2], []
    if len(prompts):
        looked = network.look(photo)
        for start in range(0, len(prompts), options.points_per_batch):
            logits, scores = network.answer(looked, prompts[start : start + options.points_per_batch])
            trusted = scores > options.iou_threshold
            if trusted.any():
                found.append(_sound(network.enlarge(looked, logits[trusted]), scores[trusted], options))
    if not any(len(scores) for _, _, scores in found):
        return RegionSet(np.zeros(size, np.int32), np.zeros((0, 1), bool))
    scores = torch.cat([scores for _, _, scores in found])
    kept = nms(torch.cat([boxes for _, boxes, _ in found]), scores, options.box_iou).numpy()[: options.max_proposals]
    bits = np.concatenate([bits for bits, _, _ in found])[kept]
    masks = np.unpackbits(bits, axis=1, count=size[0] * size[1]).view(bool).reshape(-1, *size)
    return RegionSet.from_masks(masks, scores.numpy()[kept])


def _sound(logits: Tensor, scores: Tensor, options: SamOptions) -> tuple[np.ndarray, Tensor, Tensor]:
    """Those of the masks [n, H, W] that hardly change with the threshold, within the size limits.

    Returns:
        their pixels as bits, since there may be thousands, uint8 [m, bytes]; boxes float32 [m, 4]; scores [m].
    """
    masks = logits > 0
    share = masks.float().mean((1, 2))
    stability = (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2))
    good = (share > 0) & (stability > options.stability_threshold)
    good &= (share >= options.min_area) & (share <= options.max_area)
    masks, scores = masks[good].cpu(), scores[good].cpu()
    return np.packbits(masks.flatten(1).numpy(), axis=1), masks_to_boxes(masks), scores
