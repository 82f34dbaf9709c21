"""LabelMe's json, one per photo: points, rectangles, polygons, masks; shapes of one group are one instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cim.core.errors import CimError
from cim.datasets.marks.given import Given
from cim.datasets.marks.paste import png_mask

KINDS = ("point", "rectangle", "polygon", "mask")


def is_labelme(content: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and "shapes" in content


def read_labelme(path: Path, content: dict[str, Any], inside: str = ".") -> Iterator[Given]:
    """The instances of one photo.

    Args:
        inside: the file's folder in a folder of such files; its photo may lie in a folder of that name.

    Raises:
        CimError: not such a json, or a shape of another kind.
    """
    shapes, height, width = content["shapes"], content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    photo = content.get("imagePath") or path.stem
    if not isinstance(shapes, list) or not isinstance(photo, str):
        raise CimError("not LabelMe's json", path=path, expected="imagePath, and shapes as a list")
    photo = photo if inside == "." else f"{inside}/{photo}"
    groups: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for number, shape in enumerate(shapes, 1):
        where = f"{path}, shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise CimError("shape without a label", path=where)
        group = shape.get("group_id")
        key = ("alone", number) if group is None else ("group", str(group), shape["label"])
        groups.setdefault(key, []).append((where, shape))
    for members in groups.values():
        yield _one(members, photo, size)


def _one(members: list[tuple[str, dict[str, Any]]], photo: str, size: tuple[int, int] | None) -> Given:
    points: list[tuple[float, float]] = []
    outlines: list[tuple[tuple[float, float], ...]] = []
    box, mask = None, None
    for where, shape in members:
        kind, places = shape.get("shape_type") or "polygon", _places(shape, where)
        if kind == "point":
            points += places
        elif kind == "polygon":
            outlines.append(tuple(places))
        elif kind == "rectangle" and len(places) >= 2 and box is None:
            xs, ys = [x for x, _ in places], [y for _, y in places]
            box = (min(xs), min(ys), max(xs), max(ys))
        elif kind == "mask" and mask is None and len(members) == 1:
            mask = _mask(shape, places, size, where)
        else:
            raise CimError(
                "a shape that says nothing here", path=where, expected=", ".join(KINDS), found=str(kind)[:40]
            )
    return Given(members[0][0], photo, members[0][1]["label"], tuple(points), box, tuple(outlines), mask, size)


def _places(shape: dict[str, Any], where: str) -> list[tuple[float, float]]:
    try:
        return [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        raise CimError("shape without points", path=where, expected="points: [[x, y], ...]") from None


def _mask(
    shape: dict[str, Any], places: list[tuple[float, float]], size: tuple[int, int] | None, where: str
) -> np.ndarray:
    """bool [H, W]: a small PNG, put where the shape's first corner says."""
    expected = "a PNG in base64, its corner, and the photo's size"
    if size is None or not places or "mask" not in shape:
        raise CimError("damaged mask", path=where, expected=expected)
    try:
        return png_mask(shape["mask"], (round(places[0][0]), round(places[0][1])), size)
    except (ValueError, OverflowError) as error:
        raise CimError("damaged mask", path=where, expected=expected, found=error) from None
