"""What a detection is, and what became of an instance, from how they overlap: the rules of the diagnosis.

Masks and boxes are judged alike; only their overlaps are computed differently. The rules themselves stand in
``cim.evaluation.diagnosis``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

DETECTION_KINDS = ("complete", "partial", "merged", "spill", "duplicate", "wrong class", "background")
TRUTH_KINDS = ("complete", "partial", "merged", "spill", "wrong class", "missed")
COMPLETE_IOU, TOUCH_IOU, INSIDE, COVERED = 0.5, 0.1, 0.8, 0.5


class Relations(NamedTuple):
    """How n detections lie to m instances, each float64 [n, m].

    Attributes:
        iou: shared area divided by joint area.
        inside: how much of the detection lies inside the instance, 0..1.
        covered: how much of the instance the detection covers, 0..1.
    """

    iou: np.ndarray
    inside: np.ndarray
    covered: np.ndarray


def kinds_of(relations: Relations, same: np.ndarray) -> list[str]:
    """Kind of each of n detections (best first), by the table above; ``same``: of one class, bool [n, m]."""
    iou, inside, covered = relations
    _, complete = _match(np.where(same, iou, 0.0))
    tests = (
        ("complete", complete),
        ("duplicate", (same & (iou >= COMPLETE_IOU)).any(1)),
        ("wrong class", (~same & (iou >= COMPLETE_IOU)).any(1)),
        ("merged", (covered >= COVERED).sum(1) >= 2),
        ("partial", (same & (inside >= INSIDE)).any(1)),
        ("spill", (same & (iou >= TOUCH_IOU)).any(1)),
        ("wrong class", (~same & ((inside >= INSIDE) | (iou >= TOUCH_IOU))).any(1)),
    )
    return _first_that_fits(tests, "background", len(same))


def fates_of(relations: Relations, same: np.ndarray) -> list[str]:
    """Fate of each of m instances under n detections (best first); ``same``: of one class, bool [n, m]."""
    iou, inside, covered = relations
    taken, _ = _match(np.where(same, iou, 0.0))
    several = (covered >= COVERED).sum(1, keepdims=True) >= 2
    tests = (
        ("complete", taken),
        ("wrong class", (~same & (iou >= COMPLETE_IOU)).any(0)),
        ("merged", (several & (covered >= COVERED)).any(0)),
        ("partial", (same & (inside >= INSIDE)).any(0)),
        ("spill", (same & (iou >= TOUCH_IOU)).any(0)),
    )
    return _first_that_fits(tests, "missed", same.shape[1])


def _match(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching in order of rank: which instances [m] were taken, and which detections [n] took one."""
    free = np.ones(iou.shape[1], bool)
    complete = np.zeros(len(iou), bool)
    for n, row in enumerate(iou):
        left = np.where(free, row, 0.0)
        best = int(left.argmax())
        if left[best] >= COMPLETE_IOU:
            free[best], complete[n] = False, True
    return ~free, complete


def _first_that_fits(tests: Iterable[tuple[str, Any]], otherwise: str, count: int) -> list[str]:
    kinds = [otherwise] * count
    for kind, fits in reversed(tuple(tests)):
        for n in np.flatnonzero(fits):
            kinds[n] = kind
    return kinds
