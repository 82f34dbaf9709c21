"""Pixels of Mask R-CNN: sizes, boxes of masks, tensors, and what it found as masks of the photo. Opens no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cim.core.run_lengths import as_text
from cim.core.types import Instances, Rle

if TYPE_CHECKING:
    from torch import Tensor

_LARGE = 1600  # long side in pixels; larger photos are shrunk with care before the network shrinks them without
_NARROWEST = 32  # long side over short side; still narrower photos are widened for the network


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
    import torch  # also those who run an ONNX file come here, and may have none

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def for_network(photo: np.ndarray) -> np.ndarray:
    """A photo uint8 [H, W, 3] as the network takes it: as it is, unless it is very large or very narrow."""
    size = photo.shape[:2]
    shrink = min(1.0, _LARGE / max(size))
    least = math.ceil(max(size) * shrink / _NARROWEST)  # the network shrinks photos once more
    if shrink == 1 and min(size) >= least:
        return photo
    height, width = (max(least, round(side * shrink)) for side in size)
    return resized(photo, (height, width), cv2.INTER_AREA)


def found_instances(
    boxes: np.ndarray,
    class_ids: np.ndarray,
    scores: np.ndarray,
    masks: np.ndarray,
    seen: tuple[int, int],
    size: tuple[int, int],
    tags: Sequence[int] | None,
    threshold: float,
) -> Instances:
    """What the network found on one photo, best first, boxes those of the masks.

    Args:
        boxes: float [n, 4], xyxy, in the frame of the photo that the network saw.
        class_ids: int [n], 0..C-1.
        scores: float [n], falling.
        masks: float [n, s, s], 0..1, spread over the boxes.
        seen: (h, w) of that photo; size: (H, W) of the original.
        tags: only these classes; None: all.
        threshold: only what scores more.
    """
    keep = scores > threshold
    if tags is not None:
        keep &= np.isin(class_ids, list(tags))
    scale = np.array([size[1] / seen[1], size[0] / seen[0]] * 2)
    kept: list[int] = []
    rles: list[Rle] = []
    tight: list[np.ndarray] = []
    for n in np.flatnonzero(keep).tolist():
        mask = pasted(masks[n], boxes[n] * scale, size)
        box, good = mask_boxes(mask[None], smallest=1)
        if good[0]:
            rle = coco_mask.encode(np.asfortranarray(mask))
            rles.append({"size": [int(s) for s in size], "counts": as_text(rle["counts"])})
            kept.append(n)
            tight.append(box[0])
    index = np.array(kept, np.int64)
    return Instances(
        image_id="photo",
        size=(int(size[0]), int(size[1])),
        class_ids=class_ids[index].astype(np.int64),
        score=scores[index].astype(np.float32),
        boxes=np.array(tight, np.float32).reshape(-1, 4),
        rles=rles,
        proposal=np.full(len(kept), -1, np.int64),
    )


def pasted(soft: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask float [s, s] spread over its box (xyxy) in a photo of ``size`` (H, W), cut at one half: uint8 [H, W].

    Torchvision's ``paste_masks_in_image`` for one mask, without a float for every pixel of the photo.
    """
    side = soft.shape[0]
    centre, half = (
        (box[2:] + box[:2]) / 2,
        (box[2:] - box[:2]) / 2 * (side + 2) / side,
    )  # a rim of zeros around the mask
    x1, y1, x2, y2 = (int(edge) for edge in (*(centre - half), *(centre + half)))
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    spread = cv2.resize(np.pad(soft.astype(np.float32), 1), (width, height), interpolation=cv2.INTER_LINEAR)
    rows = slice(max(y1, 0), min(y2 + 1, size[0]))
    columns = slice(max(x1, 0), min(x2 + 1, size[1]))
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = spread[rows.start - y1 : rows.stop - y1, columns.start - x1 : columns.stop - x1] >= 0.5
    return mask
