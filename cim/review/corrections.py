"""The corrections of a run on disk: a COCO json that :mod:`cim.datasets.marks.coco` reads as what is known.

Annotations are the accepted masks; ``counts`` of an image say how many there are of each class that was looked at
(0: it is not there; null: not known yet, and then its masks do not count either). ``deleted`` of an image are found
masks that are wrong: the next review does not ask again, and training takes nothing like them for an instance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import fingerprint, read_json, write_text
from cim.core.run_lengths import as_rle, valid_rles
from cim.core.types import Rle
from cim.datasets.base import Dataset, Record
from cim.review.decisions import Decision, Shape

_FIX = "put an older copy back, or take the file away to begin anew"

Decisions = dict[int | str, Decision]  # by image id


def version_of(path: Path) -> str:
    """Another text whenever the file has other content; of no file "none"."""
    return fingerprint(path) if path.is_file() else "none"


def photo_name(record: Record, images: Path) -> str:
    """Name of a photo relative to the folder of photos, as tags and marks give it."""
    return record.path.relative_to(images).as_posix()


def read_corrections(path: Path, dataset: Dataset, images: Path) -> Decisions:
    """What :func:`write_corrections` wrote; nothing where there is no file.

    Args:
        images: folder of the photos.

    Raises:
        CimError: damaged, of photos or classes that are not in the data set, masks of another size.
    """
    if not path.is_file():
        return {}
    content = read_json(path, fix=_FIX)
    try:
        return _parsed(content, dataset, images)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else error
        raise CimError("not a corrections file of this run", path=path, found=found, fix=_FIX) from None


def _parsed(content: Any, dataset: Dataset, images: Path) -> Decisions:
    records = {photo_name(record, images): record for record in dataset if record.path.is_relative_to(images)}
    names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    number = {name: k for k, name in enumerate(dataset.classes)}
    photos = {entry["id"]: records[entry["file_name"]] for entry in content["images"]}

    rles: list[Rle] = []

    def shape(line: Mapping[str, Any], record: Record) -> Shape:
        rle = as_rle(line["segmentation"], record.size)
        if tuple(rle["size"]) != tuple(record.size):
            raise ValueError(f"a mask of another size on {record.path.name}")
        rles.append(rle)
        return Shape(number[names[line["category_id"]]], str(rle["counts"]))

    accepted: dict[Any, list[Shape]] = {key: [] for key in photos}
    for line in content["annotations"]:
        accepted[line["image_id"]].append(shape(line, photos[line["image_id"]]))
    decisions = {
        photos[entry["id"]].image_id: Decision(
            tuple(accepted[entry["id"]]),
            tuple(shape(line, photos[entry["id"]]) for line in entry.get("deleted", ())),
            {number[name]: count for name, count in entry["counts"].items()},
        )
        for entry in content["images"]
    }
    if not valid_rles(rles).all():
        raise ValueError("a damaged mask")
    return decisions


def write_corrections(path: Path, decisions: Mapping[int | str, Decision], dataset: Dataset, images: Path) -> None:
    """Atomically; photos of which nothing was said are left out.

    Raises:
        CimError: the file cannot be written; the old one is whole.
    """
    listed, lines = [], []
    for number, (image_id, decision) in enumerate(decisions.items(), 1):
        record = dataset.by_id[image_id]
        entry = {"id": number, "file_name": photo_name(record, images)}
        entry |= {"height": int(record.size[0]), "width": int(record.size[1])}
        counts = {dataset.classes[class_id]: count for class_id, count in sorted(decision.numbers.items())}
        deleted = list(_annotations(decision.deleted, record, dataset))
        listed.append(entry | {"counts": counts} | ({"deleted": deleted} if deleted else {}))
        lines += [
            {"image_id": number, "iscrowd": 0, **line} for line in _annotations(decision.accepted, record, dataset)
        ]
    categories = [{"id": int(k), "name": name} for k, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    content = {
        "info": {"description": "CIM corrections"},
        "categories": categories,
        "images": listed,
        "annotations": [{"id": number, **line} for number, line in enumerate(lines, 1)],
    }
    write_text(path, json.dumps(content))


def _annotations(shapes: Iterable[Shape], record: Record, dataset: Dataset) -> Iterable[dict[str, Any]]:
    for shape in shapes:
        rle: Rle = {"size": [int(record.size[0]), int(record.size[1])], "counts": shape.mask}
        yield {
            "category_id": int(dataset.category_ids[shape.class_id]),
            "area": int(coco_mask.area(rle)),
            "bbox": [int(side) for side in coco_mask.toBbox(rle)],
            "segmentation": rle,
        }
