"""COCO json at the border of evaluation: ground truth and result files, checked before any number is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.run_lengths import as_rle, valid_rles
from cim.core.types import Instances
from cim.datasets.base import Dataset

_CHUNK = 1000  # results whose run lengths are checked together: stays in cache


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated instances of a split.

    Attributes:
        name: the file, for messages.
        sizes: (H, W) of every image, by id.
        categories: class name by category id, in order of id.
        annotations: dicts with ``image_id``, ``category_id``, ``rle`` (compressed), ``area`` (pixels), ``iscrowd``,
            ``difficult`` (VOC's; looked at where boxes are judged).
    """

    name: str
    sizes: dict[int | str, tuple[int, int]]
    categories: dict[int, str]
    annotations: list[dict[str, Any]]

    @cached_property
    def by_image(self) -> dict[int | str, list[dict[str, Any]]]:
        """Annotations of every image; images without any are there too."""
        grouped: dict[int | str, list[dict[str, Any]]] = {image_id: [] for image_id in self.sizes}
        for annotation in self.annotations:
            grouped[annotation["image_id"]].append(annotation)
        return grouped

    def images_with(self, at_least: int) -> list[int | str]:
        """Ids of the images that show so many instances or more (crowds do not count)."""
        counts = {k: sum(not a["iscrowd"] for a in found) for k, found in self.by_image.items()}
        return [image_id for image_id, count in counts.items() if count >= at_least]


def load_ground_truth(source: str | Path | Mapping[str, Any] | GroundTruth) -> GroundTruth:
    """Ground truth from COCO json (a file, or its content); masks may be RLE of both kinds or polygons.

    Raises:
        CimError: missing or damaged file, no masks, an annotation of an unknown image or category.
    """
    if isinstance(source, GroundTruth):
        return source
    name = "ground truth" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_json(source, fix="check data.val_annotations")
    try:
        sizes = image_sizes(content["images"])
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        annotations = [_annotation(a, sizes, categories) for a in content["annotations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CimError(
            "not COCO instance annotations", path=name, expected="images, categories, annotations", found=repr(error)
        ) from None
    except (ValueError, OverflowError) as error:
        raise CimError("bad annotation", path=name, found=error) from None
    return GroundTruth(name, sizes, categories, annotations)


def image_sizes(images: Iterable[Mapping[str, Any]]) -> dict[int | str, tuple[int, int]]:
    """Image id -> (H, W) of a COCO json's ``images``.

    Raises:
        ValueError: one that has no pixels; KeyError, TypeError: entries without the keys.
    """
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in images}
    if any(min(size) < 1 for size in sizes.values()):
        raise ValueError("an image without height or width")
    return sizes


class Checked(list[dict[str, Any]]):
    """Results that :func:`read_results` has checked against ``truth``; not to be changed."""

    def __init__(self, results: Iterable[dict[str, Any]], truth: GroundTruth) -> None:
        super().__init__(results)
        self.truth = truth


def read_results(source: str | Path | list[dict[str, Any]], truth: GroundTruth) -> list[dict[str, Any]]:
    """A COCO result list, every line checked and every mask as compressed RLE; checked ones come back as they are.

    Raises:
        CimError: not a list of results, or lines with an unknown image or category, a score that is no number, a
            damaged mask or one of another size; says how many lines of each kind and shows the first.
    """
    if isinstance(source, Checked) and source.truth is truth:
        return source
    name = "results" if isinstance(source, list) else source
    content = source if isinstance(source, list) else read_json(source, fix="cim score CONFIG")
    if not isinstance(content, list) or not all(isinstance(line, dict) for line in content):
        raise CimError("not a COCO result file", path=name, expected="a list of results", found=type(content).__name__)
    problems: dict[str, list[int]] = {}
    results = [_result(line, index, truth, problems) for index, line in enumerate(content)]
    for begin in range(0, len(results), _CHUNK):
        chunk = [(i, line) for i, line in enumerate(results[begin : begin + _CHUNK], begin) if line is not None]
        good = valid_rles([line["segmentation"] for _, line in chunk])
        problems.setdefault("damaged mask", []).extend(np.array([i for i, _ in chunk], np.int64)[~good].tolist())
    bad = {kind: lines for kind, lines in problems.items() if lines}
    if bad:
        kind, lines = next(iter(bad.items()))
        told = ", ".join(f"{len(lines)} with {kind}" for kind, lines in bad.items())
        line = {k: str(v)[:60] for k, v in content[lines[0]].items()}
        raise CimError(
            f"bad results ({told} of {len(content)})", path=name, found=f"{kind} in number {lines[0]}: {line}"
        )
    return Checked((line for line in results if line is not None), truth)


def to_coco(instances: Instances, dataset: Dataset) -> list[dict[str, Any]]:
    """Detections of one image as COCO results; ``proposal`` is the row of the image's proposals, ``known`` (only where
    it is true) an instance of a class of which is known how many there are."""
    known = np.zeros(len(instances), bool) if instances.known is None else instances.known
    return [
        {
            "image_id": instances.image_id,
            "category_id": int(dataset.category_ids[class_id]),
            "score": float(score),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "segmentation": rle,
            "proposal": int(proposal),
            **({"known": True} if counted else {}),
        }
        for class_id, score, (x1, y1, x2, y2), rle, proposal, counted in zip(
            instances.class_ids,
            instances.score,
            instances.boxes,
            instances.rles,
            instances.proposal,
            known,
            strict=True,
        )
    ]


def _result(
    line: dict[str, Any], index: int, truth: GroundTruth, problems: dict[str, list[int]]
) -> dict[str, Any] | None:
    """The line with a compressed mask; None after noting its problem."""
    image_id, category_id = line.get("image_id"), line.get("category_id")
    size = truth.sizes.get(image_id) if isinstance(image_id, int | str) else None
    problem = None
    if size is None:
        problem = "unknown image"
    elif not isinstance(category_id, int) or category_id not in truth.categories:
        problem = "unknown category"
    elif not isinstance(line.get("score"), int | float) or not abs(line["score"]) <= sys.float_info.max:
        problem = "a score that is no number"
    else:
        try:
            mask = as_rle(line["segmentation"], size)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            problem = "damaged mask"
        else:
            if tuple(mask["size"]) == size:
                return {**line, "segmentation": mask}
            problem = "mask of another size"
    problems.setdefault(problem, []).append(index)
    return None


def _annotation(
    raw: dict[str, Any], sizes: dict[int | str, tuple[int, int]], categories: dict[int, str]
) -> dict[str, Any]:
    if raw["image_id"] not in sizes:
        raise ValueError(f"annotation {raw.get('id')} of unknown image {raw['image_id']}")
    if raw["category_id"] not in categories:
        raise ValueError(f"annotation {raw.get('id')} of unknown category {raw['category_id']}")
    rle = as_rle(raw["segmentation"], sizes[raw["image_id"]])
    if tuple(rle["size"]) != sizes[raw["image_id"]] or not valid_rles([rle])[0]:
        raise ValueError(f"damaged mask of annotation {raw.get('id')}")
    return {
        "image_id": raw["image_id"],
        "category_id": int(raw["category_id"]),
        "rle": rle,
        "area": float(raw["area"]) if "area" in raw else float(coco_mask.area(rle)),
        "iscrowd": int(raw.get("iscrowd", 0)),
        "difficult": int(raw.get("difficult", 0)),
    }


def as_results(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Labels as a COCO result list with the data set's own image ids and compressed masks."""
    own = {image["id"]: image.get("source_id", image["id"]) for image in content["images"]}
    size = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    return [
        {
            "image_id": own[a["image_id"]],
            "category_id": a["category_id"],
            "score": a.get("score", 1.0),
            "segmentation": as_rle(a["segmentation"], size[a["image_id"]]),
        }
        for a in content["annotations"]
    ]
