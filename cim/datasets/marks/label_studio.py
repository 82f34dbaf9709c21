"""Label Studio's json export: key points, rectangles, polygons, brush strokes, in percent of the photo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

import numpy as np

from cim.core.errors import CimError
from cim.datasets.marks.brush import WORD, read_brush
from cim.datasets.marks.given import Given

KINDS = {"keypointlabels": "point", "rectanglelabels": "box", "polygonlabels": "polygon", "brushlabels": "mask"}
_FIX = 'export the project as "JSON" (not JSON-MIN)'
_SAYS_NOTHING = ("choices", "textarea", "rating")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what the program puts before the name of an uploaded file


def is_label_studio(content: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(content, list) and all(isinstance(task, dict) and "data" in task for task in content)


def read_label_studio(path: Path, content: list[dict[str, Any]]) -> Iterator[Given]:
    """The instances of an export; of a task that was done several times, the last one not cancelled counts.

    Raises:
        CimError: not such a json, or a region of another kind.
    """
    for number, task in enumerate(content, 1):
        where = f"{path}, task {task.get('id', number)}"
        done = task.get("annotations")
        if not isinstance(done, list):
            raise CimError("task without annotations", path=where, fix=_FIX)
        counts = [one for one in done if isinstance(one, dict) and not one.get("was_cancelled")]
        for part, region in enumerate(counts[-1].get("result", []) if counts else [], 1):
            yield from _region(region, _photo(task, where), f"{where}, region {part}")


def _photo(task: dict[str, Any], where: str) -> str:
    """The name of the task's photo: of a path, an address, or a file that was uploaded."""
    data = task["data"]
    names = [value for value in (data.values() if isinstance(data, dict) else ()) if isinstance(value, str)]
    name = data["image"] if isinstance(data, dict) and isinstance(data.get("image"), str) else names[0] if names else ""
    if not name:
        raise CimError("task without an image", path=where, fix=_FIX)
    name = unquote(name.split("?d=", 1)[-1])
    folder, _, last = name.rpartition("/")
    return _UPLOADED.sub("", last) if "upload" in folder or not folder else name


def _region(region: Any, photo: str, where: str) -> Iterator[Given]:
    kind = region.get("type") if isinstance(region, dict) else None
    if kind in _SAYS_NOTHING:
        return
    if kind not in KINDS:
        expected = ", ".join(KINDS)
        raise CimError("a region that says nothing here", path=where, expected=expected, found=str(kind)[:40])
    try:
        value, size = region["value"], (int(region["original_height"]), int(region["original_width"]))
        (label,) = value[kind]
        scale = np.array([size[1], size[0]]) / 100
        if kind == "keypointlabels":
            x, y = (value["x"], value["y"]) * scale
            yield Given(where, photo, label, points=((float(x), float(y)),), size=size)
        elif kind == "rectanglelabels":
            if value.get("rotation"):
                raise CimError("a turned box", path=where, fix="draw it upright, or as a polygon")
            x1, y1 = (value["x"], value["y"]) * scale
            x2, y2 = (value["x"] + value["width"], value["y"] + value["height"]) * scale
            yield Given(where, photo, label, box=(float(x1), float(y1), float(x2), float(y2)), size=size)
        elif kind == "polygonlabels":
            outline = tuple((float(x), float(y)) for x, y in np.asarray(value["points"], float) * scale)
            yield Given(where, photo, label, outlines=(outline,), size=size)
        else:
            yield Given(where, photo, label, mask=brush_mask(value["rle"], size), size=size)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise CimError(
            "damaged region", path=where, expected="one label, value and original size", found=error
        ) from None


def brush_mask(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: what a brush touched, however little; see :func:`cim.datasets.marks.brush.read_brush`."""
    return read_brush(packed, size, range(1, WORD + 1)) > 0
