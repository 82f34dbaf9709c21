"""COCO json at the border of evaluation: ground truth and result files, checked before any number is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.datasets.base import Dataset
from cim.errors import CimError
from cim.files import read_json
from cim.types import Instances

_CHUNK = 1000  # results whose run lengths are checked together: stays in cache
_AREAS_AT_ONCE = 255


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated instances of a split.

    Attributes:
        name: the file, for messages.
        sizes: (H, W) of every image, by id.
        categories: class name by category id, in order of id.
        annotations: dicts with ``image_id``, ``category_id``, ``rle`` (compressed), ``area`` (pixels), ``iscrowd``.
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
        sizes = {i["id"]: (int(i["height"]), int(i["width"])) for i in content["images"]}
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        annotations = [_annotation(a, sizes, categories) for a in content["annotations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CimError(
            "not COCO instance annotations", path=name, expected="images, categories, annotations", found=repr(error)
        ) from None
    except ValueError as error:
        raise CimError("bad annotation", path=name, found=error) from None
    return GroundTruth(name, sizes, categories, annotations)


class Checked(list):
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
    content = source if isinstance(source, list) else read_json(source, fix="python tools/test.py CONFIG")
    if not isinstance(content, list) or not all(isinstance(line, dict) for line in content):
        raise CimError("not a COCO result file", path=name, expected="a list of results", found=type(content).__name__)
    problems: dict[str, list[int]] = {}
    results = [_result(line, index, truth, problems) for index, line in enumerate(content)]
    for begin in range(0, len(results), _CHUNK):
        chunk = [i for i in range(begin, min(begin + _CHUNK, len(results))) if results[i] is not None]
        good = valid_rles([results[i]["segmentation"] for i in chunk])
        problems.setdefault("damaged mask", []).extend(np.array(chunk, np.int64)[~good].tolist())
    bad = {kind: lines for kind, lines in problems.items() if lines}
    if bad:
        kind, lines = next(iter(bad.items()))
        told = ", ".join(f"{len(lines)} with {kind}" for kind, lines in bad.items())
        line = {k: str(v)[:60] for k, v in content[lines[0]].items()}
        raise CimError(
            f"bad results ({told} of {len(content)})", path=name, found=f"{kind} in number {lines[0]}: {line}"
        )
    return Checked(results, truth)


def to_coco(instances: Instances, dataset: Dataset) -> list[dict[str, Any]]:
    """Detections of one image as COCO results; ``proposal`` is the row of the image's proposals."""
    return [
        {
            "image_id": instances.image_id,
            "category_id": int(dataset.category_ids[klass]),
            "score": float(score),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "segmentation": rle,
            "proposal": int(proposal),
        }
        for klass, score, (x1, y1, x2, y2), rle, proposal in zip(
            instances.klass, instances.score, instances.boxes, instances.rles, instances.proposal, strict=True
        )
    ]


def valid_rles(rles: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Which compressed run lengths are whole, bool [n]: no foreign byte, no negative run, runs fill the image.

    The C decoder trusts its input and reads beyond the end of a damaged string, so this looks first. All strings
    are decoded together: a byte carries 5 bits, a flag for "more follows" and, in the last one, the sign; runs after
    the third are differences to the run two before.
    """
    rles = list(rles)
    texts = [_as_bytes(rle["counts"]) for rle in rles]
    lengths = np.array([len(t) for t in texts], np.int64)
    pixels = np.array([int(rle["size"][0]) * int(rle["size"][1]) for rle in rles], np.int64)
    good = lengths > 0
    if not good.any():
        return good
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int16) - 48
    owner = np.repeat(np.arange(len(rles), dtype=np.int32), lengths)
    last = np.cumsum(lengths)[good] - 1
    more = (codes & 32) != 0
    good[owner[(codes < 0) | (codes > 63)]] = False
    good[owner[last[more[last]]]] = False
    ends = ~more
    ends[last] = True  # an unfinished value must not run into the next string
    finish = np.flatnonzero(ends)
    start = np.concatenate([[0], finish[:-1] + 1])
    digit = np.arange(len(codes)) - np.repeat(start, finish - start + 1)
    good[owner[digit > 6]] = False  # more than 35 bits: no image has that many pixels
    value = np.add.reduceat((codes & 31).astype(np.int64) << (5 * np.minimum(digit, 6)), start)
    value -= np.where(codes[finish] & 16, np.int64(1) << (5 * np.minimum(digit[finish] + 1, 7)), 0)
    return good & _runs_fill(value, owner[finish], pixels)


def _runs_fill(value: np.ndarray, owner: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Whether differences ``value`` of the strings ``owner`` (ascending) give runs >= 0 that sum to ``pixels``."""
    first = np.searchsorted(owner, np.arange(len(pixels), dtype=owner.dtype))
    index = np.arange(len(value)) - first[owner]
    runs = value.copy()
    for chain in (index % 2 == 1, (index % 2 == 0) & (index > 0)):  # run 0 stands alone: run 2 is absolute
        member = np.flatnonzero(chain)
        if not len(member):
            continue
        total = np.cumsum(value[member])
        of = owner[member]
        head = np.searchsorted(of, np.arange(len(pixels), dtype=of.dtype))[of]  # where this string's chain begins
        runs[member] = total - (total[head] - value[member][head])
    negative = np.bincount(owner, runs < 0, minlength=len(pixels)) > 0
    sums = np.bincount(owner, np.clip(runs, -1, 2**40).astype(np.float64), minlength=len(pixels))
    return ~negative & (sums == pixels)


def mask_areas(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Pixels of compressed run lengths, float64 [n].

    In portions, because pycocotools 2.0.11 with NumPy 2 refuses more than 255 masks at once.
    """
    parts = [coco_mask.area(list(rles[i : i + _AREAS_AT_ONCE])) for i in range(0, len(rles), _AREAS_AT_ONCE)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _result(line: dict, index: int, truth: GroundTruth, problems: dict[str, list[int]]) -> dict[str, Any] | None:
    """The line with a compressed mask; None after noting its problem."""
    size = truth.sizes.get(line.get("image_id"))
    problem = None
    if size is None:
        problem = "unknown image"
    elif line.get("category_id") not in truth.categories:
        problem = "unknown category"
    elif not isinstance(line.get("score"), int | float) or not np.isfinite(line["score"]):
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


def as_rle(mask: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed RLE (``counts`` as str) of polygons, uncompressed or compressed RLE.

    Raises:
        ValueError, KeyError, TypeError: not a mask.
    """
    if isinstance(mask, list):
        if not mask or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            raise ValueError("polygon with fewer than three points")
        rle = coco_mask.merge(coco_mask.frPyObjects(mask, int(size[0]), int(size[1])))
        return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    height, width = (int(n) for n in mask["size"])
    counts = mask["counts"]
    if isinstance(counts, list):
        if any(run < 0 for run in counts) or sum(counts) != height * width:
            raise ValueError("runs do not fill the mask")
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return {"size": [height, width], "counts": _as_bytes(counts).decode("ascii")}


def _annotation(raw: dict, sizes: dict, categories: dict) -> dict[str, Any]:
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
    }


def _as_bytes(counts: str | bytes) -> bytes:
    return counts if isinstance(counts, bytes) else counts.encode("ascii")
