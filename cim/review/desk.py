"""What lies on the desk of a reviewer: the photos of a run in order of doubt, what was found on each, its proposals."""

from __future__ import annotations

import logging
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
from cim.labels.mask_file import Masks
from cim.labels.worth import Look, rank
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
        masks: of all photos, in a file.
    """

    record: Record
    doubt: float
    reasons: tuple[str, ...]
    masks: Masks

    @property
    def found(self) -> Found:
        """What the run found on it, read anew each time."""
        scores: dict[Shape, float] = {}
        for one in self.masks.get(self.record.image_id, ()):
            scores.setdefault(Shape(one.class_id, one.mask), one.score)
        return Found(self.record.size, scores, dict(self.record.known.counts))


@dataclass(frozen=True)
class Desk:
    """The photos of a run.

    Attributes:
        dataset: the training photos, with what is known of them but for the corrections.
        images: their folder.
        sheets: the tagged ones, most doubtful first in the light of all that is known, corrections of before as well.
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
    now = dataset if others == config.data.known else build_dataset(config.data, split)
    ranking = rank(config, now)
    settled = (Look(record, 0.0, ()) for record in dataset if record.tags and not now.by_id[record.image_id].tags)
    sheets = tuple(
        Sheet(dataset.by_id[look.record.image_id], look.doubt, look.reasons, ranking.found)
        for look in (*ranking.looks, *settled)
    )
    if not sheets:
        raise CimError("no tagged photo to review", path=config.data.images)
    return Desk(dataset, Path(config.data.images), sheets, open_regions(paths.proposals(split)), _scores(paths, split))


def _scores(paths: RunPaths, split: str) -> StoredScores | None:
    try:
        return StoredScores(Store.open(paths.detections(split), "detections"))
    except CimError:
        logger.warning("no scores of the proposals (cim score --split %s): they keep their own order", split)
        return None
