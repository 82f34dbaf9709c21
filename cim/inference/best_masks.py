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


def best_masks(dataset: Dataset, source: RegionSource, scores: Store, peaks: Store | None = None) -> BestMasks:
    """Over the tagged photos that have proposals with masks and scores.

    Args:
        scores: store of kind "detections" (arrays ``scores`` and ``mil`` [N, C]).
        peaks: store of kind "peaks" of the same photos; None: whether masks hold their peak is not known.
    """
    class_ids: list[int] = []
    agreement: list[float] = []
    area: list[float] = []
    holds: list[float] = []
    small: list[np.ndarray] = []
    proposed, scored = source.seen(), scores.seen()
    peaked = (lambda image_id: False) if peaks is None else peaks.seen()
    for record in tqdm(dataset, desc="verdict", unit="image"):
        if not record.tags or not proposed(record.image_id) or not scored(record.image_id):
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
        places = peaks.load(record.image_id) if peaks is not None and peaked(record.image_id) else {}
        holds += [_holds(regions, int(b), int(tag), places) for b, tag in zip(best, tags)]
    return BestMasks(
        np.array(class_ids, np.int64),
        np.array(agreement),
        np.array(area),
        np.array(small, bool).reshape(-1, SIDE, SIDE),
        np.array(holds),
    )


def _holds(regions: RegionSet, proposal: int, class_id: int, peaks: dict[str, np.ndarray]) -> float:
    """1 when the proposal covers the class's highest peak, 0 when not, NaN when there is none."""
    mine = np.flatnonzero(peaks["peaks"][:, 0] == class_id) if "peaks" in peaks else np.zeros(0, np.int64)
    if not len(mine):
        return float("nan")
    _, row, column = peaks["peaks"][mine[peaks["values"][mine].argmax()]]
    height, width = regions.size
    place = int(row) * height // int(peaks["grid"][0]), int(column) * width // int(peaks["grid"][1])
    return float(regions.members[proposal, regions.atoms[place]])
