"""Label Studio: a json of tasks per split. Masks are brush strokes in its own run lengths, kept bit for bit.

Written: ``<split>.json``, ``images/<split>/...`` and ``labeling_config.xml``. Labels are predictions, which a person
takes over or corrects. The run lengths are made here: Label Studio's own converter makes them bit by bit, as text.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.datasets.coco_writer import encode
from cim.datasets.marks.brush import read_brush
from cim.labels.formats.folders import (
    Names,
    PhotoFolder,
    Placing,
    place,
    read_classes,
    split_files,
    write_classes,
)
from cim.labels.formats.marks import (
    Labelled,
    LabelSet,
    Mark,
    Photo,
    Written,
    class_numbers,
    ellipse,
    polygon_mask,
    together,
)

log = logging.getLogger(__name__)

CONFIG = "labeling_config.xml"
_SERVED = "/data/local-files/?d="  # where Label Studio serves the files below its document root
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what it puts before the names of photos that were uploaded
_KNOWN = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "choices")
_SIZES = (3, 4, 8, 16)  # bits of the length of a run


def write_label_studio(folder: Path, labels: LabelSet, photos: Placing = "link", served: str = _SERVED) -> Written:
    """Tasks, photos and the labelling config below ``folder``.

    Args:
        served: what the address of a photo begins with; by default that of local files, with ``folder`` as their root.
    """
    names, done = Names(), Written()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for photo, marks in labels:
            name = Path("images") / photo.split / names.of(photo)
            place(photo, folder / name, photos)
            if photo.split not in files:
                files[photo.split] = stack.enter_context(open(folder / f"{photo.split}.json", "w", encoding="utf-8"))
                files[photo.split].write("[")
            else:
                files[photo.split].write(",")
            results = [
                _result(mark, labels.classes[mark.class_id], photo.size, f"{n}") for n, mark in enumerate(marks, 1)
            ]
            score = float(np.mean([mark.score for mark in marks])) if marks else 0.0
            task = {"data": {"image": served + quote(name.as_posix())}}
            predictions = [{"model_version": "cim", "score": score, "result": results}]
            files[photo.split].write("\n" + json.dumps({**task, "predictions": predictions}))
            done.photos += 1
            done.marks += len(marks)
        for file in files.values():
            file.write("\n]\n")
    (folder / CONFIG).write_text(labeling_config(labels.classes), encoding="utf-8")
    write_classes(folder, labels.classes)
    return done


def labeling_config(classes: tuple[str, ...]) -> str:
    """What Label Studio asks for under Labeling Interface, Code."""
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
    for kind, name, item in (
        ("BrushLabels", "mask", "Label"),
        ("RectangleLabels", "box", "Label"),
        ("Choices", "tag", "Choice"),
    ):
        more = ' choice="multiple"' if kind == "Choices" else ""
        lines.append(f'  <{kind} name="{name}" toName="image"{more}>')
        lines += [f"    <{item} value={quoteattr(label)}/>" for label in classes]
        lines.append(f"  </{kind}>")
    return "\n".join([*lines, "</View>", ""])


def _result(mark: Mark, name: str, size: tuple[int, int], number: str) -> dict[str, Any]:
    height, width = size
    common = {"id": number, "to_name": "image", "original_width": width, "original_height": height}
    common |= {"image_rotation": 0, "score": mark.score}
    corners = mark.corners()
    if corners is None:
        return {**common, "from_name": "tag", "type": "choices", "value": {"choices": [name]}}
    if mark.rle is None:
        x1, y1, x2, y2 = corners
        box = {"x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0}
        box |= {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
        return {**common, "from_name": "box", "type": "rectanglelabels", "value": {**box, "rectanglelabels": [name]}}
    value = {"format": "rle", "rle": encode_brush(mark.mask()), "brushlabels": [name]}
    return {**common, "from_name": "mask", "type": "brushlabels", "value": value}


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask bool [H, W] as bytes of Label Studio's run lengths: a picture of four channels, 0 or 255."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(np.diff(flat)) + 1, flat.size)
    lengths, values = 4 * np.diff(ends, prepend=0), flat[ends - 1]
    pieces = -(-lengths // 2**16)  # the longest run that can be told
    last = np.cumsum(pieces) - 1
    runs = np.full(int(pieces.sum()), 2**16)
    runs[last] = lengths - (pieces - 1) * 2**16
    values = np.repeat(values, pieces)
    kind = np.searchsorted([2**bits for bits in _SIZES], runs)
    bits = np.array(_SIZES)[kind]
    head = [(4 * flat.size, 32), (7, 5), *((size - 1, 4) for size in _SIZES)]
    code = (((4 | kind) << bits | runs - 1) << 8) | np.where(values, 255, 0)  # "a run", its kind, length, value
    codes = np.concatenate([[value for value, _ in head], code])
    widths = np.concatenate([[width for _, width in head], 3 + bits + 8])
    return _packed(codes, widths).tolist()


def _packed(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Numbers of so many bits each, one after the other, as bytes uint8."""
    owner = np.repeat(np.arange(len(codes)), widths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths)
    return np.packbits((codes[owner] >> (widths[owner] - 1 - place)) & 1)


def decode_brush(data: list[int], size: tuple[int, int]) -> np.ndarray:
    """Mask bool [H, W] of Label Studio's run lengths: where a pixel is at least half covered.

    Raises:
        ValueError: no run lengths, or those of a picture of another size.
    """
    return read_brush(data, size) >= 128


def read_label_studio(source: Path, images: Path | None = None) -> LabelSet:
    """Labels of a json that Label Studio exports ("JSON"), or of the folder that :func:`write_label_studio` makes.

    Where a person has annotated a task, the last annotation that was not cancelled counts, else its last prediction.
    Brush strokes, polygons and ellipses become masks, rectangles boxes (turned ones the box around them), choices tags;
    all else is left out.

    Args:
        images: folder of the photos; None: that of the json. Names are found as they are served, or without what Label
            Studio puts before the names of photos that were uploaded.

    Raises:
        CimError: a damaged file, a photo that is missing, of another size, or outside the folder.
    """
    return together([_read(path, images, split) for split, path in split_files(source, "{}.json")])


def _read(path: Path, images: Path | None, split: str) -> LabelSet:
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise CimError("not a json of Label Studio", path=path, expected="a list of tasks", fix='export as "JSON"')
    results = [_results(task, path) for task in tasks]
    other = Counter(result["type"] for found in results for result in found if result["type"] not in _KNOWN)
    for kind, count in other.items():
        log.warning("%d results left out: %s", count, kind)
    used = {name for found in results for result in found for name in _names(result)}
    classes = read_classes(path.parent, used)
    number = class_numbers(classes, path)

    def walk() -> Iterator[Labelled]:
        folder = PhotoFolder(images or path.parent)
        for task, found in zip(tasks, results, strict=True):
            photo = _photo(task["data"], folder, split, path)
            where = f"{path}, {photo.name}"
            yield photo, [_mark(result, number[name], photo.size, where) for result in found for name in _names(result)]

    return LabelSet(classes, walk)


def _results(task: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    annotations = [entry for entry in _list(task, "annotations", path) if not entry.get("was_cancelled")]
    entries = annotations or _list(task, "predictions", path)
    results = [result for entry in entries[-1:] for result in _list(entry, "result", path)]
    for result in results:
        if not isinstance(result.get("value"), dict):
            raise CimError("bad result", path=path, expected="type and value", found=str(result)[:60])
        result["type"] = str(result.get("type", "")).lower()
    return results


def _list(entry: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """A list of objects; an empty one where there is none."""
    found = entry.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise CimError(f"bad {key}", path=path, expected="a list of objects", found=str(found)[:60])
    return found


def _names(result: dict[str, Any]) -> list[str]:
    names = result["value"].get(result["type"]) if result["type"] in _KNOWN else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _photo(data: Any, folder: PhotoFolder, split: str, path: Path) -> Photo:
    """By the address in a task's data."""
    addresses = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    address = data["image"] if isinstance(data, dict) and isinstance(data.get("image"), str) else (addresses or [""])[0]
    parts = urlsplit(address)
    name = parse_qs(parts.query).get("d", [""])[0] or PurePosixPath(unquote(parts.path)).name
    if not name:
        raise CimError("task without a photo", path=path, expected="an address in data", found=str(data)[:60])
    stem = PurePosixPath(name)
    if _UPLOADED.match(stem.name) and not (folder.root / stem.name).is_file():
        name = _UPLOADED.sub("", stem.name)
    return folder.photo(name, path, split=split)


def _mark(result: dict[str, Any], class_id: int, size: tuple[int, int], where: str) -> Mark:
    height, width = size
    value, kind, score = result["value"], result["type"], result.get("score")
    score = float(score) if isinstance(score, int | float) else 1.0
    try:
        if kind == "choices":
            return Mark(class_id, score=score)
        told = (result.get("original_height", height), result.get("original_width", width))
        if told != size:
            raise ValueError(f"labels of a photo of {told}, which has {size} (H, W)")
        if kind == "brushlabels":
            return Mark(class_id, encode(decode_brush(value["rle"], size)), None, score)
        if kind == "polygonlabels":
            points = np.array(value["points"], np.float64) * (width / 100, height / 100)
            return Mark(class_id, polygon_mask([points.ravel().tolist()], size), None, score)
        x, y = value["x"] * width / 100, value["y"] * height / 100
        if kind == "ellipselabels":
            rx, ry = value["radiusX"] * width / 100, value["radiusY"] * height / 100
            return Mark(class_id, polygon_mask([ellipse(x, y, rx, ry, value.get("rotation", 0))], size), None, score)
        across, down = value["width"] * width / 100, value["height"] * height / 100
        turn = np.deg2rad(value.get("rotation", 0))  # about the first corner
        xs = x + np.array([0, across * np.cos(turn), -down * np.sin(turn), across * np.cos(turn) - down * np.sin(turn)])
        ys = y + np.array([0, across * np.sin(turn), down * np.cos(turn), across * np.sin(turn) + down * np.cos(turn)])
        return Mark(class_id, None, (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())), score)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CimError(f"damaged {kind}", path=where, found=str(error)) from None
