"""PASCAL VOC's layout: boxes in XML, masks as two palette pictures a photo.

Written: ``JPEGImages``, ``Annotations``, ``SegmentationObject``, ``SegmentationClass``, ``ImageSets/Main``,
``ImageSets/Segmentation`` and ``labels.txt``, the classes in order. A pixel belongs to one instance only: smaller ones
lie on top, and what others lose is measured. The n-th object of the XML is number n of SegmentationObject.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cim.core.errors import CimError
from cim.core.xml_file import number_in, read_xml, text_in
from cim.datasets.coco_writer import encode
from cim.labels.formats.folders import Names, PhotoFolder, Placing, place, read_classes, read_lines, write_classes
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

VOID = 255  # borders, of nobody
_MOST = 254
_LARGEST = 2**20  # bytes of an annotation


def write_voc(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """The folders below ``folder``; IoUs of the masks as the pictures hold them.

    Raises:
        CimError: more instances on a photo, or more classes, than a palette picture can tell apart (254).
    """
    if len(labels.classes) > _MOST:
        raise CimError("too many classes for VOC", expected=f"at most {_MOST}", found=len(labels.classes))
    names, done = Names(flat=True), Written()
    lists: dict[str, list[str]] = defaultdict(list)
    taken: dict[str, str] = {}
    for photo, marks in labels:
        name, marks = names.of(photo), [mark for mark in marks if mark.corners() is not None]
        if taken.setdefault(name.stem.lower(), photo.split) != photo.split:
            fix = "rename one of them: VOC keeps both splits in one folder"
            raise CimError("a photo of this name in both splits", path=photo.path, fix=fix)
        if len(marks) > _MOST:
            raise CimError("too many instances for VOC", path=photo.path, expected=f"at most {_MOST}", found=len(marks))
        place(photo, folder / "JPEGImages" / name, photos)
        _write_xml(folder / "Annotations" / f"{name.stem}.xml", name.name, photo, marks, labels.classes)
        done.ious += _write_masks(folder, name.stem, photo, marks)
        lists[photo.split].append(name.stem)
        done.photos += 1
        done.marks += len(marks)
    for kind in ("Main", "Segmentation"):
        for split, stems in lists.items():
            path = folder / "ImageSets" / kind / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    write_classes(folder, labels.classes)
    return done


def _write_xml(path: Path, name: str, photo: Photo, marks: list[Mark], classes: tuple[str, ...]) -> None:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", photo.size[1]), ("height", photo.size[0]), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1" if any(mark.rle for mark in marks) else "0"
    for mark in marks:
        x1, y1, x2, y2 = mark.corners() or (0.0, 0.0, 0.0, 0.0)
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = classes[mark.class_id]
        for key, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(entry, key).text = text
        box = ElementTree.SubElement(entry, "bndbox")  # counted from 1, corners included
        for key, side in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, key).text = str(round(side))
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


def _write_masks(folder: Path, stem: str, photo: Photo, marks: list[Mark]) -> list[float]:
    if not any(mark.rle for mark in marks):
        return []
    masks = {number: mark.mask() for number, mark in enumerate(marks, 1) if mark.rle is not None}
    objects, classes = np.zeros(photo.size, np.uint8), np.zeros(photo.size, np.uint8)
    for number in sorted(masks, key=lambda number: -int(masks[number].sum())):
        objects[masks[number]] = number
        classes[masks[number]] = marks[number - 1].class_id + 1
    for kind, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        picture = Image.fromarray(values)
        picture.putpalette(_PALETTE)
        path = folder / kind / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return [mask_iou(mask, objects == number) for number, mask in masks.items()]


def _palette() -> list[int]:
    """VOC's colours: the bits of a number, spread over red, green and blue from the highest down."""
    colours = []
    for number in range(256):
        for channel in range(3):
            colours.append(sum(((number >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)))
    return colours


_PALETTE = _palette()


def read_voc(source: Path, images: Path | None = None) -> LabelSet:
    """Labels of a VOC folder: masks where SegmentationObject has the photo, boxes elsewhere.

    ``labels.txt`` gives the order of the classes, else they are sorted. ImageSets tells which photos belong to
    "val"; the others are "train". The border between objects belongs to none. Objects marked as difficult count like
    others.

    Args:
        images: folder of the photos; None: ``JPEGImages``.

    Raises:
        CimError: no annotations, a damaged one, a photo that is missing or lies outside its folder.
    """
    files = sorted((source / "Annotations").glob("*.xml"))
    if not files:
        raise CimError("no VOC annotations", path=source, expected="Annotations/*.xml")
    used = {text_in(entry, "name", path) for path in files for entry in read_xml(path, _LARGEST).findall("object")}
    classes = read_classes(source, used)
    number = class_numbers(classes, source)
    validated = _listed(source, VAL)

    def walk() -> Iterator[Labelled]:
        photos = PhotoFolder(images or source / "JPEGImages")
        for path in files:
            root = read_xml(path, _LARGEST)
            size = (number_in(root, "size/height", path), number_in(root, "size/width", path))
            split = VAL if path.stem in validated else TRAIN
            photo = photos.photo(text_in(root, "filename", path), path, size, split)
            objects = root.findall("object")
            masks = _read_masks(source / "SegmentationObject" / f"{path.stem}.png", size, len(objects))
            marks = []
            for index, entry in enumerate(objects, 1):
                name = text_in(entry, "name", path)
                x1, y1, x2, y2 = (number_in(entry, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax"))
                mask = None if masks is None else masks == index
                if mask is not None and mask.any():
                    marks.append(Mark(number[name], encode(mask)))
                else:
                    marks.append(Mark(number[name], None, (x1 - 1, y1 - 1, x2, y2)))
            yield photo, marks

    return LabelSet(classes, walk)


def _listed(source: Path, split: str) -> set[str]:
    """The photos that a list of ImageSets names."""
    found: set[str] = set()
    for path in (source / "ImageSets").glob(f"*/{split}.txt"):
        found |= {line.split()[0] for line in read_lines(path) if line.strip()}
    return found


def _read_masks(path: Path, size: tuple[int, int], objects: int) -> np.ndarray | None:
    """Numbers uint8 [H, W] of the objects; None where there is no picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise CimError("mask is not a palette picture", path=path, found=f"mode {image.mode}")
            numbers = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CimError("damaged mask", path=path, found=error) from None
    if numbers.shape != size:
        raise CimError("mask of another size than its annotation (H, W)", path=path, expected=size, found=numbers.shape)
    last = int(numbers[numbers != VOID].max(initial=0))
    if last > objects:
        raise CimError("mask of more objects than are annotated", path=path, expected=objects, found=last)
    return numbers
