"""CVAT: its own XML ("CVAT for images 1.1"), one per split. Masks are run lengths, kept bit for bit.

Written: ``<split>/annotations.xml`` and ``<split>/images/...``; CVAT matches photos by name.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np

from cim.core.errors import CimError
from cim.core.xml_file import elements
from cim.datasets.coco_writer import encode
from cim.datasets.marks.paste import runs_mask
from cim.labels.formats.folders import Names, PhotoFolder, Placing, place, split_files
from cim.labels.formats.marks import (
    Labelled,
    LabelSet,
    Mark,
    Written,
    class_numbers,
    ellipse,
    grouped,
    polygon_mask,
    together,
)

log = logging.getLogger(__name__)

_KNOWN = ("mask", "polygon", "box", "ellipse", "tag")


def write_cvat(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """``annotations.xml`` and ``images`` of each split below ``folder``."""
    names, done = Names(), Written()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for number, (photo, marks) in enumerate(labels):
            name = names.of(photo)
            place(photo, folder / photo.split / "images" / name, photos)
            if photo.split not in files:
                path = folder / photo.split / "annotations.xml"
                files[photo.split] = stack.enter_context(open(path, "w", encoding="utf-8"))
                files[photo.split].write(_head(labels.classes))
            sides = {"width": str(photo.size[1]), "height": str(photo.size[0])}
            image = ElementTree.Element("image", {"id": str(number), "name": str(name), **sides})
            for mark in marks:
                image.append(_element(mark, labels.classes[mark.class_id]))
            files[photo.split].write(ElementTree.tostring(image, "unicode") + "\n")
            done.photos += 1
            done.marks += len(marks)
        for file in files.values():
            file.write("</annotations>\n")
    return done


def _head(classes: tuple[str, ...]) -> str:
    meta = ElementTree.Element("meta")
    labels = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    for name in classes:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    text = ElementTree.tostring(meta, "unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n{text}\n'


def _element(mark: Mark, name: str) -> ElementTree.Element:
    common = {"label": name, "source": "auto", "occluded": "0", "z_order": "0"}
    corners = mark.corners()
    if corners is None:
        return ElementTree.Element("tag", {"label": name, "source": "auto"})
    if mark.rle is None:
        sides = zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)
        return ElementTree.Element("box", {**common, **{key: f"{side:.2f}" for key, side in sides}})
    x1, y1, x2, y2 = map(int, corners)
    runs = ", ".join(map(str, _runs(mark.mask()[y1:y2, x1:x2])))
    place = {"left": str(x1), "top": str(y1), "width": str(x2 - x1), "height": str(y2 - y1)}
    return ElementTree.Element("mask", {**common, "rle": runs, **place})


def _runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs, of background and mask in turn, row by row."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def read_cvat(source: Path, images: Path | None = None) -> LabelSet:
    """Labels of an XML of CVAT's ("CVAT for images 1.1"), or of the folder that :func:`write_cvat` makes.

    Masks, polygons and ellipses become masks, boxes boxes, tags tags. Shapes of one class that share a ``group_id`` are
    one instance. Points, lines and skeletons are left out.

    Args:
        images: folder of the photos; None: ``images`` beside the XML, else the XML's own folder.

    Raises:
        CimError: a damaged file, a photo that is missing, of another size, or outside the folder.
    """
    return together([_read(path, images, split) for split, path in split_files(source, "{}/annotations.xml")])


def _read(path: Path, images: Path | None, split: str) -> LabelSet:
    beside = path.parent / "images"
    root = images or (beside if beside.is_dir() else path.parent)
    listed: list[str] = []
    used: set[str] = set()
    other: Counter[str] = Counter()
    for element in elements(path, ("label", "image")):
        if element.tag == "label":
            listed.append(element.findtext("name") or "")
        used |= {shape.get("label") or "" for shape in element if element.tag == "image" and shape.tag in _KNOWN}
        other.update(shape.tag for shape in element if element.tag == "image" and shape.tag not in _KNOWN)
    for kind, count in other.items():
        log.warning("%d shapes left out: %s", count, kind)
    classes = (*(name for name in dict.fromkeys(listed) if name), *sorted(used - set(listed)))
    number = class_numbers(classes, path)

    def walk() -> Iterator[Labelled]:
        folder = PhotoFolder(root)
        for image in elements(path, ("image",)):
            name = image.get("name") or ""
            size = (_whole(image, "height", path), _whole(image, "width", path))
            photo = folder.photo(name, path, size, split)
            marks = []
            for shape in image:
                if shape.tag in _KNOWN:
                    mark = _mark(shape, number[shape.get("label") or ""], size, f"{path}, {name}")
                    group = shape.get("group_id", "0")
                    marks.append((mark, None if group == "0" else group))
            yield photo, grouped(marks)

    return LabelSet(classes, walk)


def _mark(shape: ElementTree.Element, class_id: int, size: tuple[int, int], where: str) -> Mark:
    def numbers(*keys: str) -> list[float]:
        return [float(shape.attrib[key]) for key in keys]

    try:
        if shape.tag == "tag":
            return Mark(class_id)
        if shape.tag == "box":
            x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
            return Mark(class_id, None, (x1, y1, x2, y2))
        if shape.tag == "ellipse":
            x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
            return Mark(class_id, polygon_mask([ellipse(x, y, rx, ry, float(shape.get("rotation", "0")))], size))
        if shape.tag == "polygon":
            points = [float(side) for point in shape.attrib["points"].split(";") for side in point.split(",")]
            return Mark(class_id, polygon_mask([points], size))
        left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
        return Mark(class_id, encode(runs_mask(shape.attrib["rle"], (left, top, width, height), size)))
    except (KeyError, ValueError, TypeError) as error:
        raise CimError(f"damaged {shape.tag}", path=where, found=str(error)) from None


def _whole(element: ElementTree.Element, key: str, path: Path) -> int:
    text = element.get(key) or ""
    if not text.isdecimal():
        raise CimError(f"image without {key}", path=path, found=element.get("name") or text)
    return int(text)
