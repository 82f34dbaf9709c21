"""PASCAL VOC in the published tree: ``<root>/JPEGImages`` and ``<root>/annotations/voc_<year>_<split>.json``.

``trainaug`` and ``val`` are 2012's, with masks; ``trainval`` and ``test`` are 2007's, with boxes.
"""

from __future__ import annotations

from pathlib import Path

from cim.core.errors import CimError
from cim.datasets.base import Dataset
from cim.datasets.tags.coco_json import open_tag_file

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
SPLITS = {"trainaug": 2012, "val": 2012, "trainval": 2007, "test": 2007}
_FIXES = {
    2012: "cim voc --devkit VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset",
    2007: "cim voc --devkit VOCdevkit/VOC2007",
}


def image_id(name: str) -> int:
    """The integer id of a VOC photo: its name without extension and underscore, 2007_000100 -> 2007000100.

    Raises:
        CimError: a name of another kind.
    """
    stem = name.split(".")[0]
    digits = stem.replace("_", "")
    if not digits.isdecimal():
        raise CimError("not a VOC image name", expected="like 2007_000100", found=name)
    return int(digits)


def annotation_path(root: Path, split: str) -> Path:
    """The json of a split.

    Raises:
        CimError: no such split.
    """
    if split not in SPLITS:
        raise CimError("no such VOC split", expected=" or ".join(SPLITS), found=split)
    return root / "annotations" / f"voc_{SPLITS[split]}_{split}.json"


def open_voc(root: str | Path, split: str) -> Dataset:
    """The split ``trainaug``, ``val``, ``trainval`` or ``test``.

    Classes are those of the json: VOC's 20, or another tree's in this layout.

    Raises:
        CimError: unknown split; missing or damaged json.
    """
    root = Path(root)
    path = annotation_path(root, split)
    return open_tag_file(f"voc {split}", path, root / "JPEGImages", _FIXES[SPLITS[split]])
