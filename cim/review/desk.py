"""What lies on the desk of a reviewer: the photos of a run in order of doubt, what was found on each, its proposals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cim.config.build import build_dataset
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.inference.detections import StoredScores, with_masks
from cim.labels.worth import Look, Scored, rank
from cim.review.decisions import Found, Shape
from cim.storage.published import RegionSource, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sheet:
    """One photo of a review.

    Attributes:
        doubt: 0..1, see :class:`cim.labels.worth.Look`.
        reasons: in words.
    """

    record: Record
    found: Found
    doubt: float
    reasons: tuple[str, ...]


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
    ranking = rank(config, dataset)
    sheets = tuple(_sheet(look, ranking.found.get(look.record.image_id, ())) for look in ranking.looks)
    if not sheets:
        raise CimError("no tagged photo to review", path=config.data.images)
    return Desk(dataset, Path(config.data.images), sheets, open_regions(paths.proposals(split)), _scores(paths, split))


def _scores(paths: RunPaths, split: str) -> StoredScores | None:
    try:
        return StoredScores(Store.open(paths.detections(split), "detections"))
    except CimError:
        logger.warning("no scores of the proposals (cim score --split %s): they keep their own order", split)
        return None


def _sheet(look: Look, masks: Sequence[Scored]) -> Sheet:
    shapes: dict[Shape, float] = {}
    for one in masks:
        shapes.setdefault(Shape(one.class_id, one.mask), one.score)
    return Sheet(look.record, Found(look.record.size, shapes, dict(look.record.known.counts)), look.doubt, look.reasons)
