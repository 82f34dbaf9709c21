"""Photos of a label file as what Mask R-CNN is trained on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.types import Rle
from cim.labels.label_files import labels_root, read_labels
from cim.mask_rcnn.pixels import as_tensor, mask_boxes, resized, target_size
from cim.models.mask_rcnn import UNKNOWN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo with its instances, and areas where nothing is known.

    Attributes:
        rles: compressed run lengths; labels: 1..C, or :data:`cim.models.mask_rcnn.UNKNOWN`; weights: 0..1.
        certain: which are surely one whole instance (:func:`cim.training.scenes.certain_instance`).
    """

    image_id: int | str
    path: Path
    rles: tuple[Rle, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    certain: tuple[bool, ...] = ()

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3].

        Raises:
            CimError: the photo is missing or damaged, or not of the size that the labels say.
        """
        pixels, size = read_photo(self.path), self.rles[0]["size"]
        if list(pixels.shape[:2]) != list(size):
            found = list(pixels.shape[:2])
            raise CimError("photo of another size than its labels", path=self.path, expected=size, found=found)
        return pixels


@dataclass(frozen=True)
class LabelSource:
    """Photos of a label file, resized, half of them mirrored.

    Attributes:
        weighted: give instances their weights.
    """

    photos: tuple[LabelledPhoto, ...]
    min_side: int
    max_side: int
    flip: bool = True
    weighted: bool = False

    def __len__(self) -> int:
        return len(self.photos)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """``image_id``, ``image`` float32 [3, h, w] 0..1, ``target`` as torchvision wants it; None when no instance
        is left after resizing.

        Raises:
            CimError: see :meth:`LabelledPhoto.pixels`.
        """
        photo = self.photos[index]
        pixels = photo.pixels()
        flip = self.flip and bool(rng.random() < 0.5)
        size = target_size(pixels.shape[:2], self.min_side, self.max_side)
        masks = np.stack([resized(coco_mask.decode(rle), size, cv2.INTER_NEAREST) for rle in photo.rles])
        pixels = resized(pixels, size, cv2.INTER_AREA if size[0] < pixels.shape[0] else cv2.INTER_LINEAR)
        return as_sample(photo.image_id, pixels, masks, photo.labels, photo.weights if self.weighted else None, flip)


def as_sample(
    image_id: int | str,
    pixels: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[int],
    weights: Sequence[float] | None,
    flip: bool,
) -> dict[str, Any] | None:
    """What :meth:`LabelSource.sample` gives, from uint8 [h, w, 3] and masks uint8 [n, h, w]; ``flip``: mirrored."""
    if flip:
        pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
    boxes, good = mask_boxes(masks)
    if not (good & (np.asarray(labels) != UNKNOWN)).any():
        return None
    chosen = torch.from_numpy(good)
    target = {
        "boxes": torch.from_numpy(boxes[good]),
        "labels": torch.tensor(labels)[chosen],
        "masks": torch.from_numpy(np.ascontiguousarray(masks[good])),
    }
    if weights is not None:
        target["weights"] = torch.tensor(weights, dtype=torch.float32)[chosen]
    return {"image_id": image_id, "image": as_tensor(pixels), "target": target}


def open_labels(
    path: str | Path, images: str | Path | None = None
) -> tuple[tuple[LabelledPhoto, ...], tuple[str, ...]]:
    """Photos that have instances, and the class names, from COCO json.

    Crowds become areas where nothing is known. Instances without pixels are left out, and so are photos without
    instances: that nothing was found there does not say that nothing is. ``weight``, else ``score`` (else 1) becomes
    the weight.

    Args:
        images: folder of the photos; None: what the file says (``info.image_root``, relative to itself), else its own.

    Raises:
        CimError: damaged file, no usable instance, photos that are not there (how many, and the first).
    """
    content = read_labels(path)
    root = Path(images) if images else labels_root(content, path)
    classes = sorted(content["categories"], key=lambda c: c["id"])
    number = {c["id"]: k for k, c in enumerate(classes, 1)}
    members: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    left_out: Counter[str] = Counter()
    for line in content["annotations"]:
        if coco_mask.area(line["segmentation"]):
            members[line["image_id"]].append(line)
        else:
            left_out["without pixels"] += 1
    photos = tuple(
        LabelledPhoto(
            image["id"],
            root / image["file_name"],
            tuple(a["segmentation"] for a in members[image["id"]]),
            tuple(UNKNOWN if a["iscrowd"] else number[a["category_id"]] for a in members[image["id"]]),
            tuple(float(min(max(a.get("weight", a["score"]), 0.0), 1.0)) for a in members[image["id"]]),
            tuple(bool(a.get("certain", False)) for a in members[image["id"]]),
        )
        for image in content["images"]
        if not all(a["iscrowd"] for a in members[image["id"]])
    )
    _check_photos(photos, path, root)
    _tell(photos, [c["name"] for c in classes], len(content["images"]), left_out)
    return photos, tuple(str(c["name"]) for c in classes)


def _check_photos(photos: Sequence[LabelledPhoto], path: str | Path, root: Path) -> None:
    if not photos:
        raise CimError("no usable instance in these labels", path=path, expected="masks with pixels that are no crowds")
    outside = [photo.path for photo in photos if ".." in photo.path.parts[len(root.parts) :]]
    if outside:
        raise CimError("photo outside the images folder", path=path, found=outside[0], expected=f"below {root}")
    missing = [photo.path for photo in photos if not photo.path.is_file()]
    if missing:
        raise CimError(
            f"{len(missing)} of {len(photos)} labelled photos are missing, the first",
            path=missing[0],
            expected=f"photos under {root}",
            fix="--images FOLDER",
        )


def _tell(photos: Sequence[LabelledPhoto], classes: Sequence[str], images: int, left_out: Counter[str]) -> None:
    counts = Counter(label for photo in photos for label in photo.labels)
    unknown = counts.pop(UNKNOWN, 0)
    logger.info("%d instances on %d of %d photos", sum(counts.values()), len(photos), images)
    if unknown:
        logger.info("%d areas where nothing is known (iscrowd), never background", unknown)
    for what, count in left_out.items():
        logger.warning("%d annotations left out: %s", count, what)
    without = [name for k, name in enumerate(classes, 1) if not counts[k]]
    if without:
        logger.warning("classes without any label, which will never be found: %s", ", ".join(without))
