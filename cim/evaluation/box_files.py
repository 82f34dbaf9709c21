"""Boxes at the border of evaluation: annotated ones with or without masks, and detected ones of any result file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.run_lengths import as_rle
from cim.evaluation.boxes import Guesses, Objects
from cim.evaluation.coco_results import GroundTruth

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Given:
    """Annotations and results of any kind, brought together by ids or, where those are missing, by names.

    Attributes:
        truth: a COCO json with masks or boxes.
        truth_path: its file.
        path: a COCO result file, or pseudo labels.
        classes: class name by category id of a result file; None: as the annotations say.
    """

    truth: dict[str, Any]
    truth_path: Path
    path: Path
    classes: dict[int, str] | None

    @classmethod
    def read(cls, truth_path: str | Path, path: str | Path, classes: dict[int, str] | None = None) -> Given:
        """Open the annotations.

        Raises:
            CimError: they are missing or no COCO json.
        """
        truth = read_json(truth_path, fix="check data.val_annotations")
        if not isinstance(truth, dict):
            raise CimError("not COCO annotations", path=truth_path, expected="images, categories, annotations")
        return cls(truth, Path(truth_path), Path(path), classes)

    def results_for_masks(self, listed_only: bool) -> tuple[Path | list[dict[str, Any]], list[int | str]]:
        """The result file itself, or its lines by the annotations' ids; and the photos that were left out.

        Args:
            listed_only: leave out photos that the annotations do not list (always so for pseudo labels).

        Raises:
            CimError: another kind of file, or one of other classes or photos.
        """
        content = read_json(self.path, fix="cim score CONFIG")
        if isinstance(content, list) and not listed_only:
            return self.path, []
        lines, classes = as_result_list(content, self.path)
        kept, strangers = matched(lines, self.truth, self.path)
        if classes is None:
            return kept, strangers
        try:
            ids = {str(c["name"]): c["id"] for c in self.truth["categories"]}
        except (KeyError, TypeError) as error:
            expected = "categories with id and name"
            raise CimError("not COCO annotations", path=self.truth_path, expected=expected, found=repr(error)) from None
        unknown = {classes.get(line["category_id"], line["category_id"]) for line in kept} - ids.keys()
        if unknown:
            raise CimError("labels of a class that the annotations do not list", path=self.path, found=unknown.pop())
        return [{**line, "category_id": ids[classes[line["category_id"]]]} for line in kept], strangers

    def boxes(self) -> tuple[Objects, Guesses, list[int | str]]:
        """Annotated and detected boxes of the photos that the annotations list, and the photos that were left out.

        Raises:
            CimError: annotations or results that are damaged or do not fit together.
        """
        objects = objects_of(self.truth, self.truth_path)
        lines, classes = as_result_list(read_json(self.path, fix="cim score CONFIG"), self.path)
        kept, strangers = matched(lines, self.truth, self.path)
        classes = classes or self.classes or {int(c["id"]): str(c["name"]) for c in self.truth["categories"]}
        return objects, guesses_of(kept, objects, classes, self.path), strangers


def has_masks(content: Content) -> bool:
    """Whether a COCO json can judge masks: some annotation has one, or nothing is annotated at all."""
    annotations = content.get("annotations", ())
    return not annotations or any(isinstance(a, dict) and a.get("segmentation") for a in annotations)


def objects_of(content: Content, name: str | Path) -> Objects:
    """Annotated boxes of a COCO json: those of the masks where there are some, else ``bbox``.

    ``difficult`` (VOC), ``ignore`` and ``iscrowd`` all make an object one that neither counts nor hurts.

    Args:
        content: the json.
        name: the file, for messages.

    Raises:
        CimError: no such json; an annotation of an unknown photo or class, or without a proper box.
    """
    try:
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]}
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        annotations = list(content["annotations"])
        rows = {image_id: row for row, image_id in enumerate(sizes)}
        index = {category: k for k, category in enumerate(categories)}
        photo = [rows[a["image_id"]] for a in annotations]
        class_ids = [index[a["category_id"]] for a in annotations]
        hard = [any(a.get(key) for key in ("difficult", "ignore", "iscrowd")) for a in annotations]
        boxes = [_box(a, sizes[a["image_id"]]) for a in annotations]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        expected = "images, categories, and annotations with bbox or segmentation"
        raise CimError("not COCO annotations with boxes", path=name, expected=expected, found=repr(error)) from None
    return Objects(
        tuple(sizes),
        tuple(categories.values()),
        np.array(photo, np.int64),
        np.array(class_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(hard, bool),
    )


def boxes_of_masks(truth: GroundTruth) -> Objects:
    """The boxes of annotated masks."""
    rows = {image_id: row for row, image_id in enumerate(truth.sizes)}
    index = {category: k for k, category in enumerate(truth.categories)}
    annotations = truth.annotations
    xywh = coco_mask.toBbox([a["rle"] for a in annotations]).reshape(-1, 4) if annotations else np.zeros((0, 4))
    return Objects(
        tuple(truth.sizes),
        tuple(truth.categories.values()),
        np.array([rows[a["image_id"]] for a in annotations], np.int64),
        np.array([index[a["category_id"]] for a in annotations], np.int64),
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        np.array([a["iscrowd"] or a.get("difficult", 0) for a in annotations], bool),
    )


def guesses_of(
    results: list[dict[str, Any]], objects: Objects, classes: Mapping[int, str], name: str | Path
) -> Guesses:
    """Detected boxes: ``bbox`` where a line has one, else that of its mask.

    Args:
        results: a COCO result list whose image ids are those of ``objects`` (:func:`matched`).
        objects: of the same photos.
        classes: class name by category id of the results.
        name: the file, for messages.

    Raises:
        CimError: a line of a class that the annotations do not list, without a box, or with a bad score.
    """
    rows = {image_id: row for row, image_id in enumerate(objects.image_ids)}
    index = {label: k for k, label in enumerate(objects.classes)}
    photo, class_ids, score, boxes = [], [], [], []
    for number, line in enumerate(results):
        try:
            photo.append(rows[line["image_id"]])
            class_ids.append(index[classes[line["category_id"]]])
            score.append(float(line["score"]))
            boxes.append(_box(line, None))
            if not np.isfinite(score[-1]):
                raise ValueError(f"score {score[-1]}")
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            expected = "image_id, category_id, score, and bbox or segmentation"
            raise CimError(f"bad result number {number}", path=name, expected=expected, found=repr(error)) from None
    return Guesses(
        np.array(photo, np.int64),
        np.array(class_ids, np.int64),
        np.array(score, np.float64),
        np.array(boxes, np.float64).reshape(-1, 4),
    )


def as_result_list(content: Any, name: str | Path) -> tuple[list[dict[str, Any]], dict[int, str] | None]:
    """A result list, and the class names by category id if the file tells them: of a COCO result file (it does not),
    or of a pseudo-label file (it does; image ids become file names, so that any annotation file can judge them).

    Raises:
        CimError: neither of the two.
    """
    if isinstance(content, list) and all(isinstance(line, dict) for line in content):
        return content, None
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        classes = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        lines = [{"score": 1.0, **a, "image_id": names[a["image_id"]]} for a in content["annotations"]]
        if not all(line["category_id"] in classes for line in lines):
            raise KeyError("category_id")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        expected = "a list of results, or pseudo labels with images, categories and annotations"
        raise CimError("not a result file", path=name, expected=expected, found=repr(error)) from None
    return lines, classes


def matched(
    results: Iterable[dict[str, Any]], content: Content, name: str | Path
) -> tuple[list[dict[str, Any]], list[int | str]]:
    """Results of the photos that an annotation file lists, with its ids, and the ids that it does not list.

    A photo is known by its id, or by the name of its file.

    Raises:
        CimError: results, but none of a listed photo; images without id or file name.
    """
    try:
        ids = {image["id"] for image in content["images"]}
        by_name: dict[Any, Any] = {image["file_name"]: image["id"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise CimError("annotations without a list of images", found=repr(error)) from None
    kept: list[dict[str, Any]] = []
    strangers: dict[Any, None] = {}
    for line in results:
        image_id = line.get("image_id")
        if not isinstance(image_id, int | str | None):
            raise CimError("a result of a photo that has no proper id", path=name, found=str(image_id)[:80])
        if image_id not in ids:
            image_id = by_name.get(image_id)
        if image_id is None:
            strangers[line.get("image_id")] = None
        else:
            kept.append({**line, "image_id": image_id})
    if strangers and not kept:
        found = f"e.g. {next(iter(strangers))}"
        raise CimError("no result is of a photo that the annotations list", path=name, found=found)
    return kept, list(strangers)


def _box(line: Mapping[str, Any], size: tuple[int, int] | None) -> list[float]:
    """xyxy of an annotation or result; the mask comes first where ``size`` [H, W] says how large its photo is."""
    mask = line.get("segmentation")
    if mask and (size is not None or not line.get("bbox")):
        if size is None and not isinstance(mask, dict):
            raise ValueError("a polygon in a result without bbox")
        values = coco_mask.toBbox(as_rle(mask, size or tuple(mask["size"])))
    else:
        values = np.array([float(value) for value in line["bbox"]])
    if len(values) != 4 or not np.isfinite(values).all() or values[2] < 0 or values[3] < 0:
        raise ValueError(f"box {line.get('bbox')}")
    x, y, width, height = (float(value) for value in values)
    return [x, y, x + width, y + height]
