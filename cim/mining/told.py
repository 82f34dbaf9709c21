"""What is known of a photo (:mod:`cim.datasets.known`) in terms of its proposals, and the proposals that fit best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cim.core.regions import RegionSet
from cim.core.types import Rle
from cim.datasets.known import Known, Mark
from cim.mining.disjoint import STEPS, best_disjoint
from cim.mining.groups import APART

CANDIDATES = 100  # best proposals that may be the instances of a class; with 40 some photos lack one (docs/RESULTS.md)
BOUND = 0.3  # box IoU with a given box below which a proposal is not its instance
REJECTED = 0.7  # mask IoU with a deleted mask from which a proposal is taken for the same wrong thing
OTHERS = 1e-3  # factor on a proposal that holds another mark's point, too: taken where no other is left
LEAST = 1e-12  # of a score times a fit

Shares = Callable[[np.ndarray], np.ndarray]
"""Proposals [K] -> [K, K], what two of them share, as a part of the smaller one."""


@dataclass(frozen=True)
class Told:
    """What is known of a photo with N proposals, C classes and M marks.

    Attributes:
        numbers: int64 [C], how many instances of each class; -1: not known.
        class_ids: int64 [M], 0..C-1, of the marks.
        certain: bool [M], marks with a mask: no proposal is needed for them.
        fit: float32 [M, N], 0..1. Of a certain mark: mask IoU. Of another: how well the proposal may be its instance, 0
            where it may not: it holds the mark's points and no other mark's, its box is like the mark's.
        in_way: bool [M, N], proposals that share too much with a certain mark to be another instance.
        holds: bool [M, N], proposals that hold the mark: its points, or half of its mask.
        masks: compressed run lengths of the certain marks, in their order.
        barred: bool [C, N], proposals that are no instance of a class: like a mask of it that somebody deleted, and
            less like any of its certain masks.
    """

    numbers: np.ndarray
    class_ids: np.ndarray
    certain: np.ndarray
    fit: np.ndarray
    in_way: np.ndarray
    holds: np.ndarray
    barred: np.ndarray
    masks: tuple[str, ...] = ()

    def select(self, rows: np.ndarray) -> Told:
        """Of the proposals at ``rows``, int64 [n]."""
        columns = {name: getattr(self, name)[:, rows] for name in ("fit", "in_way", "holds", "barred")}
        return replace(self, **columns)

    @property
    def merged(self) -> np.ndarray:
        """bool [N], proposals that hold two marks of one class or more."""
        found = np.zeros(self.holds.shape[1], bool)
        for class_id in np.unique(self.class_ids):
            found |= self.holds[self.class_ids == class_id].sum(0) > 1
        return found

    def choose(self, class_id: int, scores: np.ndarray, shares: Shares, steps: int = STEPS) -> np.ndarray:
        """The instances of a class whose number is known, but for the certain ones: the disjoint set of proposals whose
        product of scores is highest.

        Args:
            scores: floating [N], of the class.
            steps: see :func:`cim.mining.disjoint.best_disjoint`.

        Returns:
            int64 [S], a proposal for each uncertain mark in turn, then for each instance without one; -1: none fits.
        """
        mine = self.class_ids == class_id
        uncertain = np.flatnonzero(mine & ~self.certain)
        free = max(int(self.numbers[class_id]) - int(mine.sum()), 0)
        alone = (
            np.ones(self.fit.shape[1]) if not len(uncertain) else np.where(self.holds[uncertain].any(0), OTHERS, 1.0)
        )
        allowed = ~(self.in_way & mine[:, None]).any(0) & ~self.barred[class_id]
        worth = np.concatenate([self.fit[uncertain], np.tile(alone, (free, 1))]) * np.maximum(scores, 0) * allowed
        if not worth.size:
            return np.full(len(worth), -1, np.int64)
        relative = (worth / np.maximum(worth.max(1, keepdims=True), LEAST)).max(0)
        rows = np.argsort(-relative, kind="stable")[:CANDIDATES]
        values = np.log(np.maximum(worth[:, rows] / LEAST, 1.0))
        chosen = best_disjoint(values, shares(rows) < APART, steps)
        return np.where(chosen >= 0, rows[chosen], -1)


def told_of(known: Known, regions: RegionSet, num_classes: int) -> Told | None:
    """None when nothing is known beyond tags."""
    if not known.counts and not known.rejected:
        return None
    numbers = np.full(num_classes, -1, np.int64)
    for class_id, number in known.counts:
        numbers[class_id] = number
    marks, count = known.marks, len(regions)
    certain = np.array([mark.mask is not None for mark in marks], bool)
    fit, holds = np.zeros((len(marks), count), np.float32), np.zeros((len(marks), count), bool)
    in_way = np.zeros((len(marks), count), bool)
    for row, mark in enumerate(marks):
        if mark.mask is not None:
            fit[row], in_way[row], holds[row] = _of_mask(pixels(mark.mask, regions.size), regions)
        elif mark.points:
            holds[row] = np.all([regions.covering(int(y), int(x)) for x, y in mark.points], axis=0)
    for row, mark in enumerate(marks):
        if mark.mask is None:
            fit[row] = _of_mark(mark, row, holds, regions)
    class_ids = np.array([mark.class_id for mark in marks], np.int64)
    masks = tuple(mark.mask for mark in marks if mark.mask is not None)
    barred = np.zeros((num_classes, count), bool)
    for mark in known.rejected:
        iou, _, _ = _of_mask(pixels(str(mark.mask), regions.size), regions)
        better = fit[certain & (class_ids == mark.class_id)].max(0, initial=0)
        barred[mark.class_id] |= (iou >= REJECTED) & (iou > better)
    return Told(numbers, class_ids, certain, fit, in_way, holds, barred, masks)


def pixels(counts: str, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of a mark's mask."""
    from pycocotools import mask as coco_mask

    rle: Rle = {"size": [int(size[0]), int(size[1])], "counts": counts}
    return coco_mask.decode(rle).astype(bool)


def shares_of(regions: RegionSet) -> Shares:
    """The shared parts of some of these proposals."""

    def shares(rows: np.ndarray) -> np.ndarray:
        shared = regions.intersections(regions.members[rows])[:, rows]
        area = regions.areas[rows]
        return shared / np.maximum(np.minimum.outer(area, area), 1)

    return shares


def _of_mask(mask: np.ndarray, regions: RegionSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shared = (regions.project(mask[None]) @ regions.members.T.astype(np.float64))[0]
    area = max(int(mask.sum()), 1)
    iou = shared / np.maximum(area + regions.areas - shared, 1)
    return iou, shared >= APART * np.maximum(np.minimum(regions.areas, area), 1), shared >= 0.5 * area


def _of_mark(mark: Mark, row: int, holds: np.ndarray, regions: RegionSet) -> np.ndarray:
    fit = np.ones(len(regions), np.float32)
    if mark.points:
        others = np.delete(holds, row, 0).any(0)
        fit *= np.where(holds[row], np.where(others, OTHERS, 1), 0)
    if mark.box is not None:
        overlap = box_iou(np.array(mark.box), regions.boxes)
        fit *= np.where(overlap >= BOUND, overlap, 0)
    return fit


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """float64 [N], IoU of one xyxy box with N."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).astype(np.float64).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(area - shared, 1e-9)
