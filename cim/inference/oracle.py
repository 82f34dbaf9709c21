"""The best that given proposals allow: a ceiling for every method that can only choose among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.regions import RegionSet
from cim.core.types import Rle
from cim.evaluation.coco_results import GroundTruth
from cim.inference.selection import compressed_rles


def oracle_results(
    truth: GroundTruth, regions_of: Callable[[int | str], RegionSet | None], score: str = "equal"
) -> list[dict[str, Any]]:
    """For every instance its best proposal with the right class, as COCO results.

    Args:
        truth: annotated instances; crowds are left out.
        regions_of: proposals of an image id; None when it has none.
        score: "equal" (all 1: what a perfect choice without ranking gives) or "iou" (the true IoU: ranked, too).

    Returns:
        results with ``proposal``; one that is best for two instances of a class appears once.

    Raises:
        ValueError: unknown ``score``.
        CimError: whatever ``regions_of`` raises.
    """
    if score not in ("equal", "iou"):
        raise ValueError(f"score must be equal or iou; found {score!r}")
    results = []
    for image_id, found in truth.by_image.items():
        instances = [a for a in found if not a["iscrowd"]]
        if not instances:
            continue
        regions = regions_of(image_id)
        if regions is None or not len(regions):
            continue
        iou = truth_overlaps(regions, [a["rle"] for a in instances])
        best: dict[tuple[int, int], float] = {}
        for annotation, row in zip(instances, iou, strict=True):
            key = annotation["category_id"], int(row.argmax())
            if row[key[1]] > 0:
                best[key] = max(best.get(key, 0.0), float(row[key[1]]))
        rles = compressed_rles(regions, np.array([p for _, p in best], np.int64))
        for ((category, proposal), overlap), rle in zip(best.items(), rles, strict=True):
            value = overlap if score == "iou" else 1.0
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "score": value,
                    "segmentation": rle,
                    "proposal": proposal,
                }
            )
    return results


def truth_overlaps(regions: RegionSet, rles: Sequence[Rle]) -> np.ndarray:
    """IoU of foreign masks (compressed RLE of the same size) with every proposal, float64 [m, N].

    A mask is counted atom by atom, so this is exact and no proposal is drawn.
    """
    inter = np.zeros((len(rles), len(regions)))
    areas = np.zeros(len(rles))
    atoms = regions.atoms.ravel()
    for row, rle in enumerate(rles):
        mask = coco_mask.decode(rle).ravel().astype(bool)
        shared = np.bincount(atoms[mask], minlength=regions.members.shape[1])
        inter[row], areas[row] = regions.members @ shared.astype(float), mask.sum()
    union = areas[:, None] + regions.areas - inter
    return inter / np.maximum(union, 1)
