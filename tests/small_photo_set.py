"""A few generated photos with annotated discs and a result file, as files on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

CLASSES = ("disc", "square")


def disc(size: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    """bool [H, W]."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def rle(mask: np.ndarray) -> dict:
    """COCO run lengths with counts as text."""
    coded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def write_photo_set(root: Path, photos: int = 4, size: tuple[int, int] = (90, 120)) -> dict[str, Path]:
    """Photos, annotations (two instances each; the last photo has none) and results under ``root``.

    Detections of photo k cover the annotated discs with a radius reduced by k pixels, so photo 0 is the best; every
    photo has one weak detection on empty ground as well.
    """
    rng = np.random.default_rng(0)
    images, annotations, results = [], [], []
    (root / "photos").mkdir(parents=True)
    for k in range(photos):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"photo_{k}.png")
        images.append({"id": 10 + k, "file_name": f"photo_{k}.png", "height": size[0], "width": size[1]})
        weak = {"image_id": 10 + k, "category_id": 3, "segmentation": rle(disc(size, 10, 60, 5)), "score": 0.05}
        results.append(weak)
        for category, x in ((3, 30), (7, 90)) if k < photos - 1 else ():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + k,
                    "category_id": category,
                    "segmentation": rle(disc(size, 45, x, 25)),
                    "iscrowd": 0,
                    "area": 1,
                }
            )
            found = rle(disc(size, 45, x, 25 - 3 * k))
            results.append({"image_id": 10 + k, "category_id": category, "segmentation": found, "score": 0.9 - 0.1 * k})
    categories = [{"id": 3, "name": CLASSES[0]}, {"id": 7, "name": CLASSES[1]}]
    paths = {"images": root / "photos", "annotations": root / "val.json", "results": root / "results.json"}
    content = {"images": images, "annotations": annotations, "categories": categories}
    paths["annotations"].write_text(json.dumps(content))
    paths["results"].write_text(json.dumps(results))
    return paths
