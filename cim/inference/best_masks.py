"""The best mask of every tag, out of stored scores: what a run is judged by where there are no masks to compare."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from cim.core.regions import RegionSet, nearest
from cim.datasets.base import Dataset
from cim.evaluation.verdicts import BestMasks
from cim.storage.published import RegionSource
from cim.storage.store import Store

SIDE = 16


def best_masks(dataset: Dataset, source: RegionSource, scores: Store) -> BestMasks:
    """Over the tagged photos that have proposals with masks and scores.

    Args:
        scores: store of kind "detections" (arrays ``scores`` and ``mil`` [N, C]).
    """
    class_ids: list[int] = []
    agreement: list[float] = []
    area: list[float] = []
    small: list[np.ndarray] = []
    for record in tqdm(dataset, desc="verdict", unit="image"):
        if not record.tags or not source.has(record.image_id) or not scores.has(record.image_id):
            continue
        regions, arrays = source.load(record.image_id), scores.load(record.image_id)
        if not isinstance(regions, RegionSet) or not len(regions):
            continue
        tags = np.array(record.tags)
        best, other = arrays["scores"][:, tags].argmax(0), arrays["mil"][:, tags].argmax(0)
        rows, columns = (nearest(SIDE, side) for side in regions.size)
        masks = regions.members[best][:, regions.atoms[rows[:, None], columns]]
        areas = regions.members.astype(np.float64) @ regions.atom_areas
        shared = ((regions.members[best] & regions.members[other]) * regions.atom_areas).sum(1)
        class_ids += tags.tolist()
        agreement += (shared / np.maximum(areas[best] + areas[other] - shared, 1)).tolist()
        area += (areas[best] / regions.atoms.size).tolist()
        small += list(masks)
    return BestMasks(
        np.array(class_ids, np.int64),
        np.array(agreement),
        np.array(area),
        np.array(small, bool).reshape(-1, SIDE, SIDE),
    )
