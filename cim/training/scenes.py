"""Scenes whose truth is known: instances that are surely one, pasted beside and over others of their class.

Tags never say whether a mask holds one instance or two, so what CIM mines from photos cannot teach it. Photos where a
trained network is sure of a single instance are many; its masks, pasted side by side on photos without the class
(Cut, Paste and Learn, ICCV 2017; Simple Copy-Paste, CVPR 2021), give touching and hidden instances with exact masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cim.core.regions import RegionSet
from cim.core.types import SceneTruth
from cim.mining.groups import member_strength

_LONG_SIDE = 500  # of a scene, pixels
_LEAST_SIDE = 8  # of a pasted instance, pixels
_THREE = 0.4  # chance of three instances instead of two
_AREA = {2: (0.05, 0.22), 3: (0.05, 0.14)}  # of one instance, share of the scene, by their number
_SIZES = (0.85, 1.2)  # linear scale of one instance against the others
_STEP = (0.5, 1.02)  # from one centre to the next, in mean widths: below 1 they hide each other or touch
_SEEN, _SEEN_AREA = 0.45, 0.01  # least share of an instance, and of the scene, that must stay to be seen
_BORDER = 2  # pixels


@dataclass(frozen=True)
class CertainOptions:
    """When a photo's best mask counts as one whole instance.

    Attributes:
        score: its least score.
        apart: most that a separate region of the class may score, as a share of it (a second instance).
        members: most that two separate regions inside it may score (:func:`cim.mining.groups.member_strength`).
        borders: most sides of the photo that it may touch.
        min_area, max_area: shares of the photo.
    """

    score: float = 0.3
    apart: float = 0.1
    members: float = 0.1
    borders: int = 1
    min_area: float = 0.03
    max_area: float = 0.6


_DEFAULT = CertainOptions()


def certain_instance(regions: RegionSet, score: np.ndarray, options: CertainOptions = _DEFAULT) -> int | None:
    """The proposal that is surely one instance of a class and the only one in the photo; None where none is.

    Args:
        regions: N proposals of a photo with this one tag.
        score: float [N], of the class.
    """
    if not len(score) or score.max() < max(options.score, 1e-9):
        return None
    best, shared = int(score.argmax()), regions.intersections(regions.members)
    areas, size = regions.areas, regions.size
    x1, y1, x2, y2 = regions.boxes[best]
    borders = sum((x1 < _BORDER, y1 < _BORDER, x2 > size[1] - _BORDER, y2 > size[0] - _BORDER))
    share = areas[best] / (size[0] * size[1])
    elsewhere = shared[best] < 0.2 * np.minimum(areas, areas[best])
    certain = (
        borders <= options.borders
        and options.min_area <= share <= options.max_area
        and score[elsewhere].max(initial=0) <= options.apart * score[best]
        and member_strength(score, shared)[best] <= options.members
    )
    return best if certain else None


class Cutout(NamedTuple):
    """An instance without its photo: pixels uint8 [h, w, 3] and mask bool [h, w]."""

    pixels: np.ndarray
    mask: np.ndarray


def cut_out(photo: np.ndarray, mask: np.ndarray) -> Cutout:
    """The largest connected part of a mask bool [H, W] and its pixels of the photo uint8 [H, W, 3]."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y, width, height = cv2.boundingRect(largest.astype(np.uint8))
    window = slice(y, y + height), slice(x, x + width)
    return Cutout(np.ascontiguousarray(photo[window]), np.ascontiguousarray(largest[window]))


def compose(
    background: np.ndarray, cutouts: list[Cutout], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """A scene: the instances in a row, each beside or over the last.

    Args:
        background: photo without the class, uint8 [H, W, 3].
        cutouts: instances of one class to draw from, at least one.
        rng: decides everything.

    Returns:
        uint8 [h, w, 3], long side 500 pixels, and int32 [h, w], 0 or the number of the instance that is seen there;
        None when the draw leaves too little of one: draw again.
    """
    scale = _LONG_SIDE / max(background.shape[:2])
    scene = cv2.resize(background, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    height, width = scene.shape[:2]
    labels = np.zeros((height, width), np.int32)
    count = 3 if rng.random() < _THREE else 2
    chosen = rng.choice(len(cutouts), count, replace=len(cutouts) < count)
    area, side = height * width * rng.uniform(*_AREA[count]), rng.choice([-1, 1])
    last: tuple[float, float, int, int] | None = None
    whole = []
    for number, index in enumerate(chosen, 1):
        pixels, alpha = _fitted(cutouts[index], area, (height, width), rng)
        h, w = alpha.shape
        if last is None:
            x = width * (rng.uniform(0.2, 0.45) if side > 0 else rng.uniform(0.55, 0.8))
            y = height * rng.uniform(0.4, 0.65)
        else:
            x = last[0] + side * (last[2] + w) / 2 * rng.uniform(*_STEP)
            y = last[1] + rng.uniform(-0.15, 0.15) * height + (last[3] - h) / 4
        last = x, y, w, h
        if not _paste(scene, labels, number, pixels, alpha, round(x - w / 2), round(y - h / 2)):
            return None
        whole.append(np.count_nonzero(alpha > 0.5))
    seen = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    if (seen < _SEEN * np.array(whole)).any() or (seen < _SEEN_AREA * labels.size).any():
        return None
    return scene, labels


def scene_truth(regions: RegionSet, labels: np.ndarray) -> SceneTruth:
    """Overlaps of proposals with the instances of :func:`compose`'s label map int32 [h, w]."""
    masks = labels == np.arange(1, labels.max() + 1)[:, None, None]
    shared = regions.project(masks) @ regions.members.T.astype(np.float64)
    areas = masks.sum((1, 2))[:, None]
    iou = shared / np.maximum(areas + regions.areas - shared, 1)
    return SceneTruth(iou.astype(np.float32), (shared / areas).astype(np.float32))


def _fitted(
    cutout: Cutout, area: float, frame: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and alpha float32 0..1 of an instance of about that many pixels, mirrored or not, inside the frame."""
    pixels, mask = cutout
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    scale = (area / max(mask.sum(), 1)) ** 0.5 * rng.uniform(*_SIZES)
    scale = min(scale, 0.95 * frame[0] / mask.shape[0], 0.8 * frame[1] / mask.shape[1])
    size = tuple(max(int(length * scale), _LEAST_SIDE) for length in mask.shape[::-1])
    alpha = cv2.resize(np.ascontiguousarray(mask, np.float32), size, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA), alpha


def _paste(
    scene: np.ndarray, labels: np.ndarray, number: int, pixels: np.ndarray, alpha: np.ndarray, x: int, y: int
) -> bool:
    """Lay an instance over the scene with its corner at (x, y); False, and nothing done, when it is nearly outside."""
    (height, width), (h, w) = labels.shape, alpha.shape
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left < _LEAST_SIDE or bottom - top < _LEAST_SIDE:
        return False
    window = slice(top, bottom), slice(left, right)
    inner = slice(top - y, bottom - y), slice(left - x, right - x)
    soft = cv2.GaussianBlur(alpha, (3, 3), 0)[inner][..., None]
    scene[window] = (scene[window] * (1 - soft) + pixels[inner] * soft).astype(np.uint8)
    labels[window][alpha[inner] > 0.5] = number
    return True
