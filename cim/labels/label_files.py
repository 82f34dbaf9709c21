"""Pseudo label files from anywhere: read and check, and see what a threshold would keep."""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.run_lengths import as_rle, valid_rles
from cim.core.types import Rle
from cim.evaluation.coco_results import GroundTruth, as_results, image_sizes

_CHUNK = 1000


def read_labels(path: str | Path, scored: bool = False, boxes: bool = False) -> dict[str, Any]:
    """COCO instance annotations: of :mod:`cim.labels.export` or of any other program, polygons or RLE of both kinds.

    Missing ``area``, ``score`` (1.0) and ``iscrowd`` are filled in.

    Args:
        scored: insist on scores.
        boxes: take annotations without a mask as they are.

    Raises:
        CimError: missing or damaged file, no annotations at all, ids that occur twice or point nowhere, masks that
            are damaged or of another size than their image.
    """
    content = read_json(path, fix="cim export CONFIG")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise CimError("not COCO instance annotations", path=path, expected=", ".join(keys))
    if not content["annotations"]:
        raise CimError("no annotations", path=path, expected="at least one instance", fix="lower the threshold")
    try:
        _check_ids(content)
        _check_names(content)
        _complete(content, scored, boxes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else error
        raise CimError("bad annotation file", path=path, found=found) from None
    return content


def labels_root(content: dict[str, Any], path: str | Path) -> Path:
    """Folder of a label file's photos: ``info.image_root``, relative to the file; else the file's own."""
    info = content.get("info")
    told = info.get("image_root") if isinstance(info, dict) else None
    return Path(path).parent / (told if isinstance(told, str) else "")


def _check_names(content: dict[str, Any]) -> None:
    for line in content["categories"]:
        if not isinstance(line["name"], str):
            raise ValueError(f"category {line['id']} has a name that is no text")


def _check_ids(content: dict[str, Any]) -> None:
    for key in ("images", "annotations", "categories"):
        twice = [i for i, count in Counter(line["id"] for line in content[key]).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} ids occur twice in {key}, first {twice[0]}")
    images, categories = ({line["id"] for line in content[key]} for key in ("images", "categories"))
    for line in content["annotations"]:
        if line["image_id"] not in images:
            raise ValueError(f"annotation {line['id']} of unknown image {line['image_id']}")
        if line["category_id"] not in categories:
            raise ValueError(f"annotation {line['id']} of unknown category {line['category_id']}")


def _complete(content: dict[str, Any], scored: bool, boxes: bool) -> None:
    """Compressed masks, checked; and the keys that others leave out."""
    sizes = image_sizes(content["images"])
    if not all(isinstance(image["file_name"], str) for image in content["images"]):
        raise ValueError("a file_name that is no text")
    lines = content["annotations"]
    if scored and "score" not in lines[0]:
        raise ValueError("no scores: a threshold has nothing to go by")
    for line in lines:
        size = sizes[line["image_id"]]
        line.setdefault("score", 1.0)
        if not isinstance(line["score"], int | float):
            raise ValueError(f"annotation {line['id']}: score {line['score']!r}")
        line["iscrowd"] = int(line.get("iscrowd", 0))
        line["height"], line["width"] = size
        if boxes and not line.get("segmentation"):
            line.pop("segmentation", None)
            continue
        if "segmentation" not in line:
            raise ValueError(f"annotation {line['id']} has no segmentation: a box or a tag is no mask")
        try:
            line["segmentation"] = as_rle(line["segmentation"], size)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"annotation {line['id']}: damaged mask ({error})") from None
        if tuple(line["segmentation"]["size"]) != size:
            raise ValueError(
                f"annotation {line['id']}: mask of {line['segmentation']['size']} in an image of {list(size)}"
            )
    lines = [line for line in lines if "segmentation" in line]
    for begin in range(0, len(lines), _CHUNK):
        chunk = lines[begin : begin + _CHUNK]
        good = valid_rles([line["segmentation"] for line in chunk])
        if not good.all():
            raise ValueError(f"annotation {chunk[int(good.argmin())]['id']}: damaged mask")
        for line in chunk:
            line.setdefault("area", int(coco_mask.area(line["segmentation"])))


def validate_labels(path: str | Path, classes: dict[int, str] | None = None) -> dict[str, int]:
    """Read a written file as others will: pycocotools loads it, ids are unique, masks and boxes lie inside images.

    Args:
        classes: names by category id that the file must have.

    Returns:
        Counts of ``images``, ``annotations`` and ``classes`` (those with instances).

    Raises:
        CimError: anything of that is not so.
    """
    from pycocotools.coco import COCO

    content = read_labels(path)
    categories = {c["id"]: c["name"] for c in content["categories"]}
    if classes is not None and categories != classes:
        raise CimError("labels have other categories than the data set", path=path, expected=classes, found=categories)
    for line in content["annotations"]:
        try:
            x, y, w, h = (float(value) for value in line["bbox"])
        except (KeyError, TypeError, ValueError, OverflowError):
            found = line.get("bbox")
            raise CimError(f"annotation {line['id']} without a box", path=path, expected="bbox", found=found) from None
        if x < 0 or y < 0 or w <= 0 or h <= 0 or x + w > line["width"] or y + h > line["height"]:
            raise CimError(f"box of annotation {line['id']} leaves its image", path=path, found=line["bbox"])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO(str(path))
    for number in coco.getAnnIds()[:100]:
        coco.annToMask(coco.anns[number])
    used = {line["category_id"] for line in content["annotations"]}
    return {"images": len(content["images"]), "annotations": len(content["annotations"]), "classes": len(used)}


def sweep(
    content: dict[str, Any], thresholds: Sequence[float], truth: GroundTruth | None = None, iou: float = 0.5
) -> list[dict[str, Any]]:
    """What each threshold on the score would keep.

    Args:
        truth: annotated masks of the same images, where there are any.
        iou: mask overlap from which an instance is right; each annotated one counts once, the best scored first.

    Returns:
        One row per threshold: ``threshold``, ``instances``, ``images`` (with one or more), ``per_class`` {name: n};
        with ``truth`` also ``precision`` and ``recall`` in percent (None when nothing is kept or annotated), on the
        images that ``truth`` knows.
    """
    names = {c["id"]: c["name"] for c in content["categories"]}
    lines = content["annotations"]
    scores = np.array([line["score"] for line in lines])
    hits, known, annotated = _matched(content, truth, iou) if truth else (None, None, 0)
    rows = []
    for threshold in thresholds:
        kept = scores >= threshold
        counts = Counter(names[line["category_id"]] for line, keep in zip(lines, kept, strict=True) if keep)
        row: dict[str, Any] = {
            "threshold": float(threshold),
            "instances": int(kept.sum()),
            "images": len({line["image_id"] for line, keep in zip(lines, kept, strict=True) if keep}),
            "per_class": {name: counts[name] for name in names.values()},
        }
        if hits is not None and known is not None:
            right, judged = int((hits & kept).sum()), int((known & kept).sum())
            row["precision"] = 100.0 * right / judged if judged else None
            row["recall"] = 100.0 * right / annotated if annotated else None
        rows.append(row)
    return rows


def _matched(content: dict[str, Any], truth: GroundTruth, iou: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Whether each label is right, and whether its image is annotated, bool [n] each; number of annotated instances.

    Walking from the best score down, whether a label is right does not depend on the threshold.
    """
    results = as_results(content)
    category = _truth_categories(content, truth)
    own = {i.get("source_id", i["id"]) for i in content["images"]}
    groups: dict[tuple[int | str, int | None], list[int]] = defaultdict(list)
    hits, known = np.zeros(len(results), bool), np.zeros(len(results), bool)
    for n, result in enumerate(results):
        known[n] = result["image_id"] in truth.sizes
        groups[result["image_id"], category.get(result["category_id"])].append(n)
    masks: dict[tuple[int | str, int | None], list[Rle]] = defaultdict(list)
    for line in truth.annotations:
        if line["image_id"] in own and not line["iscrowd"]:
            masks[line["image_id"], line["category_id"]].append(line["rle"])
    for key, members in groups.items():
        if not masks.get(key):
            continue
        members = sorted(members, key=lambda n: -results[n]["score"])
        found = [results[n]["segmentation"] for n in members]
        overlap = np.asarray(coco_mask.iou(found, masks[key], [0] * len(masks[key])))
        for row, n in enumerate(members):
            best = int(overlap[row].argmax())
            if overlap[row, best] >= iou:
                hits[n] = True
                overlap[:, best] = -1
    return hits, known, sum(map(len, masks.values()))


def _truth_categories(content: dict[str, Any], truth: GroundTruth) -> dict[int, int]:
    """Category id of the truth by that of the labels, by name."""
    number = {name: k for k, name in truth.categories.items()}
    return {c["id"]: number[c["name"]] for c in content["categories"] if c["name"] in number}


def sweep_table(rows: Sequence[dict[str, Any]]) -> str:
    """The sweep as a text table."""
    names = list(rows[0]["per_class"])
    judged = "precision" in rows[0]
    head = ["threshold", "instances", "images", *(["precision", "recall"] if judged else []), *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [f"{row['threshold']:.2f}", str(row["instances"]), str(row["images"])]
        if judged:
            cells += ["" if row[k] is None else f"{row[k]:.1f}" for k in ("precision", "recall")]
        lines.append("| " + " | ".join([*cells, *(str(row["per_class"][name]) for name in names)]) + " |")
    return "\n".join(lines)
