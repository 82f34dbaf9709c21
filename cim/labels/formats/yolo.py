"""For ultralytics: a line of text per instance, its mask as one polygon (:mod:`cim.labels.formats.polygons`).

Written: ``images/<split>/...``, ``labels/<split>/...txt`` and ``data.yaml``, which ultralytics trains from. Holes and
further parts hang on the polygon by bridges of no width; what that changes is measured. Points are written a quarter of
a pixel inside their pixel: whoever rounds and whoever cuts decimals off gets the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cim.core.errors import CimError
from cim.datasets.coco_writer import encode
from cim.datasets.photo_files import PHOTO_SUFFIXES
from cim.labels.formats.folders import Names, PhotoFolder, Placing, place, read_lines
from cim.labels.formats.marks import (
    TRAIN,
    VAL,
    Labelled,
    LabelSet,
    Mark,
    Photo,
    Written,
    class_numbers,
    mask_iou,
)
from cim.labels.formats.polygons import joined, outlines, paint

_INSIDE = 0.25  # of a pixel


def write_yolo(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """Photos, their text files and ``data.yaml`` below ``folder``; IoUs of the polygons as others will paint them.

    A photo without instances becomes one that shows nothing, with an empty file.
    """
    names, done = Names(), Written()
    splits: set[str] = set()
    for photo, marks in labels:
        name, marks = names.of(photo), [mark for mark in marks if mark.corners() is not None]
        place(photo, folder / "images" / photo.split / name, photos)
        lines = []
        for mark in marks:
            line, iou = _line(mark, photo.size)
            lines.append(line)
            if iou is not None:
                done.ious.append(iou)
        path = folder / "labels" / photo.split / name.with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        splits.add(photo.split)
        done.photos += 1
        done.marks += len(marks)
    # ultralytics wants both; without photos to validate on it validates on those that it trains on
    paths = {split: f"images/{split if split in splits else TRAIN}" for split in (TRAIN, VAL)}
    content = {**paths, "names": dict(enumerate(labels.classes))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return done


def _line(mark: Mark, size: tuple[int, int]) -> tuple[str, float | None]:
    """A line, and the IoU of its polygon with the mask."""
    height, width = size
    if mark.rle is None:
        x1, y1, x2, y2 = mark.corners() or (0.0, 0.0, 0.0, 0.0)
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        return " ".join([str(mark.class_id), *(f"{value:.6f}" for value in numbers)]), None
    mask = mark.mask()
    polygon = joined(outlines(mask))
    scaled = (polygon + _INSIDE) / (width, height)
    text = " ".join(f"{value:.6f}" for value in scaled.ravel())
    return f"{mark.class_id} {text}", mask_iou(mask, paint([polygon], size))


def read_yolo(source: Path, images: Path | None = None) -> LabelSet:
    """Labels of a ``data.yaml`` (or the folder of one): polygons become masks, boxes stay boxes.

    Args:
        images: folder that the paths of the yaml are relative to; None: its ``path`` if that lies below its own folder,
            else its own folder.

    Raises:
        CimError: no yaml, photos outside the folder, a line that is none.
    """
    path = source / "data.yaml" if source.is_dir() else source
    content = _yaml(path)
    classes = _classes(content, path)
    class_numbers(classes, path)
    root = images or _root(content, path)
    folders = _folders(content, root, path)

    def walk() -> Iterator[Labelled]:
        for split, folder in folders:
            finder = PhotoFolder(folder)
            for photo in sorted(folder.rglob("*")):
                if photo.suffix.lower() not in PHOTO_SUFFIXES or photo.name.startswith("."):
                    continue
                found = finder.photo(photo.relative_to(folder).as_posix(), path, split=split)
                found = Photo(found.path.relative_to(root).as_posix(), found.path, found.size, split)
                yield found, _read_lines(_label_path(photo, root), found.size, len(classes))

    return LabelSet(classes, walk)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CimError("missing file", path=path, expected="ultralytics' data.yaml") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CimError("not a yaml file", path=path, found=error) from None
    if not isinstance(content, dict):
        raise CimError("not ultralytics' data.yaml", path=path, expected="names, train, val")
    return content


def _classes(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        return tuple(str(names[number]) for number in range(len(names)))
    if isinstance(names, list):
        return tuple(map(str, names))
    raise CimError("no names of classes", path=path, expected="names: a list, or 0: first, 1: second, ...", found=names)


def _root(content: dict[str, Any], path: Path) -> Path:
    told = path.parent / str(content.get("path") or "")
    return told if told.is_dir() and told.resolve().is_relative_to(path.parent.resolve()) else path.parent


def _folders(content: dict[str, Any], root: Path, path: Path) -> list[tuple[str, Path]]:
    """(split, folder of its photos), each folder once."""
    found: list[tuple[str, Path]] = []
    for split in (TRAIN, VAL):
        given = content.get(split)
        for entry in given if isinstance(given, list) else [given]:
            if entry is None:
                continue
            if not isinstance(entry, str):
                raise CimError(f"bad {split}", path=path, expected="a folder of photos", found=entry)
            if entry.startswith("../") and (root / entry[3:]).is_dir():  # as Roboflow writes it
                entry = entry[3:]
            folder = (root / entry).resolve()
            if not folder.is_relative_to(root.resolve()):
                raise CimError("photos outside the folder", path=path, expected=f"below {root}", found=entry)
            if not folder.is_dir():
                raise CimError("no such folder of photos", path=folder, fix="--images FOLDER that the yaml means")
            if folder not in [known for _, known in found]:
                found.append((split, root / folder.relative_to(root.resolve())))
    return found


def _label_path(photo: Path, root: Path) -> Path:
    """Where ultralytics looks: the last ``images`` below the root becomes ``labels``."""
    parts = list(photo.relative_to(root).parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return root.joinpath(*parts).with_suffix(".txt")


def _read_lines(path: Path, size: tuple[int, int], classes: int) -> list[Mark]:
    if not path.is_file():
        return []
    marks = []
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            first, *values = (float(word) for word in line.split())
            if not all(map(math.isfinite, values)):
                raise ValueError
        except ValueError:
            if not line.strip():
                continue
            raise CimError("bad label", path=where, expected="numbers", found=line[:60]) from None
        if not (first.is_integer() and 0 <= first < classes):
            raise CimError("unknown class", path=where, expected=f"0 to {classes - 1}", found=f"{first:g}")
        marks.append(_read_mark(int(first), values, size, where))
    return marks


def _read_mark(class_id: int, values: list[float], size: tuple[int, int], where: str) -> Mark:
    height, width = size
    if len(values) == 4:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        return Mark(class_id, None, box)
    if len(values) < 6 or len(values) % 2:
        raise CimError(
            "bad label", path=where, expected="4 numbers of a box or 6, 8, ... of a polygon", found=len(values)
        )
    points = np.array(values).reshape(-1, 2) * (width, height)
    return Mark(class_id, encode(paint([np.clip(np.floor(points), 0, (width - 1, height - 1))], size)))
