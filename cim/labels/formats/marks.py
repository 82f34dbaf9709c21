"""What every format is written from and read into: photos, one after the other, each with what is marked on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.run_lengths import as_rle, as_text
from cim.core.types import Rle

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo.

    Attributes:
        name: its file name below the folder of photos, with forward slashes; no two photos of a split share one.
        path: where it lies.
        size: (H, W) in pixels, upright.
        split: "train" or "val".
        image_id: of the labels that it comes from; None: none was given.
    """

    name: str
    path: Path
    size: tuple[int, int]
    split: str = TRAIN
    image_id: int | str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """One instance with a mask, or with a box alone, or the word that a class is somewhere in the photo.

    Attributes:
        class_id: 0..C-1.
        rle: compressed run lengths of the photo's size (``counts`` as str); None: no mask.
        box: x1, y1, x2, y2 in pixels, exclusive; None: that of the mask, or none.
        score: 0..1; 1 where a person or a file without scores says so.
    """

    class_id: int
    rle: Rle | None = None
    box: tuple[float, float, float, float] | None = None
    score: float = 1.0

    def mask(self) -> np.ndarray:
        """bool [H, W].

        Raises:
            CimError: there is none.
        """
        if self.rle is None:
            raise CimError("an instance without a mask", expected="masks", fix="export labels that have masks")
        return coco_mask.decode(self.rle).astype(bool)

    def area(self) -> int:
        """Pixels of the mask; 0 without one."""
        return 0 if self.rle is None else int(coco_mask.area(self.rle))

    def corners(self) -> tuple[float, float, float, float] | None:
        """The box, of the mask where there is no other."""
        if self.box is not None or self.rle is None:
            return self.box
        x, y, width, height = (float(side) for side in coco_mask.toBbox(self.rle))
        return x, y, x + width, y + height


Labelled = tuple[Photo, list[Mark]]


@dataclass(frozen=True)
class LabelSet:
    """Labels that can be walked through any number of times, one photo in memory at a time.

    Attributes:
        classes: C names.
        walk: makes an iterator of (photo, its marks).
        category_ids: C ids that the classes carry in COCO json; None: 1..C.
    """

    classes: tuple[str, ...]
    walk: Callable[[], Iterator[Labelled]]
    category_ids: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[Labelled]:
        return self.walk()

    @property
    def ids(self) -> tuple[int, ...]:
        return self.category_ids or tuple(range(1, len(self.classes) + 1))


@dataclass
class Written:
    """What a writer did.

    Attributes:
        photos, marks: how many it wrote.
        ious: of each mask as the format holds it with the mask that it was given; empty where they are the same.
    """

    photos: int = 0
    marks: int = 0
    ious: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.marks} instances on {self.photos} photos"
        if self.ious:
            text += f"; IoU with the masks: mean {np.mean(self.ious):.4f}, least {min(self.ious):.4f}"
        return text


def together(sets: Sequence[LabelSet]) -> LabelSet:
    """Several sets as one; classes are matched by name, new ones come last."""
    if len(sets) == 1:
        return sets[0]
    classes = tuple(dict.fromkeys(name for labels in sets for name in labels.classes))
    number = {name: k for k, name in enumerate(classes)}

    def walk() -> Iterator[Labelled]:
        for labels in sets:
            for photo, marks in labels:
                yield photo, [replace(mark, class_id=number[labels.classes[mark.class_id]]) for mark in marks]

    same = all(labels.classes == classes and labels.ids == sets[0].ids for labels in sets)
    return LabelSet(classes, walk, sets[0].category_ids if same else None)


def polygon_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Run lengths of polygons x1, y1, x2, y2, ..., together; the corner of the photo is 0, 0.

    Raises:
        ValueError: fewer than three points, or one that is no number.
    """
    if not all(math.isfinite(value) for polygon in polygons for value in polygon):
        raise ValueError("a point that is no number")
    return as_rle([list(polygon) for polygon in polygons], size)


def ellipse(x: float, y: float, rx: float, ry: float, turned: float = 0.0) -> list[float]:
    """An ellipse as a polygon of 90 corners; ``turned`` degrees clockwise about its middle."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    turn = np.deg2rad(turned)
    across, down = rx * np.cos(angle), ry * np.sin(angle)
    points = [x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn)]
    return np.stack(points, 1).ravel().tolist()


def union(rles: Sequence[Rle]) -> Rle:
    """One mask of several of one size."""
    merged = coco_mask.merge(list(rles))
    return {"size": [int(side) for side in merged["size"]], "counts": as_text(merged["counts"])}


def grouped(marks: Sequence[tuple[Mark, Any]]) -> list[Mark]:
    """Marks of which those of one class and group (None: of no group) become one instance, where they are masks."""
    groups: dict[Any, list[Mark]] = {}
    for number, (mark, group) in enumerate(marks):
        alone = group is None or mark.rle is None
        groups.setdefault(("", number) if alone else (mark.class_id, group), []).append(mark)
    found = []
    for members in groups.values():
        rles = [mark.rle for mark in members if mark.rle is not None]
        found.append(replace(members[0], rle=union(rles)) if len(rles) > 1 else members[0])
    return found


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks bool [H, W]; 1 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def class_numbers(classes: Sequence[str], where: str | Path) -> dict[str, int]:
    """Class name -> 0..C-1.

    Raises:
        CimError: no class, or one that is named twice.
    """
    if not classes:
        raise CimError("no class is named", path=where, expected="labels with names")
    numbers = {name: number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise CimError("class named twice", path=where, found=twice)
    return numbers
