"""PASCAL VOC 2007 from its development kit: boxes of trainval and test, and the masks of the photos that have some."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import write_json
from cim.core.xml_file import number_in, read_xml, text_in
from cim.datasets.coco_writer import document, image_entry, instance_entry
from cim.datasets.voc import CLASSES, annotation_path, image_id
from cim.datasets.voc_devkit import read_names, read_voc_labels

log = logging.getLogger(__name__)

SPLITS = ("trainval", "test")
_LARGEST = 2**20  # bytes of an annotation; VOC's have some thousand
_FIX = "unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar, and pass their VOCdevkit/VOC2007"


def devkit_year(devkit: str | Path) -> int | None:
    """The year of a development kit, by the name of its folder or by what its annotations say; None: unknown.

    Raises:
        CimError: a damaged annotation.
    """
    devkit = Path(devkit)
    named = re.fullmatch(r"VOC(\d{4})", devkit.resolve().name)
    if named:
        return int(named[1])
    first = min((devkit / "Annotations").glob("*.xml"), default=None)
    told = None if first is None else re.fullmatch(r"VOC(\d{4})", text_in(_root(first), "folder", first, _FIX))
    return int(told[1]) if told else None


def make_voc2007_annotations(devkit: str | Path, output: str | Path, overwrite: bool = False) -> list[Path]:
    """Write ``annotations/voc_2007_<split>.json`` (all photos, boxes) and ``voc_2007_<split>_masks.json`` (the photos
    of ImageSets/Segmentation, masks) below ``output``, for those of trainval and test whose lists the kit has.

    Boxes are whole pixels from 0, width and height counting both corners (VOC's own count from 1, corners included).
    ``difficult`` is kept: such an object gives no tag, and neither counts nor hurts in a box mAP.

    Args:
        devkit: VOCdevkit/VOC2007, with ImageSets, Annotations and, for masks, SegmentationClass, SegmentationObject.
        output: root of the tree, e.g. data/VOC2007.
        overwrite: make files again that are there.

    Returns:
        the files, there before or not.

    Raises:
        CimError: no list at all; an annotation or mask that is missing or damaged (nothing is written for that split).
    """
    devkit, output = Path(devkit), Path(output)
    lists = {split: devkit / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    if not any(path.is_file() for path in lists.values()):
        raise CimError("no list of photos", path=lists["trainval"], fix=_FIX)
    paths = []
    for split, path in lists.items():
        if not path.is_file():
            log.info("no %s: %s is not there", split, path)
            continue
        paths += _write(annotation_path(output, split), overwrite, _boxes, devkit, read_names(path, _FIX), split)
        shown = devkit / "ImageSets" / "Segmentation" / f"{split}.txt"
        if shown.is_file() and (devkit / "SegmentationObject").is_dir():
            target = annotation_path(output, split)
            target = target.with_name(f"{target.stem}_masks.json")
            paths += _write(target, overwrite, _masks, devkit, read_names(shown, _FIX), f"{split} masks")
    return paths


def _write(path: Path, overwrite: bool, make: Any, *arguments: Any) -> list[Path]:
    if path.exists() and not overwrite:
        log.info("%s is there already; --overwrite makes it again", path)
        return [path]
    content = make(*arguments)
    write_json(path, content)
    log.info("%s: %d photos, %d instances", path, len(content["images"]), len(content["annotations"]))
    return [path]


def _boxes(devkit: Path, names: list[str], split: str) -> dict[str, Any]:
    images, annotations = [], []
    for name in tqdm(names, desc=split, unit="image"):
        size, found = read_annotation(devkit / "Annotations" / f"{name}.xml")
        images.append(image_entry(image_id(name), f"{name}.jpg", size))
        annotations += [{"image_id": image_id(name), **one} for one in found]
    return document(CLASSES, images, annotations)


def _masks(devkit: Path, names: list[str], split: str) -> dict[str, Any]:
    images, annotations = [], []
    for name in tqdm(names, desc=split, unit="image"):
        labels = read_voc_labels(devkit, name)
        images.append(image_entry(image_id(name), f"{name}.jpg", labels.numbers.shape))
        for number, class_id in labels.class_ids.items():
            annotations.append(instance_entry(image_id(name), class_id, labels.numbers == number))
    return document(CLASSES, images, annotations)


def read_annotation(path: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """(H, W) and the objects of a VOC annotation, each ``category_id`` 1..20, ``bbox`` xywh, ``area``, ``difficult``.

    Raises:
        CimError: missing or damaged file, unknown class, a box outside the photo.
    """
    root = _root(path)
    height, width = (number_in(root, f"size/{side}", path, _FIX) for side in ("height", "width"))
    found = []
    for entry in root.findall("object"):
        name = text_in(entry, "name", path, _FIX)
        if name not in CLASSES:
            raise CimError("unknown class", path=path, expected="one of VOC's 20", found=name)
        sides = (f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
        x1, y1, x2, y2 = (number_in(entry, side, path, _FIX) for side in sides)
        if not (1 <= x1 <= x2 <= width and 1 <= y1 <= y2 <= height):
            told = f"{x1} {y1} {x2} {y2} in {width} x {height}"
            raise CimError("box outside the photo", path=path, expected="corners from 1 to its size", found=told)
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
        difficult = number_in(entry, "difficult", path, _FIX) if entry.find("difficult") is not None else 0
        one = {"category_id": CLASSES.index(name) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        found.append({**one, "difficult": int(difficult > 0)})
    return (height, width), found


def _root(path: Path) -> Element:
    return read_xml(path, _LARGEST, _FIX)
