"""COCO 2017 in the published tree: ``<root>/{train2017,val2017,test2017}`` and ``<root>/annotations``."""

from __future__ import annotations

from pathlib import Path

from cim.core.errors import CimError
from cim.datasets.base import Dataset
from cim.datasets.tags.coco_json import open_tag_file

# split: (json, photos, archive that holds the json)
SPLITS = {
    "train2017": ("instances_train2017.json", "train2017", "annotations_trainval2017.zip"),
    "val2017": ("instances_val2017.json", "val2017", "annotations_trainval2017.zip"),
    "test-dev2017": ("image_info_test-dev2017.json", "test2017", "image_info_test2017.zip"),
}


def annotation_path(root: Path, split: str) -> Path:
    """The json of a split.

    Raises:
        CimError: no such split.
    """
    if split not in SPLITS:
        raise CimError("no such COCO split", expected=" or ".join(SPLITS), found=split)
    return root / "annotations" / SPLITS[split][0]


def open_coco(root: str | Path, split: str) -> Dataset:
    """The split ``train2017``, ``val2017`` or ``test-dev2017`` (no tags, no annotations).

    The 80 classes are 0..79 here; their ids in the json (1..90 with gaps) are ``category_ids``.

    Raises:
        CimError: unknown split; missing or damaged json.
    """
    root = Path(root)
    path = annotation_path(root, split)
    _, photos, archive = SPLITS[split]
    fix = f"unpack http://images.cocodataset.org/annotations/{archive} in {root}"
    return open_tag_file(f"coco {split}", path, root / photos, fix)
