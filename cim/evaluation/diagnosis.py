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

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.files import atomic
from cim.core.run_lengths import mask_areas
from cim.evaluation.coco_results import GroundTruth
from cim.evaluation.relations import DETECTION_KINDS, TRUTH_KINDS, Relations, fates_of, kinds_of

HEADLINE_FATES = {"found": "complete", "merged": "merged", "partial": "partial", "missed": "missed"}
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's, pixels
_CROWDING = {"1": (1, 2), "2": (2, 3), "3 or more": (3, np.inf)}  # instances in the picture
_COLOURS = ("#009E73", "#F0E442", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#999999", "#444444")  # Okabe and Ito


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of every annotated instance of a split (crowds left out), M of them.

    Attributes:
        image_ids: [M], of the instance's photo.
        category_ids: int64 [M].
        fate: [M], one of :data:`TRUTH_KINDS`.
        beside: bool [M], whether its photo shows another instance of its class.
        several: bool [M], whether its photo shows another instance of any class.
    """

    image_ids: list[int | str]
    category_ids: np.ndarray
    fate: np.ndarray
    beside: np.ndarray
    several: np.ndarray


def fates_of_split(truth: GroundTruth, results: list[dict[str, Any]], *, score_threshold: float | None = None) -> Fates:
    """The fate of every instance; arguments as in :func:`diagnose`."""
    grouped = _by_image(results)
    image_ids: list[int | str] = []
    category_ids: list[int] = []
    fates: list[str] = []
    for image_id in truth.sizes:
        instances = [a for a in truth.by_image[image_id] if not a["iscrowd"]]
        image_ids += [image_id] * len(instances)
        category_ids += [a["category_id"] for a in instances]
        fates += diagnose_image(_counted(grouped[image_id], len(instances), score_threshold), instances)[1]
    of_class, of_photo = Counter(zip(image_ids, category_ids, strict=True)), Counter(image_ids)
    return Fates(
        image_ids,
        np.array(category_ids, np.int64),
        np.array(fates, dtype="<U11"),
        np.array([of_class[key] > 1 for key in zip(image_ids, category_ids, strict=True)], bool),
        np.array([of_photo[image_id] > 1 for image_id in image_ids], bool),
    )


def add_fates(row: dict[str, Any], truth: GroundTruth, fates: Fates) -> None:
    """Write the headline shares into a row of metrics.json: for all instances, per class, of ``subset_multi`` (photos
    with several instances) and of ``subset_beside`` (instances beside others of their class, with their number).
    """
    row |= share_of_fates(fates.fate)
    row.setdefault("subset_multi", {}).update(share_of_fates(fates.fate[fates.several]))
    shares = share_of_fates(fates.fate[fates.beside])
    row["subset_beside"] = {"instances": int(fates.beside.sum()), **shares, "per_class": {}}
    for category, name in truth.categories.items():
        mine = fates.category_ids == category
        row["per_class"].setdefault(name, {}).update(share_of_fates(fates.fate[mine]))
        beside = mine & fates.beside
        if beside.any():
            count = {"instances": int(beside.sum())}
            row["subset_beside"]["per_class"][name] = count | share_of_fates(fates.fate[beside])


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
    grouped = _by_image(results)
    rows: dict[str, list[tuple[str, float, int]]] = {"detections": [], "ground_truth": []}
    for image_id in truth.sizes if image_ids is None else image_ids:
        instances = [a for a in truth.by_image[image_id] if not a["iscrowd"]]
        found = _counted(grouped[image_id], len(instances), score_threshold)
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
    # With "crowd" the C code divides by the area of the detection: how much of it lies inside the instance.
    inside = np.asarray(coco_mask.iou(masks, truths, [1] * len(truths)))
    covered = inside * areas[:, None] / np.maximum(mask_areas(truths), 1)
    relations = Relations(np.asarray(coco_mask.iou(masks, truths, [0] * len(truths))), inside, covered)
    same = np.array([r["category_id"] for r in found])[:, None] == np.array([a["category_id"] for a in instances])
    return kinds_of(relations, same), fates_of(relations, same), areas


def share_of_fates(fates: Iterable[str], prefix: str = "") -> dict[str, float]:
    """``found``, ``merged``, ``partial``, ``missed`` in percent of the instances (the rest: spill, wrong class)."""
    listed = list(fates)
    return {prefix + name: 100.0 * listed.count(fate) / len(listed) for name, fate in HEADLINE_FATES.items() if listed}


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


def _by_image(results: list[dict[str, Any]]) -> dict[int | str, list[dict[str, Any]]]:
    grouped: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        grouped[result["image_id"]].append(result)
    return grouped


def _counted(found: list[dict[str, Any]], instances: int, score_threshold: float | None) -> list[dict[str, Any]]:
    """The detections of an image that a user would see, best first."""
    ranked = sorted(found, key=lambda r: -r["score"])
    return ranked[:instances] if score_threshold is None else [r for r in ranked if r["score"] > score_threshold]


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
