"""Writing COCO json with masks: used by the tools that make annotations, never by training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.run_lengths import as_text
from cim.core.types import Rle


def encode(mask: np.ndarray) -> Rle:
    """Compressed COCO run lengths (``size`` [H, W], ``counts`` str) of a bool mask [H, W]."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": as_text(rle["counts"])}


def image_entry(image_id: int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """An entry of ``images``; size is (H, W)."""
    return {"id": image_id, "file_name": file_name, "height": int(size[0]), "width": int(size[1])}


def instance_entry(image_id: int, category_id: int, mask: np.ndarray) -> dict[str, Any]:
    """An entry of ``annotations`` without its id, from a bool mask [H, W] with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "image_id": image_id,
        "category_id": int(category_id),
        "segmentation": encode(mask),
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 0,
    }


def document(classes: Sequence[str], images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole json; categories are 1..C and annotations are numbered from 1."""
    categories = [{"id": number, "name": name, "supercategory": "none"} for number, name in enumerate(classes, 1)]
    numbered = [{"id": number, **entry} for number, entry in enumerate(annotations, 1)]
    return {"images": images, "annotations": numbered, "categories": categories}
