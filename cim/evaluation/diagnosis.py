"""What is right and wrong about detected masks: complete, partial, merged, spilled, duplicate, ... (not only one mAP).

An average precision ranks thousands of weak guesses. To say what a user would see, only as many detections of an
image count as it has instances, the best-scored ones (or all above a score). Each gets the first of these that fits,
going down the ranking:

============  =========================================================================================
complete      IoU >= 0.5 with an instance of its class that no better detection took
duplicate     IoU >= 0.5 with one that was taken
wrong class   IoU >= 0.5 with an instance of another class
merged        covers at least half of each of two or more instances
partial       at least 80 % of the mask lies inside one instance of its class (it shows a part of it)
spill         IoU >= 0.1 with an instance of its class, running over its border
wrong class   80 % of the mask inside, or IoU >= 0.1 with, an instance of another class
background    everything else
============  =========================================================================================

An annotated instance is complete if a detection took it, else wrong class, merged (in one mask with another, even if
that one counts as complete), partial or spill by the same rules, or missed. Shares add up to 100 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.files import atomic
from cim.core.run_lengths import mask_areas
from cim.evaluation.coco_results import GroundTruth

DETECTION_KINDS = ("complete", "partial", "merged", "spill", "duplicate", "wrong class", "background")
TRUTH_KINDS = ("complete", "partial", "merged", "spill", "wrong class", "missed")
COMPLETE_IOU, TOUCH_IOU, INSIDE, COVERED = 0.5, 0.1, 0.8, 0.5
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's, pixels
_CROWDING = {"1": (1, 2), "2": (2, 3), "3 or more": (3, np.inf)}  # instances in the picture
_COLOURS = ("#009E73", "#F0E442", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#999999", "#444444")  # Okabe and Ito


def diagnose(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    *,
    score_threshold: float | None = None,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, Any]:
    """Shares of every kind of detection and of annotated instance.

    Args:
        truth: annotated instances; crowds are left out.
        results: checked COCO results (``read_results``).
        score_threshold: count all detections above it; None: the best ones of each image, as many as it has
            instances.
        image_ids: only these images.

    Returns:
        {"operating_point": text, "detections": {"count", "shares": {kind: percent}}, "ground_truth": the same,
        "by_size" and "by_instances": {stratum: {"detections": ..., "ground_truth": ...}}}. Sizes are those of the
        detected mask and of the annotated instance; ``by_instances`` goes by the number of instances in the picture.
    """
    grouped: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        grouped[result["image_id"]].append(result)
    rows: dict[str, list[tuple[str, float, int]]] = {"detections": [], "ground_truth": []}
    for image_id in truth.sizes if image_ids is None else image_ids:
        instances = [a for a in truth.by_image[image_id] if not a["iscrowd"]]
        found = sorted(grouped[image_id], key=lambda r: -r["score"])
        if score_threshold is None:
            found = found[: len(instances)]
        else:
            found = [r for r in found if r["score"] > score_threshold]
        kinds, fates, areas = diagnose_image(found, instances)
        rows["detections"] += [(k, a, len(instances)) for k, a in zip(kinds, areas, strict=True)]
        rows["ground_truth"] += [(f, a["area"], len(instances)) for f, a in zip(fates, instances, strict=True)]
    point = "best-scored detections, as many as instances" if score_threshold is None else f"score > {score_threshold}"
    return {
        "operating_point": point,
        **_summaries(rows),
        "by_size": {name: _summaries(rows, size=bounds) for name, bounds in _SIZES.items()},
        "by_instances": {name: _summaries(rows, crowding=bounds) for name, bounds in _CROWDING.items()},
    }


def diagnose_image(
    found: list[dict[str, Any]], instances: list[dict[str, Any]]
) -> tuple[list[str], list[str], np.ndarray]:
    """Kind of every detection (best first), fate of every instance, and the detections' areas in pixels [n].

    Args:
        found: n results with ``category_id`` and compressed ``segmentation``, in descending order of score.
        instances: m annotations with ``category_id`` and compressed ``rle``.
    """
    areas = mask_areas([r["segmentation"] for r in found])
    if not found or not instances:
        return ["background"] * len(found), ["missed"] * len(instances), areas
    masks, truths = [r["segmentation"] for r in found], [a["rle"] for a in instances]
    iou = np.asarray(coco_mask.iou(masks, truths, [0] * len(truths)))
    # With "crowd" the C code divides by the area of the detection: how much of it lies inside the instance.
    inside = np.asarray(coco_mask.iou(masks, truths, [1] * len(truths)))
    covered = inside * areas[:, None] / np.maximum(mask_areas(truths), 1)
    same = np.array([r["category_id"] for r in found])[:, None] == np.array([a["category_id"] for a in instances])
    taken, complete = _match(np.where(same, iou, 0.0))
    tests = (  # the table above, first that fits
        ("complete", complete),
        ("duplicate", (same & (iou >= COMPLETE_IOU)).any(1)),
        ("wrong class", (~same & (iou >= COMPLETE_IOU)).any(1)),
        ("merged", (covered >= COVERED).sum(1) >= 2),
        ("partial", (same & (inside >= INSIDE)).any(1)),
        ("spill", (same & (iou >= TOUCH_IOU)).any(1)),
        ("wrong class", (~same & ((inside >= INSIDE) | (iou >= TOUCH_IOU))).any(1)),
    )
    kinds = _first_that_fits(tests, "background", len(found))
    several = (covered >= COVERED).sum(1, keepdims=True) >= 2
    fates = _first_that_fits(
        (
            ("complete", taken),
            ("wrong class", (~same & (iou >= COMPLETE_IOU)).any(0)),
            ("merged", (several & (covered >= COVERED)).any(0)),
            ("partial", (same & (inside >= INSIDE)).any(0)),
            ("spill", (same & (iou >= TOUCH_IOU)).any(0)),
        ),
        "missed",
        len(instances),
    )
    return kinds, fates, areas


def plot_diagnosis(rows: dict[str, dict[str, Any]], path: str | Path) -> None:
    """Stacked bars of :func:`diagnose` results by name, one panel for detections and one for ground truth (png)."""
    from matplotlib.figure import Figure  # slow to import; no pyplot, so no window system is touched
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 1.6 + 0.45 * len(rows)), layout="constrained")
    colours = dict(zip((*DETECTION_KINDS, "missed"), _COLOURS, strict=True))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part, kinds in zip(panels, ("detections", "ground_truth"), (DETECTION_KINDS, TRUTH_KINDS), strict=True):
        left = np.zeros(len(rows))
        for kind in kinds:
            shares = np.array([row[part]["shares"][kind] for row in rows.values()])
            axes.barh(list(rows), shares, left=left, color=colours[kind], edgecolor="black", linewidth=0.4)
            left += shares
        axes.set(title=part.replace("_", " "), xlim=(0, 100), xlabel="share, %")
    panels[0].invert_yaxis()
    handles = [Patch(facecolor=colour, edgecolor="black", linewidth=0.4, label=k) for k, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


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


def _first_that_fits(tests: Iterable[tuple[str, np.ndarray]], otherwise: str, count: int) -> list[str]:
    kinds = [otherwise] * count
    for kind, fits in reversed(tuple(tests)):
        for n in np.flatnonzero(fits):
            kinds[n] = kind
    return kinds


def _summaries(
    rows: dict[str, list[tuple[str, float, int]]],
    size: tuple[float, float] = (0, np.inf),
    crowding: tuple[float, float] = (0, np.inf),
) -> dict[str, Any]:
    """Counts and shares of the rows (kind, area, instances in the picture) inside both bounds [low, high)."""
    summary = {}
    for part, names in (("detections", DETECTION_KINDS), ("ground_truth", TRUTH_KINDS)):
        kinds = [k for k, a, n in rows[part] if size[0] <= a < size[1] and crowding[0] <= n < crowding[1]]
        shares = {name: 100.0 * kinds.count(name) / max(len(kinds), 1) for name in names}
        summary[part] = {"count": len(kinds), "shares": shares}
    return summary
