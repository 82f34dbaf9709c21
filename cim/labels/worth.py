"""The photos of a run that are most worth a person's look: what is doubtful in each, in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.types import Rle
from cim.datasets.base import Dataset, Record
from cim.labels.export import chosen_path, image_root, label_path
from cim.labels.formats.marks import LabelSet, Mark, Photo
from cim.labels.mask_file import MaskFile, Masks, Scored

logger = logging.getLogger(__name__)

_TOLD = 0.5  # of a photo's largest doubt: smaller ones go without saying
_GOOD = 0.5  # of the best score of a class in a photo: what Mask R-CNN means seriously


@dataclass(frozen=True)
class Look:
    """A tagged photo.

    Attributes:
        doubt: 0..1, the largest of its doubts.
        reasons: in words, most doubtful first; empty where nothing is in doubt.
    """

    record: Record
    doubt: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """The photos of a run.

    Attributes:
        dataset: all of them.
        looks: the tagged ones, most doubtful first.
        found: their masks, read when they are asked for.
    """

    dataset: Dataset
    looks: tuple[Look, ...]
    found: Masks


def rank(config: Config, dataset: Dataset) -> Ranking:
    """The photos of a run by what is doubtful in its pseudo labels.

    The label files are read entry by entry; of the masks, those of one photo at a time are in memory.

    Args:
        dataset: the training photos, with what is known of them.

    Raises:
        CimError: no pseudo labels yet, or damaged ones, or of other photos or classes.
    """
    path = labels_of(config)
    if not path.is_file():
        raise CimError("no pseudo labels yet", path=path, fix="cim run, or cim export and cim threshold")
    found = MaskFile(path, dataset)
    return Ranking(dataset, tuple(worth_a_look(dataset, found, read_second(config, dataset))), found)


def labels_of(config: Config) -> Path:
    """The labels that are looked at: those that Mask R-CNN learns from. They need not be there."""
    return chosen_path(label_path(config, config.data.train_split), config.export)


def read_second(config: Config, dataset: Dataset) -> Masks:
    """What Mask R-CNN finds on the training photos; nothing where it was not asked, or where that cannot be used."""
    path = label_path(config, config.data.train_split, round_two=True)
    if not path.is_file():
        return {}
    try:
        return MaskFile(path, dataset)
    except CimError as error:
        logger.warning("CIM is not compared with Mask R-CNN: %s", error)
        return {}


def worth_a_look(dataset: Dataset, found: Masks, second: Masks) -> list[Look]:
    """The tagged photos, the one with the largest doubt first; of equal ones, that whose doubts add up to more.

    Three things make a class of a photo doubtful: the score of its best mask (doubt 1 - score; 1 without a mask),
    fewer masks than there are instances (the missing share), and a best mask of which Mask R-CNN sees nothing alike
    (1 - IoU with the nearest of its masks that score at least half of its best). Classes that a person has drawn
    whole are beyond doubt.

    Args:
        found: masks of CIM.
        second: masks of Mask R-CNN; compared only where both found a class.
    """
    looks = [_look(record, dataset.classes, found, second) for record in dataset if record.tags]
    return [look for look, _ in sorted(looks, key=lambda one: (-one[0].doubt, -one[1]))]


def _look(record: Record, classes: Sequence[str], found: Masks, second: Masks) -> tuple[Look, float]:
    """And what its doubts add up to."""
    mine, other = found.get(record.image_id, ()), second.get(record.image_id, ())
    doubts = sorted(_doubts(record, classes, mine, other), key=lambda one: -one[0])
    largest = max((doubt for doubt, _ in doubts), default=0.0)
    told = tuple(why for doubt, why in doubts if doubt > 0 and doubt >= _TOLD * largest)
    return Look(record, largest, told), sum(doubt for doubt, _ in doubts)


def _doubts(
    record: Record, classes: Sequence[str], found: Sequence[Scored], second: Sequence[Scored]
) -> Iterator[tuple[float, str]]:
    for tag in record.tags:
        number = record.known.number(tag)
        drawn = sum(mark.class_id == tag and mark.mask is not None for mark in record.known.marks)
        if number is not None and drawn >= number:
            continue
        mine, other = ([mask for mask in masks if mask.class_id == tag] for masks in (found, second))
        name = classes[tag]
        if not mine:
            yield 1.0, f"{name}: not found"
            continue
        yield 1 - mine[0].score, f"{name}: the best mask scores {mine[0].score:.2f}"
        if number is not None and len(mine) < number:
            yield 1 - len(mine) / number, f"{name}: {len(mine)} of {number} found"
        if other:
            alike = _nearest(mine[0], other, record.size)
            yield 1 - alike, f"{name}: Mask R-CNN sees another mask (IoU {alike:.2f})"


def _nearest(mask: Scored, others: Sequence[Scored], size: tuple[int, int]) -> float:
    """Largest IoU with those of the others that score well."""
    good = [rle_of(other, size) for other in others if other.score >= _GOOD * others[0].score]
    return float(np.max(coco_mask.iou([rle_of(mask, size)], good, [0] * len(good))))


def as_labels(config: Config, ranking: Ranking, most: int) -> LabelSet:
    """The most doubtful photos, in this order, with what was found on them: for programs to correct labels with.

    Raises:
        CimError: no photos.
    """
    root = image_root(config.data, ranking.dataset).resolve()

    def walk() -> Iterator[tuple[Photo, list[Mark]]]:
        for look in ranking.looks[:most]:
            record = look.record
            marks = [
                Mark(one.class_id, rle_of(one, record.size), score=one.score)
                for one in ranking.found.get(record.image_id, ())
            ]
            yield Photo(name_of(record, root), record.path, record.size, image_id=record.image_id), marks

    return LabelSet(ranking.dataset.classes, walk, ranking.dataset.category_ids)


def as_json(config: Config, ranking: Ranking) -> dict[str, Any]:
    """What stands in a run's file: names relative to the folder of photos, doubts, reasons."""
    root = image_root(config.data, ranking.dataset).resolve()
    photos = [
        {"image": name_of(look.record, root), "doubt": round(look.doubt, 3), "reasons": list(look.reasons)}
        for look in ranking.looks
    ]
    return {"labels": labels_of(config).name, "photos": photos}


def name_of(record: Record, root: Path) -> str:
    """A photo's name below a folder, with forward slashes; one outside is called by its last name."""
    path = record.path.parent.resolve() / record.path.name  # a link keeps its own name
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def rle_of(mask: Scored, size: tuple[int, int]) -> Rle:
    """Its run lengths on a photo of (H, W)."""
    return {"size": [int(size[0]), int(size[1])], "counts": mask.mask}
