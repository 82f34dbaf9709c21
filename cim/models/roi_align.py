"""RoIAlign as METHOD section 4 wants it, by torchvision or by mmcv."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from cim.core.errors import CimError
from cim.core.regions import GRID

Backend = Literal["torchvision", "mmcv"]


def check_backend(backend: Backend) -> None:
    """Refuse early what :func:`roi_align` could not do later.

    Raises:
        CimError: mmcv asked for but not installed with its compiled operators.
    """
    if backend == "mmcv":
        try:
            import mmcv.ops  # noqa: F401
        except ImportError as error:
            fix = "pip install 'cim[mmcv]', or set model.roi_align=torchvision"
            raise CimError("mmcv's RoIAlign is not installed", found=str(error), fix=fix) from error


def roi_align(features: Tensor, boxes: Tensor, stride: int, backend: Backend = "torchvision") -> Tensor:
    """Average of bilinear samples in a 7x7 raster over every box, half-pixel aligned, as many as the box needs.

    Args:
        features: floating [1, D, h, w], one image.
        boxes: float32 [N, 4], xyxy in pixels of the image the features were computed from.
        stride: pixels per feature step.
        backend: both give the same numbers.

    Returns:
        [N, D, 7, 7].
    """
    kind = torch.promote_types(features.dtype, torch.float32)  # 16 bits would move a box by whole pixels
    rois, wide = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1).to(kind), features.to(kind)
    if backend == "mmcv":
        from mmcv.ops import roi_align as mmcv_roi_align

        return mmcv_roi_align(wide, rois, (GRID, GRID), 1 / stride, 0, "avg", True).to(features.dtype)
    return torchvision_roi_align(wide, rois, GRID, 1 / stride, sampling_ratio=0, aligned=True).to(features.dtype)
