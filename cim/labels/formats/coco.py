"""COCO json: one file per split beside its folder of photos. Masks are run lengths, kept bit for bit.

Written: ``images/<split>/...`` and ``annotations/<split>.json``. An instance that has no mask keeps its box; one
that has neither stands for a tag, which this program reads as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cim.core.errors import CimError
from cim.labels.formats.folders import Names, PhotoFolder, Placing, place, split_files
from cim.labels.formats.marks import Labelled, LabelSet, Mark, Photo, Written, together
from cim.labels.label_files import labels_root, read_labels


def write_coco(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """``images`` and ``annotations`` below ``folder``."""
    names, done = Names(), Written()
    with ExitStack() as stack:
        files: dict[str, CocoFile] = {}
        for photo, marks in labels:
            name = names.of(photo)
            place(photo, folder / "images" / photo.split / name, photos)
            if photo.split not in files:
                path = folder / "annotations" / f"{photo.split}.json"
                files[photo.split] = stack.enter_context(CocoFile(path, labels, f"../images/{photo.split}"))
            files[photo.split].add(photo, marks, str(name))
            done.photos += 1
            done.marks += len(marks)
    return done


@dataclass
class CocoFile:
    """A COCO json that grows photo by photo; whole once the block ends.

    Attributes:
        image_root: what file names are relative to, as ``info`` says; relative to the json, or absolute.
        images: the entries of ``images`` so far.
    """

    path: Path
    labels: LabelSet
    image_root: str
    images: list[dict[str, Any]] = field(default_factory=list)
    _file: TextIO = field(init=False)
    _taken: set[int] = field(default_factory=set)
    _count: int = 0

    def __enter__(self) -> CocoFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")  # closed in __exit__
        self._file.write('{"annotations": [')
        return self

    def __exit__(self, *_: object) -> None:
        pairs = zip(self.labels.ids, self.labels.classes, strict=True)
        rest = {
            "images": self.images,
            "categories": [{"id": number, "name": name, "supercategory": "none"} for number, name in pairs],
            "info": {"description": "CIM labels", "image_root": self.image_root},
        }
        self._file.write("\n], " + json.dumps(rest)[1:] + "\n")
        self._file.close()

    def add(self, photo: Photo, marks: list[Mark], name: str) -> None:
        """One photo with its instances, under this file name.

        An id that is no number, or is taken, is replaced by one, and stands beside it as ``source_id``.
        """
        given = photo.image_id
        number = given if isinstance(given, int) and given not in self._taken else len(self._taken) + 1
        while number in self._taken:
            number += 1
        self._taken.add(number)
        image = {"id": number, "file_name": name, "height": photo.size[0], "width": photo.size[1]}
        self.images.append(image if given in (None, number) else {**image, "source_id": given})
        for mark in marks:
            self._count += 1
            line = {"id": self._count, "image_id": number, "category_id": self.labels.ids[mark.class_id], "iscrowd": 0}
            self._file.write((",\n" if self._count > 1 else "\n") + json.dumps(line | _shape(mark)))


def _shape(mark: Mark) -> dict[str, Any]:
    corners = mark.corners()
    if corners is None:
        return {}
    x1, y1, x2, y2 = corners
    line: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": mark.score}
    if mark.rle is not None:
        line |= {"area": mark.area(), "segmentation": mark.rle}
    return line


def read_coco(source: Path, images: Path | None = None, *, outside: bool = False) -> LabelSet:
    """Labels of a COCO json, or of the folder that :func:`write_coco` makes.

    Masks may be polygons or run lengths of both kinds; boxes stay boxes, and an annotation with neither says that a
    class is there. A json is read as a whole, its masks as run lengths; crowds (``iscrowd``) are left out.

    Args:
        images: folder of the photos; None: ``info.image_root``, relative to the json, else the json's own folder.
        outside: take photos that the json names by an absolute path, as this program's own labels name negatives.

    Raises:
        CimError: a damaged file, a photo that is missing, of another size, or outside the folder.
    """
    return together([_read(path, images, split, outside) for split, path in split_files(source, "annotations/{}.json")])


def _read(path: Path, images: Path | None, split: str, outside: bool) -> LabelSet:
    content = read_labels(path, boxes=True)
    root = images or labels_root(content, path)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    if not all(isinstance(c.get("name"), str) for c in categories):
        raise CimError("category without a name", path=path, expected="a name for each")
    number = {c["id"]: k for k, c in enumerate(categories)}
    lines: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for line in content["annotations"]:
        if not line["iscrowd"]:
            lines[line["image_id"]].append(line)
    folder = PhotoFolder(root)

    def walk() -> Iterator[Labelled]:
        for image in content["images"]:
            name, size = image["file_name"], (image["height"], image["width"])
            image_id = image.get("source_id", image["id"])
            if outside and Path(name).is_absolute():
                photo = Photo(f"outside/{Path(name).name}", Path(name), size, split, image_id)
            else:
                photo = folder.photo(name, path, size, split, image_id)
            yield photo, [_mark(line, number, path) for line in lines[image["id"]]]

    return LabelSet(tuple(c["name"] for c in categories), walk, tuple(c["id"] for c in categories))


def _mark(line: dict[str, Any], number: dict[int, int], path: Path) -> Mark:
    rle = line.get("segmentation")
    box = None if rle is not None else line.get("bbox")
    if box is not None:
        try:
            x, y, width, height = (float(side) for side in box)
        except (TypeError, ValueError):
            found = f"annotation {line['id']}: {box}"
            raise CimError("bad box", path=path, expected="x, y, width, height", found=found) from None
        box = (x, y, x + width, y + height)
    return Mark(number[line["category_id"]], rle, box, line["score"])
