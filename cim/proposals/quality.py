"""How good a set of proposals is, measured against annotated masks: recall, and what the set is made of.

The method stands or falls with both. Recall bounds what it can find. The composition says what it will find
instead: CIM takes the best-scored container of a seed (METHOD section 5), and where regions that hold an object plus
as much surroundings abound, the container is the scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.regions import RegionSet
from cim.core.types import Rle

COUNTS = (10, 30, 100, 300, 1000)
IOUS = (0.5, 0.7, 0.75)
KINDS = ("complete", "merge", "spill", "part", "background", "mixed")
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # pixels, upper ends; as COCO has them

_COMPLETE_IOU = 0.5
_HOLDS = 0.8  # of an object inside a region, or of a region inside an object
_SPILL = 2.0  # a region this many times its object holds as much surroundings again
_BACKGROUND = 0.1  # of a region on objects, at most


@dataclass(frozen=True)
class ImageQuality:
    """What was measured on one photo with M objects, for every count of :attr:`counts`.

    Attributes:
        counts: numbers of proposals.
        best: float64 [len(counts), M], best IoU of every object among the first n.
        class_ids: int64 [M], category id.
        areas: int64 [M], pixels.
        composition: int64 [len(counts), 6], how many of the first n are of each of :data:`KINDS`.
    """

    counts: tuple[int, ...]
    best: np.ndarray
    class_ids: np.ndarray
    areas: np.ndarray
    composition: np.ndarray


def measure(
    regions: RegionSet, masks: np.ndarray, class_ids: Sequence[int], counts: Sequence[int] = COUNTS
) -> ImageQuality:
    """Quality of one photo's proposals; the first n are the n of highest score (file order among equals).

    Args:
        masks: bool [M, H, W], the objects, H x W being the regions' frame.
        class_ids: M category ids.
    """
    order = np.argsort(-regions.scores, kind="stable")
    masks = np.asarray(masks, bool)
    members = regions.members[order].astype(np.float64).T
    objects = masks.sum((1, 2))
    areas = regions.areas[order]
    inter = regions.project(masks) @ members
    iou = inter / np.maximum(objects[:, None] + areas[None] - inter, 1)
    covered = (regions.project(np.asarray(masks.any(0))[None]) @ members)[0] if len(masks) else np.zeros(len(regions))
    kinds = classify(inter, iou, objects, areas, covered)
    best = [iou[:, :n].max(1, initial=0) for n in counts]
    composition = [np.bincount(kinds[:n], minlength=len(KINDS)) for n in counts]
    return ImageQuality(
        tuple(counts),
        np.array(best).reshape(len(counts), len(masks)),
        np.array(class_ids, np.int64),
        objects.astype(np.int64),
        np.array(composition),
    )


def classify(
    inter: np.ndarray, iou: np.ndarray, objects: np.ndarray, areas: np.ndarray, covered: np.ndarray
) -> np.ndarray:
    """The kind of every proposal, int64 [N], index into :data:`KINDS`; the first that fits.

    complete: IoU >= 0.5 with an object. merge: holds 80 % of two objects or more. spill: holds 80 % of an object and
    as much surroundings again. part: 80 % of it lies inside one object. background: less than 10 % of it lies on
    objects. mixed: the rest, pieces of an object with some surroundings.

    Args:
        inter, iou: [M, N], common pixels and IoU of objects and proposals.
        objects, areas: [M], [N], pixels.
        covered: [N], pixels of every proposal on any object.
    """
    holds = inter >= _HOLDS * objects[:, None]
    tests = (
        (iou >= _COMPLETE_IOU).any(0),
        holds.sum(0) >= 2,
        (holds & (areas[None] >= _SPILL * objects[:, None])).any(0),
        (inter >= _HOLDS * areas[None]).any(0),
        covered < _BACKGROUND * areas,
    )
    return np.select(tests, range(len(tests)), default=len(tests)).astype(np.int64)


def summarise(measured: Iterable[ImageQuality], names: dict[int, str]) -> dict[str, Any]:
    """Averages over all objects and all proposals of a data set.

    Args:
        measured: one entry per photo, all with the same counts.
        names: category name by id.

    Returns:
        ``images``, ``objects``; ``counts``: {n: {"abo", "recall@0.50", "recall@0.70", "recall@0.75", "proposals"
        (mean number found), "complete", "merge", ... (shares of all proposals)}}; ``per_class`` and ``per_size``:
        {name: {"objects", "counts": {n: {"abo", "recall@..."}}}}. Averages over nothing are None.
    """
    measured = list(measured)
    counts = measured[0].counts if measured else COUNTS
    best = np.concatenate([m.best for m in measured] or [np.zeros((len(counts), 0))], 1)
    class_ids = np.concatenate([m.class_ids for m in measured] or [np.zeros(0, np.int64)])
    areas = np.concatenate([m.areas for m in measured] or [np.zeros(0, np.int64)])
    composition = sum((m.composition for m in measured), np.zeros((len(counts), len(KINDS)), np.int64))
    rows = _recall(best, counts)
    for row, numbers in zip(rows.values(), composition, strict=True):
        row["proposals"] = float(numbers.sum() / len(measured)) if measured else None
        shares = numbers / max(numbers.sum(), 1)
        row |= {kind: float(share) if numbers.sum() else None for kind, share in zip(KINDS, shares, strict=True)}
    groups = {"per_class": {name: class_ids == key for key, name in names.items()}, "per_size": _by_size(areas)}
    return {
        "images": len(measured),
        "objects": len(class_ids),
        "counts": rows,
        **{
            group: {
                name: {"objects": int(chosen.sum()), "counts": _recall(best[:, chosen], counts)}
                for name, chosen in members.items()
            }
            for group, members in groups.items()
        },
    }


def decode_masks(rles: Sequence[Rle], size: tuple[int, int]) -> np.ndarray:
    """bool [M, H, W] from compressed COCO run lengths; [0, H, W] from none."""
    if not len(rles):
        return np.zeros((0, *size), bool)
    return np.moveaxis(coco_mask.decode(list(rles)), 2, 0).astype(bool)


def _recall(best: np.ndarray, counts: Sequence[int]) -> dict[int, dict[str, float | None]]:
    rows: dict[int, dict[str, float | None]] = {}
    for count, overlaps in zip(counts, best, strict=True):
        some = len(overlaps) > 0
        rows[count] = {"abo": float(overlaps.mean()) if some else None}
        rows[count] |= {f"recall@{iou:.2f}": float((overlaps >= iou).mean()) if some else None for iou in IOUS}
    return rows


def _by_size(areas: np.ndarray) -> dict[str, np.ndarray]:
    chosen: dict[str, np.ndarray] = {}
    low: float = 0
    for name, high in SIZES.items():
        chosen[name] = (areas >= low) & (areas < high)
        low = high
    return chosen
