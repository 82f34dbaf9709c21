"""Proposals from Segment Anything (1 or 2) through Hugging Face transformers: trained on a billion masks.

Better than grouping, but no longer learnt from tags alone: docs/PROPOSALS.md says what that means for a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.models.downloads import check_hub, refuse_offline
from cim.proposals.frame import enlarge, shrink

INSTALL = "pip install 'cim[sam]'"
_SIDE = 1024  # SAM's own input; a larger photo would only make its masks larger, 200 at a time


@dataclass(frozen=True)
class SamOptions:
    """Settings of :class:`SamProposer`.

    Attributes:
        max_proposals: the best n are kept.
        points_per_batch: prompt points decoded together; less needs less memory.
        iou_threshold, stability_threshold: masks that the model itself trusts less are dropped.
        crop_layers: 1 or more also looks at enlarged crops, for small objects; slower.
        min_area, max_area: size limits, fractions of the picture.
    """

    max_proposals: int = 1000
    points_per_batch: int = 32
    iou_threshold: float = 0.7
    stability_threshold: float = 0.85
    crop_layers: int = 0
    min_area: float = 0.0008
    max_area: float = 0.9


_DEFAULT = SamOptions()


class SamProposer:
    """Automatic masks of a photo; call it with uint8 [H, W, 3].

    Args:
        checkpoint: name on the Hugging Face hub ("facebook/sam-vit-base", "facebook/sam2.1-hiera-tiny") or a folder
            written by ``save_pretrained``.
        options: see :class:`SamOptions`.
        device: torch device.

    Raises:
        CimError: no checkpoint named, transformers is not installed, or the checkpoint cannot be loaded.
    """

    def __init__(self, checkpoint: str | Path | None, options: SamOptions = _DEFAULT, device: str = "cpu") -> None:
        if not checkpoint:
            raise CimError("SAM needs a checkpoint", fix="--checkpoint facebook/sam-vit-base (or a folder)")
        self.options = options
        self._pipeline = _load(str(checkpoint), device)

    def __call__(self, photo: np.ndarray) -> RegionSet:
        """At most ``max_proposals`` regions in the photo's frame, best first; scores are SAM's own IoU estimates."""
        options, small = self.options, shrink(photo, _SIDE)
        try:
            found = self._pipeline(
                Image.fromarray(small),
                points_per_batch=options.points_per_batch,
                pred_iou_thresh=options.iou_threshold,
                stability_score_thresh=options.stability_threshold,
                crops_n_layers=options.crop_layers,
            )
        except torch.cuda.OutOfMemoryError as error:
            fix = "use a smaller checkpoint, or the CPU"
            raise CimError("SAM ran out of GPU memory", found=f"photo {list(photo.shape)}", fix=fix) from error
        scores = np.array([float(score) for score in found["scores"]], np.float32)
        regions = _regions(found["masks"], scores, small.shape[:2], options)
        return RegionSet(enlarge(regions.atoms, photo.shape[:2]), regions.members, regions.scores)


def _load(checkpoint: str, device: str) -> Callable[..., dict[str, Any]]:
    try:
        from transformers import pipeline
    except ImportError:
        raise CimError("SAM proposals need the package transformers", fix=INSTALL) from None
    local = Path(checkpoint).is_dir()
    if not local:
        refuse_offline(f"the SAM checkpoint {checkpoint}", "give a folder that save_pretrained wrote")
    try:
        found = pipeline("mask-generation", model=checkpoint, device=device)
        if not local:
            check_hub(checkpoint)
        return found
    except CimError:
        raise
    except Exception as error:  # hub, network, json, key and value errors: all mean that it cannot be had
        reason = " ".join(str(error).split())[:160]
        raise CimError(
            "cannot load the SAM checkpoint",
            path=checkpoint,
            found=reason,
            fix=f"a hub name such as facebook/sam-vit-base, or a folder; newest models: {INSTALL} --upgrade",
        ) from error


def _regions(masks: list[Any], scores: np.ndarray, size: tuple[int, int], options: SamOptions) -> RegionSet:
    """Masks [H, W] each (arrays or tensors) within the size limits, best first."""
    order = np.argsort(-scores, kind="stable")
    areas = np.array([int(masks[i].sum()) for i in order], np.int64)
    share = areas / max(size[0] * size[1], 1)
    order = order[(share >= options.min_area) & (share <= options.max_area)][: options.max_proposals]
    if not len(order):
        return RegionSet(np.zeros(size, np.int32), np.zeros((0, 1), bool))
    return RegionSet.from_masks(np.stack([np.asarray(masks[i], bool) for i in order]), scores[order])
