"""LabelMe: a json beside every photo. Masks are shapes of the kind "mask", small pictures, and kept bit for bit.

Written: ``<split>/NAME.jpg``, ``<split>/NAME.json`` and ``labels.txt`` (``labelme FOLDER --labels labels.txt``).
"""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.datasets.coco_writer import encode
from cim.datasets.marks.paste import png_mask
from cim.labels.formats.folders import Names, PhotoFolder, Placing, place, read_classes, write_classes
from cim.labels.formats.marks import (
    TRAIN,
    VAL,
    Labelled,
    LabelSet,
    Mark,
    Photo,
    Written,
    class_numbers,
    ellipse,
    grouped,
    polygon_mask,
)

log = logging.getLogger(__name__)

_VERSION = "5.5.0"  # of LabelMe, whose files look like this
_KNOWN = ("mask", "polygon", "rectangle", "circle")


def write_labelme(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """Photos with a json beside each below ``folder``; a score is its shape's description, a tag a flag."""
    names, done = Names(), Written()
    for photo, marks in labels:
        name = names.of(photo)
        target = folder / photo.split / name
        place(photo, target, photos)
        content = {
            "version": _VERSION,
            "flags": {labels.classes[mark.class_id]: True for mark in marks if mark.corners() is None},
            "shapes": [_shape(mark, labels.classes[mark.class_id]) for mark in marks if mark.corners() is not None],
            "imagePath": name.name,
            "imageData": None,
            "imageHeight": photo.size[0],
            "imageWidth": photo.size[1],
        }
        write_json(target.with_suffix(".json"), content, 1)
        done.photos += 1
        done.marks += len(marks)
    write_classes(folder, labels.classes)
    return done


def _shape(mark: Mark, name: str) -> dict[str, Any]:
    x1, y1, x2, y2 = mark.corners() or (0.0, 0.0, 0.0, 0.0)
    shape: dict[str, Any] = {
        "label": name,
        "group_id": None,
        "description": f"score {mark.score:.3f}",
        "flags": {},
        "mask": None,
    }
    if mark.rle is None:
        return {**shape, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
    crop = mark.mask()[int(y1) : int(y2), int(x1) : int(x2)]
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "PNG")
    points = [[x1, y1], [x2 - 1, y2 - 1]]  # of the first and of the last pixel
    return {**shape, "points": points, "shape_type": "mask", "mask": base64.b64encode(buffer.getvalue()).decode()}


def read_labelme(source: Path, images: Path | None = None) -> LabelSet:
    """Labels of all LabelMe files below a folder.

    Masks, polygons and circles become masks, rectangles boxes, and flags that are set tags. Shapes of one class that
    share a ``group_id`` are one instance. Points and lines are left out. Files below ``val`` belong to that split.

    Args:
        images: folder of the photos, with the same sub-folders as ``source``; None: they lie beside their files.

    Raises:
        CimError: no file, a damaged one, a photo that is missing or of another size.
    """
    files = sorted(path for path in source.rglob("*.json") if not path.name.startswith("."))
    if not files:
        raise CimError("no LabelMe files", path=source, expected="*.json beside photos")
    used: set[str] = set()
    other: Counter[str] = Counter()
    for path in files:
        content = _content(path)
        used |= {shape["label"] for shape in content["shapes"] if shape["shape_type"] in _KNOWN} | _flags(content)
        other.update(shape["shape_type"] for shape in content["shapes"] if shape["shape_type"] not in _KNOWN)
    for kind, count in other.items():
        log.warning("%d shapes left out: %s", count, kind)
    classes = read_classes(source, used)
    number = class_numbers(classes, source)

    def walk() -> Iterator[Labelled]:
        folder = PhotoFolder(images or source)
        for path in files:
            content = _content(path)
            photo = _photo(content, path, path.relative_to(source).parent, folder)
            marks = []
            for shape in content["shapes"]:
                if shape["shape_type"] in _KNOWN:
                    group = shape.get("group_id")
                    mark = _mark(shape, number[shape["label"]], photo.size, path)
                    marks.append((mark, group if isinstance(group, int) else None))
            yield photo, [*grouped(marks), *(Mark(number[name]) for name in sorted(_flags(content)))]

    return LabelSet(classes, walk)


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise CimError("not a LabelMe file", path=path, expected="imagePath and a list of shapes")
    for shape in shapes:
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise CimError("shape without a label", path=path, found=str(shape)[:60])
        if not isinstance(shape.setdefault("shape_type", "polygon"), str):  # old files have no other
            raise CimError("shape of no kind", path=path, found=str(shape)[:60])
    return content


def _flags(content: dict[str, Any]) -> set[str]:
    flags = content.get("flags")
    return {str(name) for name, value in flags.items() if value is True} if isinstance(flags, dict) else set()


def _photo(content: dict[str, Any], path: Path, inside: Path, folder: PhotoFolder) -> Photo:
    """Where the file lies, not where it says: that may be anywhere on another machine."""
    name = PureWindowsPath(content["imagePath"]).name
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    split = VAL if inside.parts[:1] == (VAL,) else TRAIN
    return folder.photo((inside / name).as_posix(), path, size, split)


def _mark(shape: dict[str, Any], class_id: int, size: tuple[int, int], path: Path) -> Mark:
    try:
        points = np.array(shape["points"], np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError("points that are none")
        if shape["shape_type"] == "polygon":
            return Mark(class_id, polygon_mask([points.ravel().tolist()], size))
        (x1, y1), (x2, y2) = points
        if shape["shape_type"] == "circle":  # its middle, and a point of its edge
            radius = float(np.hypot(x2 - x1, y2 - y1))
            return Mark(class_id, polygon_mask([ellipse(x1, y1, radius, radius)], size))
        (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
        if shape["shape_type"] == "rectangle":
            return Mark(class_id, None, (x1, y1, x2, y2))
        return Mark(class_id, encode(png_mask(shape["mask"], (round(x1), round(y1)), size)))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{shape['shape_type']} of {shape['label']}"
        raise CimError(f"damaged shape ({what})", path=path, found=str(error) or type(error).__name__) from None
