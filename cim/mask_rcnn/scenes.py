"""Scenes whose truth is known for Mask R-CNN: certain labels, pasted beside and over others of their class.

What a label file calls one instance is often two, so a detector trained on it learns to merge. Labels that are surely
one whole instance are pasted side by side on photos without their class, anew every time (Simple Copy-Paste, CVPR 2021,
and :mod:`cim.training.scenes`, which says how); what the photo itself shows is no background, and is not learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cim.mask_rcnn.pixels import resized, target_size
from cim.mask_rcnn.source import LabelledPhoto, LabelSource, as_sample
from cim.models.mask_rcnn import UNKNOWN
from cim.training.scenes import Cutout, compose, cut_out

_DRAWS = 20  # of one scene
_MOST = 3  # instances of a scene


@dataclass(frozen=True)
class PastedScenes:
    """A new scene every time; as many as there are photos in a round.

    Attributes:
        labels: the photos, and how they are resized.
        certain: by class 1..C, (photo, instance) of the labels to paste; at least two of each.
    """

    labels: LabelSource
    certain: dict[int, tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, labels: LabelSource) -> PastedScenes | None:
        """None when no class has two certain labels."""
        found: dict[int, list[tuple[int, int]]] = {}
        for n, photo in enumerate(labels.photos):
            for k in np.flatnonzero(photo.certain):
                found.setdefault(photo.labels[k], []).append((n, int(k)))
        found.pop(UNKNOWN, None)
        several = {label: tuple(pairs) for label, pairs in sorted(found.items()) if len(pairs) > 1}
        return cls(labels, several) if several else None

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """As :meth:`cim.mask_rcnn.source.LabelSource.sample`, all drawn from ``rng``; a class comes in proportion to
        the root of how many certain labels it has. None when no draw succeeds.

        Raises:
            CimError: see :meth:`cim.mask_rcnn.source.LabelledPhoto.pixels`.
        """
        labels, photos = self.labels, self.labels.photos
        classes = list(self.certain)
        chance = np.array([len(self.certain[label]) for label in classes]) ** 0.5
        for _ in range(_DRAWS):
            label = classes[int(rng.choice(len(classes), p=chance / chance.sum()))]
            ground = photos[int(rng.integers(len(photos)))]
            if label in ground.labels:
                continue
            pairs = self.certain[label]
            drawn = rng.choice(len(pairs), min(_MOST, len(pairs)), replace=False)
            cutouts = [_cutout(photos[n], k) for n, k in (pairs[i] for i in drawn)]
            made = compose(ground.pixels(), cutouts, rng)
            if made is None:
                continue
            scene, numbers = made
            size = target_size(scene.shape[:2], labels.min_side, labels.max_side)
            pasted = resized(numbers.astype(np.float32), size, cv2.INTER_NEAREST)
            masks = (pasted == np.arange(1, numbers.max() + 1)[:, None, None]).astype(np.uint8)
            shown = np.stack([resized(coco_mask.decode(rle), size, cv2.INTER_NEAREST) for rle in ground.rles])
            known = [label] * len(masks) + [UNKNOWN] * len(shown)
            pixels = resized(scene, size, cv2.INTER_AREA if size[0] < scene.shape[0] else cv2.INTER_LINEAR)
            weights = [1.0] * len(known) if labels.weighted else None
            return as_sample("scene", pixels, np.concatenate([masks, shown * (pasted == 0)]), known, weights, False)
        return None


def _cutout(photo: LabelledPhoto, instance: int) -> Cutout:
    return cut_out(photo.pixels(), coco_mask.decode(photo.rles[instance]).astype(bool))
