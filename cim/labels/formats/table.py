"""The formats by name; labels written in several of them, and read from any into COCO json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.labels.formats.coco import CocoFile, read_coco, write_coco
from cim.labels.formats.cvat import read_cvat, write_cvat
from cim.labels.formats.folders import Placing, new_folder
from cim.labels.formats.label_studio import read_label_studio, write_label_studio
from cim.labels.formats.labelme import read_labelme, write_labelme
from cim.labels.formats.marks import TRAIN, VAL, Labelled, LabelSet, Written
from cim.labels.formats.mmdet import write_mmdet
from cim.labels.formats.voc import read_voc, write_voc
from cim.labels.formats.yolo import read_yolo, write_yolo


@dataclass(frozen=True)
class Format:
    """How labels are written for a program, and read from it.

    Attributes:
        write: into a new folder, from labels, with photos linked or copied.
        read: from a file or folder, and the folder of its photos.
        correcting: people correct labels there, so photos without any are worth having; programs that train would learn
            that such photos show nothing.
    """

    write: Callable[[Path, LabelSet, Placing], Written]
    read: Callable[[Path, Path | None], LabelSet]
    correcting: bool = False


FORMATS = {
    "coco": Format(write_coco, read_coco),
    "mmdet": Format(write_mmdet, read_coco),
    "yolo": Format(write_yolo, read_yolo),
    "voc": Format(write_voc, read_voc),
    "labelme": Format(write_labelme, read_labelme, correcting=True),
    "cvat": Format(write_cvat, read_cvat, correcting=True),
    "label-studio": Format(write_label_studio, read_label_studio, correcting=True),
}


def write_formats(
    labels: LabelSet,
    names: Sequence[str],
    output: Path,
    *,
    photos: Placing = "link",
    empty: bool | None = None,
    overwrite: bool = False,
) -> Iterator[tuple[str, Written]]:
    """Labels in several formats, each in a folder of its name below ``output``, whole or not at all.

    Args:
        photos: link to them, or copy them.
        empty: keep photos without instances; None: where people correct labels.
        overwrite: replace folders that are there.

    Yields:
        (format, what was written), one after the other.

    Raises:
        CimError: nothing to write, a photo that is missing, a folder that is not empty or cannot be written.
    """
    for name in names:
        chosen = FORMATS[name]
        keep = chosen.correcting if empty is None else empty
        with new_folder(output / name, overwrite) as folder:
            done = chosen.write(folder, LabelSet(labels.classes, _Kept(labels, keep), labels.category_ids), photos)
            if not done.photos:
                raise CimError("no photo with instances", expected="at least one", fix="lower the threshold")
        yield name, done


@dataclass(frozen=True)
class _Kept:
    """Walks through labels, without masks that have no pixels and, unless ``empty``, photos that have nothing."""

    labels: LabelSet
    empty: bool

    def __call__(self) -> Iterator[Labelled]:
        for photo, marks in self.labels:
            marks = [mark for mark in marks if mark.rle is None or mark.area()]
            if marks or self.empty:
                yield photo, marks


def in_split(labels: LabelSet, split: str) -> LabelSet:
    """The same, with all photos in this split."""
    return LabelSet(
        labels.classes, lambda: ((replace(photo, split=split), marks) for photo, marks in labels), labels.category_ids
    )


def with_validation(labels: LabelSet, share: float, seed: int = 0) -> LabelSet:
    """The same, with a share of the photos, drawn at random, in the split "val" and the others in "train".

    Raises:
        CimError: a share that leaves one of them empty.
    """
    names = sorted({photo.name for photo, _ in labels})
    count = round(share * len(names))
    if not 0 < count < len(names):
        raise CimError("no such share of photos", expected="photos in both splits", found=f"{count} of {len(names)}")
    chosen = {names[k] for k in np.random.default_rng(seed).permutation(len(names))[:count]}

    def walk() -> Iterator[Labelled]:
        for photo, marks in labels:
            yield replace(photo, split=VAL if photo.name in chosen else TRAIN), marks

    return LabelSet(labels.classes, walk, labels.category_ids)


def write_labels_of(labels: LabelSet, path: Path, split: str | None = None) -> tuple[Path, Counter[str]]:
    """Labels as one COCO json, whose ``info.image_root`` is the folder that holds all photos.

    Args:
        split: only photos of this one; None: all.

    Returns:
        that folder, and how many ``photos``, ``masks``, ``boxes`` and ``tags`` there are.

    Raises:
        CimError: no labels; what the reader raises.
    """
    counts: Counter[str] = Counter()
    with atomic(path) as temporary, CocoFile(temporary, labels, "") as file:
        for photo, marks in labels:
            if split in (None, photo.split):
                file.add(photo, marks, str(photo.path.parent.resolve() / photo.path.name))
                counts["photos"] += 1
                counts.update(
                    "masks" if mark.rle is not None else "boxes" if mark.box is not None else "tags" for mark in marks
                )
        if counts.total() == counts["photos"]:
            raise CimError("no labels", expected="at least one instance", found=f"{counts['photos']} photos")
        root = os.path.commonpath([Path(image["file_name"]).parent for image in file.images])
        file.image_root = root
        for image in file.images:
            image["file_name"] = Path(image["file_name"]).relative_to(root).as_posix()
    return Path(root), counts
