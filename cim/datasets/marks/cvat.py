"""CVAT for images 1.1, an XML: points, boxes, polygons, masks; shapes of one group are one instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from cim.core.errors import CimError
from cim.core.xml_file import read_xml
from cim.datasets.marks.given import Given, Point
from cim.datasets.marks.paste import runs_mask

KINDS = ("points", "box", "polygon", "mask")
LARGEST = 2**30  # bytes
_SAYS_NOTHING = ("tag", "attribute")
_FIX = 'export the task as "CVAT for images 1.1"'


def read_cvat(path: Path) -> Iterator[Given]:
    """The instances of all photos of an export.

    Raises:
        CimError: not such an XML, or a shape of another kind.
    """
    root = read_xml(path, LARGEST, _FIX)
    if root.tag != "annotations":
        raise CimError("not CVAT's XML", path=path, expected="<annotations>", found=f"<{root.tag}>", fix=_FIX)
    for image in root.iter("image"):
        photo = image.get("name") or ""
        where = f"{path}, image {photo}"
        size = (_whole(image, "height", where), _whole(image, "width", where))
        groups: dict[tuple[str, str, str], list[tuple[str, Element]]] = {}
        for number, shape in enumerate((s for s in image if s.tag not in _SAYS_NOTHING), 1):
            label, group = shape.get("label"), shape.get("group_id")
            if not label:
                raise CimError("shape without a label", path=f"{where}, shape {number}")
            key = ("alone", str(number), label) if group is None else ("group", group, label)
            groups.setdefault(key, []).append((f"{where}, shape {number}", shape))
        for members in groups.values():
            yield _one(members, photo, size)


def _one(members: list[tuple[str, Element]], photo: str, size: tuple[int, int]) -> Given:
    points: list[Point] = []
    outlines: list[tuple[Point, ...]] = []
    box, mask = None, None
    for where, shape in members:
        if shape.tag == "points":
            points += _places(shape, where)
        elif shape.tag == "polygon":
            outlines.append(tuple(_places(shape, where)))
        elif shape.tag == "box" and box is None:
            box = _upright(shape, where)
        elif shape.tag == "mask" and mask is None and len(members) == 1:
            mask = _mask(shape, size, where)
        else:
            expected = ", ".join(KINDS) + ", at most one box or mask in a group"
            raise CimError("a shape that says nothing here", path=where, expected=expected, found=shape.tag)
    label = members[0][1].get("label") or ""
    return Given(members[0][0], photo, label, tuple(points), box, tuple(outlines), mask, size)


def _places(shape: Element, where: str) -> list[Point]:
    try:
        pairs = [text.split(",") for text in (shape.get("points") or "").split(";")]
        return [(float(x), float(y)) for x, y in pairs]
    except ValueError:
        found = (shape.get("points") or "")[:40]
        raise CimError("bad points", path=where, expected="x,y;x,y", found=found) from None


def _upright(shape: Element, where: str) -> tuple[float, float, float, float]:
    if float(shape.get("rotation") or 0):
        raise CimError("a turned box", path=where, fix="draw it upright, or as a polygon")
    x1, y1, x2, y2 = (_number(shape, name, where) for name in ("xtl", "ytl", "xbr", "ybr"))
    return x1, y1, x2, y2


def _mask(shape: Element, size: tuple[int, int], where: str) -> np.ndarray:
    """bool [H, W]."""
    left, top, width, height = (_whole(shape, name, where) for name in ("left", "top", "width", "height"))
    try:
        return runs_mask(shape.get("rle") or "", (left, top, width, height), size)
    except ValueError as error:
        raise CimError("damaged mask", path=where, found=error) from None


def _number(shape: Element, name: str, where: str) -> float:
    try:
        return float(shape.get(name) or "")
    except ValueError:
        raise CimError(f"bad {name}", path=where, expected="a number", found=shape.get(name)) from None


def _whole(shape: Element, name: str, where: str) -> int:
    value = _number(shape, name, where)
    if value != int(value) or value < 0:
        raise CimError(f"bad {name}", path=where, expected="a whole number", found=shape.get(name))
    return int(value)
