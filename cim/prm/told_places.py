"""First labels from what is known of a photo: points, boxes, masks, and numbers where class maps say which regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.mining.told import Told, shares_of
from cim.prm.assign import label_by_overlap, stand_ins_of_peaks
from cim.prm.evidence import LEAST
from cim.prm.network import Peaks

_NOTHING = 1e-9


class Places(NamedTuple):
    """P instances: ``class_ids`` int64 [P], 1..C; ``overlap`` float [P, N], IoU of what stands in for each with every
    proposal."""

    class_ids: np.ndarray
    overlap: np.ndarray


def assign_told(
    regions: RegionSet,
    peaks: Peaks,
    told: Told,
    tags: Sequence[int],
    evidence: np.ndarray | None,
    *,
    mean_mask_threshold: float,
    iou: float,
    background: str,
) -> Clusters:
    """As :func:`cim.prm.assign.assign_from_peaks`, but classes of which more is known have their own places.

    What is marked overwrites peaks. A proposal that holds two marks of one class is none of its instances: background.
    One that is like a deleted mask of a class gets no label from its instances.

    Args:
        tags: T classes of the photo, 0..C-1.
        evidence: float [N, T] (:func:`cim.prm.evidence.class_evidence`); None: not known, and numbers without marks say
            nothing more than tags.
    """
    served = set(told.class_ids.tolist())
    if evidence is not None:
        served |= set(np.flatnonzero(told.numbers > 0).tolist())
    left = ~np.isin(peaks.index[:, 0], sorted(served))
    others = Peaks(peaks.index[left], peaks.values[left], peaks.grid)
    class_ids, overlap = stand_ins_of_peaks(regions, others, mean_mask_threshold)
    known = told_places(regions, told, tags, evidence, mean_mask_threshold)
    alone = np.where(told.merged, np.minimum(known.overlap, iou), known.overlap)
    places = np.concatenate([class_ids, known.class_ids])
    overlap = np.where(told.barred[places - 1], 0, np.concatenate([overlap, alone]))
    return label_by_overlap(places, overlap, iou=iou, background=background)


def told_places(
    regions: RegionSet, told: Told, tags: Sequence[int], evidence: np.ndarray | None, threshold: float
) -> Places:
    """The instances of classes of which more is known; certain ones last.

    What stands in for a mark: the mean of the proposals that may be its instance, by their fit and evidence, cut at
    ``threshold``; for a mask itself; where a class has instances without a mark, the best disjoint regions by evidence
    for those and for its uncertain marks.
    """
    class_ids, rows = list[int](), list[np.ndarray]()
    speaks = {tag: np.ones(len(regions)) if evidence is None else evidence[:, k] for k, tag in enumerate(tags)}
    packed = set[int]()
    for class_id in np.flatnonzero(told.numbers > 0).tolist():
        if evidence is None or told.numbers[class_id] == (told.class_ids == class_id).sum():
            continue
        packed.add(class_id)
        for row in told.choose(class_id, speaks[class_id], shares_of(regions)):
            if row >= 0:
                class_ids.append(class_id)
                rows.append(regions.iou_with(regions.members[row]))
    members = regions.members.astype(np.float32)
    for mark in sorted(range(len(told.class_ids)), key=lambda m: bool(told.certain[m])):
        class_id = int(told.class_ids[mark])
        if told.certain[mark]:
            overlap = told.fit[mark]
        elif class_id not in packed:
            weight = (told.fit[mark] * speaks[class_id]).astype(np.float32)
            overlap = regions.iou_with(weight @ members / max(float(weight.sum()), _NOTHING) > threshold)
        else:
            continue
        class_ids.append(class_id)
        rows.append(overlap)
    return Places(np.array(class_ids, np.int64) + 1, np.array(rows, np.float64).reshape(len(rows), len(regions)))


def told_evidence(evidence: np.ndarray, told: Told, tags: Sequence[int]) -> np.ndarray:
    """The evidence where all instances of a class are marked: less, the less a proposal fits any of them; where a mask
    of it was deleted: the least for what is like that. The best of a class has 1 again.

    Args:
        evidence: float32 [N, T], of the tags.
    """
    evidence = evidence.copy()
    for column, tag in enumerate(tags):
        mine = told.class_ids == tag
        value = np.where(told.barred[tag], LEAST, evidence[:, column])
        if mine.any() and mine.sum() >= told.numbers[tag]:
            value = value * np.maximum(told.fit[mine].max(0), LEAST)
        elif not told.barred[tag].any():
            continue
        evidence[:, column] = np.maximum(value / max(float(value.max(initial=0)), _NOTHING), LEAST)
    return evidence
