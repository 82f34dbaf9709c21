"""COCO's json: points (visible key points), boxes, masks, on all photos or on some; and, beyond COCO, counts and masks
that somebody deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from cim.core.errors import CimError
from cim.datasets.known import MOST
from cim.datasets.marks.given import Given, Point

_VISIBLE = 2  # COCO's flag of a key point that can be seen; one that is hidden lies in something else


def is_coco(content: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def read_coco_marks(path: Path, content: dict[str, Any]) -> Iterator[Given]:
    """The instances of a file; a mask says more than its box, which is then left out.

    A crowd, and an annotation with a category alone, leave it open how many of its class there are. ``counts`` of an
    image, {class name: number}, says how many; 0: the class is not there; null leaves it open. ``deleted`` of an
    image lists annotations whose masks are no instances of their class.

    Raises:
        CimError: not such a json.
    """
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        lines = list(content["annotations"])
    except (KeyError, TypeError):
        raise CimError("not a COCO json", path=path, expected="images and categories with id and name") from None
    for entry in images.values():
        yield from _counts(entry, f"{path}, image {entry['id']}")
        yield from _deleted(entry, names, f"{path}, image {entry['id']}")
    for number, line in enumerate(lines, 1):
        where = f"{path}, annotation {line.get('id', number) if isinstance(line, dict) else number}"
        try:
            image, label = images[line["image_id"]], names[line["category_id"]]
            photo, size = str(image["file_name"]), _size(image)
        except (KeyError, TypeError):
            raise CimError("annotation of an unknown image or category", path=where) from None
        yield Given(where, photo, label, size=size, **({} if line.get("iscrowd") else _marks(line, where)))


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else None


def _counts(image: dict[str, Any], where: str) -> Iterator[Given]:
    counts = image.get("counts") or {}
    if not isinstance(counts, dict) or (counts and "file_name" not in image):
        expected = "a file_name, and {class name: number}"
        raise CimError("damaged counts", path=where, expected=expected, found=str(counts)[:40])
    for label, count in counts.items():
        if count is not None and (type(count) is not int or not 0 <= count <= MOST):
            expected = f"0 to {MOST}, or null"
            raise CimError(f"a count of '{label}' beyond reason", path=where, expected=expected, found=count)
        yield Given(where, str(image["file_name"]), label, size=_size(image), count=count)


def _deleted(image: dict[str, Any], names: dict[Any, str], where: str) -> Iterator[Given]:
    try:
        for line in image.get("deleted") or ():
            photo, label, mask = str(image["file_name"]), names[line["category_id"]], line["segmentation"]
            yield Given(where, photo, label, mask=mask, size=_size(image), rejected=True)
    except (KeyError, TypeError):
        raise CimError("damaged list of deleted masks", path=where, expected="category_id, segmentation") from None


def _marks(line: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        places = line.get("keypoints") or []
        points = tuple(
            (float(x), float(y)) for x, y, v in zip(places[::3], places[1::3], places[2::3]) if v == _VISIBLE
        )
        shape = line.get("segmentation")
        if isinstance(shape, list) and shape:
            return {"points": points, "outlines": tuple(_polygon(flat) for flat in shape)}
        if isinstance(shape, dict):
            return {"points": points, "mask": shape}
        if line.get("bbox"):
            x, y, w, h = (float(value) for value in line["bbox"])
            return {"points": points, "box": (x, y, x + w, y + h)}
    except (TypeError, ValueError, AttributeError) as error:
        raise CimError("damaged annotation", path=where, found=error) from None
    return {"points": points}


def _polygon(flat: list[float]) -> tuple[Point, ...]:
    numbers = [float(value) for value in flat]
    if len(numbers) % 2:
        raise ValueError("a polygon of an odd length")
    return tuple(zip(numbers[::2], numbers[1::2]))
