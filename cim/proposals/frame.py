"""Between a photo's full frame and the small one in which its regions are found."""

from __future__ import annotations

import cv2
import numpy as np

from cim.core.regions import nearest


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] with the long side brought down to ``side`` pixels; small pictures stay as they are."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels [h, w] in a frame (H, W) that is no smaller, nearest neighbour: int32 [H, W], no label is lost."""
    rows, columns = (nearest(new, old) for new, old in zip(size, labels.shape, strict=True))
    return labels.astype(np.int32)[rows[:, None], columns]
