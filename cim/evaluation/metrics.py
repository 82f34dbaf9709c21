"""Numbers from masks: VOC and COCO average precision, CorLoc, and the best that proposals allow.

Every function takes ground truth as COCO json (path, content or :class:`GroundTruth`) and detections as a COCO
result list or file; everything is checked first. ``backend="faster"`` is faster-coco-eval, ``"pycocotools"`` the
original; a test holds them equal. All values are percent.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.run_lengths import mask_areas
from cim.evaluation.coco_results import GroundTruth, load_ground_truth, read_results, to_coco

__all__ = ["VOC_IOUS", "corloc", "evaluate_coco", "evaluate_voc", "load_ground_truth", "read_results", "to_coco"]

Backend = Literal["faster", "pycocotools"]
Results = str | Path | list[dict[str, Any]]
VOC_IOUS = (0.25, 0.5, 0.7, 0.75)  # METHOD section 8
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
ALL_AREAS = (0, 1e10)
_COCO_AREAS = {"": ALL_AREAS, "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, 1e10)}  # pixels
MAX_DETECTIONS = 100  # per image and class, as the COCO code counts


def evaluate_voc(
    ground_truth: str | Path | dict[str, Any] | GroundTruth,
    results: Results,
    backend: Backend = "faster",
    *,
    image_ids: Collection[int | str] | None = None,
    ious: Sequence[float] = VOC_IOUS,
) -> dict[str, Any]:
    """Mask mAP of the VOC protocol: COCO's evaluation code at single IoU thresholds, mean over classes.

    Args:
        image_ids: evaluate on these images only (a stratum).

    Returns:
        ``mAP@0.25`` ...: the published number, in which a class without ground truth counts as 0;
        ``mAP_present@0.25`` ...: the mean over the classes that have ground truth (0 when none has);
        ``per_class``: {name: {"AP@0.25": value or None without ground truth, ..., "instances": n}};
        ``classes_without_ground_truth``: names; ``images``, ``instances``, ``detections``: counts.

    Raises:
        CimError: bad ground truth or results.
    """
    truth, found, chosen = _checked(ground_truth, results, image_ids)
    precision = _precision(truth, found, chosen, backend, ious, [ALL_AREAS])[:, :, :, 0]
    per_class = _class_means(precision)  # [T, K], NaN without ground truth
    summary: dict[str, Any] = {}
    for prefix, values in (("mAP", np.nan_to_num(per_class)), ("mAP_present", per_class)):
        summary |= {f"{prefix}@{iou:.2f}": _mean(row) for iou, row in zip(ious, values, strict=True)}
    summary["per_class"] = {
        name: {f"AP@{iou:.2f}": _or_none(value) for iou, value in zip(ious, per_class[:, k], strict=True)}
        for k, name in enumerate(truth.categories.values())
    }
    return summary | _counts(truth, found, chosen, summary["per_class"])


def evaluate_coco(
    ground_truth: str | Path | dict[str, Any] | GroundTruth,
    results: Results,
    backend: Backend = "faster",
    *,
    image_ids: Collection[int | str] | None = None,
) -> dict[str, Any]:
    """COCO's mask metric: ``AP`` (mean over IoU .50:.05:.95), ``AP50``, ``AP75``, ``APS``, ``APM``, ``APL``.

    Classes without ground truth do not count, as in the COCO code; a size without any gives 0. The rest of the
    dictionary is that of :func:`evaluate_voc`, with one ``AP`` per class.

    Raises:
        CimError: bad ground truth or results.
    """
    truth, found, chosen = _checked(ground_truth, results, image_ids)
    precision = _precision(truth, found, chosen, backend, COCO_IOUS, list(_COCO_AREAS.values()))
    values = np.stack([_class_means(precision[:, :, :, a]) for a in range(precision.shape[3])], -1)  # [T, K, areas]
    summary: dict[str, Any] = {"AP": _mean(values[..., 0]), "AP50": _mean(values[0, :, 0])}
    summary["AP75"] = _mean(values[COCO_IOUS.index(0.75), :, 0])
    summary |= {f"AP{size}": _mean(values[..., a]) for a, size in enumerate(_COCO_AREAS) if size}
    names = truth.categories.values()
    summary["per_class"] = {name: {"AP": _or_none(values[:, k, 0].mean())} for k, name in enumerate(names)}
    return summary | _counts(truth, found, chosen, summary["per_class"])


def corloc(
    ground_truth: str | Path | dict[str, Any] | GroundTruth, results: Results, iou: float = 0.5
) -> dict[str, Any]:
    """Correct localisation on a training set with masks.

    For every class and every image that shows it: whether the best-scored detection of the class overlaps one of
    its instances by at least ``iou``.

    Returns:
        ``CorLoc``: mean over the classes that have images; ``per_class``: {name: value or None}.
    """
    truth, found, _ = _checked(ground_truth, results, None)
    best: dict[tuple[int | str, int], dict[str, Any]] = {}
    for result in found:  # the first of equal scores stays
        key = result["image_id"], result["category_id"]
        if key not in best or result["score"] > best[key]["score"]:
            best[key] = result
    masks = defaultdict(list)
    for annotation in truth.annotations:
        if not annotation["iscrowd"]:
            masks[annotation["image_id"], annotation["category_id"]].append(annotation["rle"])
    hits: dict[int, list[bool]] = {category: [] for category in truth.categories}
    for key, instances in masks.items():
        guess = best.get(key)
        overlap = np.max(coco_mask.iou([guess["segmentation"]], instances, [0] * len(instances))) if guess else 0.0
        hits[key[1]].append(bool(overlap >= iou))
    per_class = {truth.categories[c]: 100.0 * float(np.mean(h)) if h else None for c, h in hits.items()}
    present = [value for value in per_class.values() if value is not None]
    return {"CorLoc": float(np.mean(present)) if present else 0.0, "per_class": per_class}


def precision_curves(
    ground_truth: str | Path | dict[str, Any] | GroundTruth,
    results: Results,
    backend: Backend = "faster",
    *,
    ious: Sequence[float] = VOC_IOUS,
) -> np.ndarray:
    """Precision-recall curves of :func:`evaluate_voc`, float64 [T, 101, K].

    Precision at the recalls 0, 0.01, ..., 1, 0..1; -1 for classes without ground truth.
    """
    truth, found, chosen = _checked(ground_truth, results, None)
    return _precision(truth, found, chosen, backend, ious, [ALL_AREAS])[:, :, :, 0]


def _checked(
    ground_truth: str | Path | dict[str, Any] | GroundTruth, results: Results, image_ids: Collection[int | str] | None
) -> tuple[GroundTruth, list[dict[str, Any]], list[int | str]]:
    """Ground truth, checked results and the image ids to evaluate on."""
    truth = load_ground_truth(ground_truth)
    found = read_results(results, truth)
    if image_ids is None:
        return truth, found, list(truth.sizes)
    wanted = set(image_ids)
    return truth, [r for r in found if r["image_id"] in wanted], [i for i in truth.sizes if i in wanted]


def _precision(
    truth: GroundTruth,
    found: list[dict[str, Any]],
    image_ids: list[int | str],
    backend: Backend,
    ious: Sequence[float],
    areas: list[tuple[float, float]],
) -> np.ndarray:
    """Precision [T, 101, K, areas] at 101 recalls; -1 where a class has no ground truth in that area range."""
    empty = np.full((len(ious), 101, len(truth.categories), len(areas)), -1.0)
    if not image_ids or not truth.categories:
        return empty
    coco, evaluator = backend_of(backend)
    truth_coco, found_coco = as_datasets(coco, truth, found, image_ids)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; the numbers are returned
        evaluation = evaluator(truth_coco, found_coco, iouType="segm")
        evaluation.params.iouThrs = np.array(ious)
        evaluation.params.areaRng = [list(area) for area in areas]
        evaluation.params.areaRngLbl = [str(a) for a in range(len(areas))]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0].reshape(empty.shape)


def _silent(*_: Any) -> None:
    pass


def backend_of(name: Backend) -> tuple[type, Callable[..., Any]]:
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if name == "faster":
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        return FasterCOCO, partial(COCOeval_faster, print_function=_silent)
    raise ValueError(f"backend must be faster or pycocotools; found {name!r}")


def as_datasets(coco: type, truth: GroundTruth, found: list[dict], image_ids: list[int | str]) -> tuple[Any, Any]:
    """Ground truth and detections as the backend's own objects.

    Images are renumbered (ids may be text) and annotations counted from 1: the COCO code takes a match with
    annotation 0 for no match.
    """
    number = {image_id: n for n, image_id in enumerate(image_ids, 1)}
    images = [{"id": number[i], "height": truth.sizes[i][0], "width": truth.sizes[i][1]} for i in image_ids]
    categories = [{"id": c, "name": name} for c, name in truth.categories.items()]
    annotations = [
        {
            "image_id": number[a["image_id"]],
            "category_id": a["category_id"],
            "segmentation": dict(a["rle"]),
            "area": a["area"],
            "iscrowd": a["iscrowd"],
        }
        for a in truth.annotations
        if a["image_id"] in number
    ]
    detections = [
        {
            "image_id": number[r["image_id"]],
            "category_id": r["category_id"],
            "segmentation": r["segmentation"],
            "score": r["score"],
            "iscrowd": 0,
        }
        for r in found
    ]
    areas = mask_areas([d["segmentation"] for d in detections])
    for detection, area in zip(detections, areas, strict=True):
        detection["area"] = float(area)
    return tuple(_indexed(coco, images, categories, lines) for lines in (annotations, detections))


def _indexed(
    coco: type, images: list[dict[str, Any]], categories: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> Any:
    dataset = coco()
    dataset.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [{**annotation, "id": n} for n, annotation in enumerate(annotations, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


def _class_means(precision: np.ndarray) -> np.ndarray:
    """[T, R, K] -> AP in percent [T, K]; NaN for classes without ground truth."""
    return np.where((precision < 0).any(1), np.nan, 100.0 * precision.mean(1))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _counts(
    truth: GroundTruth, found: list[dict[str, Any]], image_ids: list[int | str], per_class: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Counts; also writes ``instances`` into ``per_class``."""
    wanted = set(image_ids)
    instances = dict.fromkeys(truth.categories.values(), 0)
    for annotation in truth.annotations:
        if annotation["image_id"] in wanted and not annotation["iscrowd"]:
            instances[truth.categories[annotation["category_id"]]] += 1
    for name, count in instances.items():
        per_class[name]["instances"] = count
    return {
        "classes_without_ground_truth": [name for name, count in instances.items() if not count],
        "images": len(image_ids),
        "instances": sum(instances.values()),
        "detections": len(found),
    }
