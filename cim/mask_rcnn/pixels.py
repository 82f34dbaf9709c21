"""Pixels of Mask R-CNN: sizes, boxes of masks, tensors."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


def target_size(size: tuple[int, int], min_side: int, max_side: int) -> tuple[int, int]:
    """(h, w) with the short side at ``min_side`` unless the long one would exceed ``max_side``; torchvision's rule."""
    scale = min(min_side / min(size), max_side / max(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def mask_boxes(masks: np.ndarray, smallest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 [n, 4], xyxy, exclusive, of masks uint8 [n, h, w]; which have sides of ``smallest`` pixels."""
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    y1, x1 = rows.argmax(1), columns.argmax(1)
    y2, x2 = masks.shape[1] - rows[:, ::-1].argmax(1), masks.shape[2] - columns[:, ::-1].argmax(1)
    boxes = np.stack([x1, y1, x2, y2], 1).astype(np.float32)
    good = rows.any(1) & (x2 - x1 >= smallest) & (y2 - y1 >= smallest)
    return boxes, good


def resized(array: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """``array`` [h, w] or [h, w, 3] at ``size`` (h, w); ``how``: OpenCV's interpolation."""
    if tuple(array.shape[:2]) == tuple(size):
        return array
    return cv2.resize(array, (int(size[1]), int(size[0])), interpolation=how)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] -> float32 [3, h, w], 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
