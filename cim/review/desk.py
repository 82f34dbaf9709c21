"""What lies on the desk of a reviewer: the photos of a run in order of doubt, what was found on each, its proposals."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cim.config.build import build_dataset
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.run_lengths import as_text
from cim.datasets.base import Dataset, Record
from cim.inference.detections import StoredScores, with_masks
from cim.labels.export import chosen_path, label_path
from cim.labels.label_files import read_labels
from cim.review.decisions import Found, Shape
from cim.storage.published import RegionSource, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sheet:
    """One photo of a review.

    Attributes:
        doubt: 0..1, one minus the best score of the class that was found least surely.
    """

    record: Record
    found: Found
    doubt: float


@dataclass(frozen=True)
class Desk:
    """The photos of a run.

    Attributes:
        dataset: the training photos, with what is known of them but for the corrections.
        images: their folder.
        sheets: the tagged ones, most doubtful first.
        source: proposals.
        scores: of the proposals, per class; None: there are none, proposals are ranked by their own.
    """

    dataset: Dataset
    images: Path
    sheets: tuple[Sheet, ...]
    source: RegionSource
    scores: StoredScores | None

    def regions(self, sheet: Sheet) -> RegionSet:
        """The proposals of a photo.

        Raises:
            CimError: none, damaged, or of another size than the photo.
        """
        record = sheet.record
        regions = with_masks(self.source.load(record.image_id), record.image_id)
        if tuple(regions.size) != tuple(record.size):
            message, fix = "proposals of another size than the photo (H, W)", "cim proposals CONFIG --overwrite"
            raise CimError(message, path=record.path, expected=record.size, found=regions.size, fix=fix)
        return regions

    def ranking(self, sheet: Sheet, regions: RegionSet) -> np.ndarray:
        """How good each of a photo's proposals is for each of its tags, float32 [N, tags]."""
        tags = list(sheet.record.tags)
        image_id = sheet.record.image_id
        if self.scores is not None and self.scores.store.has(image_id):
            scores = self.scores.load(image_id)
            if scores.shape == (len(regions), len(self.dataset.classes)):
                return scores[:, tags].astype(np.float32)
        return np.repeat(regions.scores[:, None], len(tags), axis=1)


def open_desk(config: Config, corrections: Path) -> Desk:
    """The desk of a finished run.

    Args:
        corrections: file that the review writes; not among what was known before.

    Raises:
        CimError: no folder data set, no pseudo labels yet, or no tagged photo.
    """
    if config.data.dataset != "folder" or config.data.images is None:
        raise CimError("only runs on a folder of photos can be reviewed", found=f"data.dataset={config.data.dataset}")
    others = tuple(path for path in config.data.known if Path(path).resolve() != corrections.resolve())
    split, paths = config.data.train_split, RunPaths(config)
    dataset = build_dataset(config.data.model_copy(update={"known": others}), split)
    labels = chosen_path(label_path(config, split), config.export)
    if not labels.is_file():
        raise CimError("no pseudo labels to review yet", path=labels, fix="cim run, or cim export and cim threshold")
    found = _found(labels, dataset)
    sheets = [_sheet(record, found.get(record.image_id, {})) for record in dataset if record.tags]
    if not sheets:
        raise CimError("no tagged photo to review", path=config.data.images)
    ordered = tuple(sorted(sheets, key=lambda sheet: -sheet.doubt))  # of equal doubt: as they were
    return Desk(dataset, Path(config.data.images), ordered, open_regions(paths.proposals(split)), _scores(paths, split))


def _scores(paths: RunPaths, split: str) -> StoredScores | None:
    try:
        return StoredScores(Store.open(paths.detections(split), "detections"))
    except CimError:
        logger.warning("no scores of the proposals (cim score --split %s): they keep their own order", split)
        return None


def _found(labels: Path, dataset: Dataset) -> Mapping[int | str, dict[Shape, float]]:
    """Shapes with scores by image id, best first."""
    content = read_labels(labels)
    class_ids = {name: class_id for class_id, name in enumerate(dataset.classes)}
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    image_ids = {image["id"]: image.get("source_id", image["id"]) for image in content["images"]}
    found: dict[int | str, dict[Shape, float]] = defaultdict(dict)
    for line in sorted(content["annotations"], key=lambda line: -line["score"]):
        image_id, rle, name = image_ids[line["image_id"]], line["segmentation"], names[line["category_id"]]
        record = dataset.by_id.get(image_id)
        if record is None or line["iscrowd"]:
            continue
        if tuple(rle["size"]) != tuple(record.size) or name not in class_ids:
            message, fix = "labels of other photos or classes than there are now", "run cim run again"
            raise CimError(message, path=labels, found=f"'{name}' on {record.path.name}", fix=fix)
        found[image_id].setdefault(Shape(class_ids[name], as_text(rle["counts"])), float(line["score"]))
    return found


def _sheet(record: Record, shapes: Mapping[Shape, float]) -> Sheet:
    told = dict(record.known.counts)
    return Sheet(record, Found(record.size, shapes, told), doubt(record.tags, shapes))


def doubt(tags: Iterable[int], shapes: Mapping[Shape, float]) -> float:
    """One minus the best score of the class that was found least surely; 1 where a class was not found at all."""
    best = [max((score for shape, score in shapes.items() if shape.class_id == tag), default=0.0) for tag in tags]
    return 1 - min(best, default=0.0)
