"""Which regions look like whole objects: a weighted sum of a few cues, then near-duplicates removed."""

from __future__ import annotations

import numpy as np

from cim.proposals.grouping.superpixels import Superpixels

_CANDIDATES = 2.5  # times the regions wanted are compared with each other; hardly ever do more fall away
_TOUCH = 2  # pixels of the small frame on a border that do not count yet
_BLOCK = 200  # regions compared with all others at once
_CUE_FEATURES = {"colour", "deep0", "deep1", "deep2"}


def object_cues(sp: Superpixels, regions: np.ndarray) -> dict[str, np.ndarray]:
    """Cues per region, floating [N] each, for regions given as bool [N, S].

    size: natural log of the area as a fraction of the picture. borders: picture borders touched (0..4).
    outline: log of (outline / sqrt(area)), the picture's border counted in. boundary: mean boundary strength along the
    outline within the picture. centre: distance of the region's middle from the picture's, in long sides.
    ring_F: distance between the feature means of the region and of the segments around it. spread_F: variance inside.
    salience_step: how much the deep activation falls from the region to its ring.
    """
    m = regions.astype(np.float32)
    areas = sp.areas.astype(np.float32)
    area = np.maximum(m @ areas, 1)
    inside = m * (areas / area[:, None])
    cut = (regions[:, sp.source] != regions[:, sp.target]).astype(np.float32)
    length = sp.length.astype(np.float32)
    along, strength = (cut @ np.stack([length, (sp.edge * length).astype(np.float32)], 1)).T
    touch = m @ sp.border.astype(np.float32)
    ring = _ring(sp, m)
    salience = sp.salience.astype(np.float32)
    cues = {
        "size": np.log(area / areas.sum()),
        "borders": (touch > _TOUCH).sum(1),
        "outline": np.log(np.maximum(along + touch.sum(1), 1) / np.sqrt(area)),
        "boundary": strength / np.maximum(along, 1),
        "centre": np.linalg.norm(inside @ sp.features["place"].astype(np.float32), axis=1),
        "salience_step": inside @ salience - ring @ salience,
    }
    for name in _CUE_FEATURES & sp.features.keys():
        x = sp.features[name].astype(np.float32)
        mean = inside @ x
        cues[f"ring_{name}"] = np.linalg.norm(mean - ring @ x, axis=1)
        cues[f"spread_{name}"] = inside @ (x**2).sum(1) - (mean**2).sum(1)
    return cues


def objectness(cues: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [N], higher is more like one whole object.

    A region stands out from what lies around it, does not lean on the picture's border, is neither tiny nor most of
    the picture. The weights are round numbers from a coarse grid (docs/PROPOSALS.md tells how they were chosen).
    """
    size = cues["size"]
    score = -0.15 * np.maximum(-1.4 - size, 0) - 0.2 * np.maximum(size + 1.4, 0)
    score = score - 0.1 * cues["borders"] - 0.1 * cues["outline"] - 0.1 * cues["centre"]
    if "ring_deep1" in cues:
        score = score + 0.2 * cues["ring_colour"] + 0.4 * cues["ring_deep0"] + 0.9 * cues["ring_deep1"]
        return score + 0.4 * cues["salience_step"] + 0.15 * cues["spread_deep2"]
    score = score + 0.4 * cues["ring_colour"] + 0.1 * cues["spread_colour"]
    return score + 0.2 * np.minimum(cues["boundary"], 4)


def diverse_order(sp: Superpixels, regions: np.ndarray, score: np.ndarray, max_iou: float, count: int) -> np.ndarray:
    """Indices of at most ``count`` regions, best first, none overlapping a better one with more than ``max_iou``."""
    order = np.argsort(-score, kind="stable")[: int(_CANDIDATES * count) + 100]
    close = _near_duplicates(regions[order], sp.areas, max_iou)
    kept: list[int] = []
    dropped = np.zeros(len(order), bool)
    for index in range(len(order)):
        if not dropped[index]:
            kept.append(index)
            dropped |= close[index]
            if len(kept) == count:
                break
    return order[np.array(kept, np.int64)]


def _near_duplicates(regions: np.ndarray, areas: np.ndarray, max_iou: float) -> np.ndarray:
    """bool [N, N], IoU > ``max_iou``. Only regions of similar area are compared: the others cannot be that close."""
    area = regions @ areas
    by_area = np.argsort(area, kind="stable")
    m, area = regions[by_area].astype(np.float32), area[by_area]
    weighted = m * areas.astype(np.float32)
    close = np.zeros((len(m), len(m)), bool)
    for start in range(0, len(m), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(m)))
        low = np.searchsorted(area, area[rows][0] * max_iou)
        high = np.searchsorted(area, area[rows][-1] / max(max_iou, 1e-6), side="right")
        inter = weighted[rows] @ m[low:high].T
        union = area[rows][:, None] + area[None, low:high] - inter
        close[by_area[rows][:, None], by_area[None, low:high]] = inter > max_iou * union
    return close


def _ring(sp: Superpixels, m: np.ndarray) -> np.ndarray:
    """Weights of the segments around every region, by common boundary; rows sum to 1 (0 without neighbours)."""
    touching = np.zeros((len(sp), len(sp)), np.float32)
    touching[sp.source, sp.target] = touching[sp.target, sp.source] = sp.length
    ring = (m @ touching) * (1 - m)
    return ring / np.maximum(ring.sum(1, keepdims=True), 1e-6)
