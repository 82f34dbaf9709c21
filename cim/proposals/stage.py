"""The proposal stage: one photo in, one region file out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.datasets.base import Record
from cim.proposals.cob import write_cob_mat
from cim.proposals.grouping.deep import TrunkFeatures
from cim.proposals.grouping.propose import GroupingOptions, propose
from cim.proposals.options import ProposerOptions
from cim.proposals.sam import SamOptions, SamProposer
from cim.storage.photos import PhotoFile, PhotoTable
from cim.storage.store import Store

Proposer = Callable[[np.ndarray], RegionSet]
"""Photo uint8 [H, W, 3] -> its regions."""


@dataclass(frozen=True)
class ProposalStage:
    """Makes the proposals of one photo; what is there already stays. Picklable, for worker processes.

    Attributes:
        store: of kind "regions".
        options: how.
        device: torch device of the networks involved.
        mat: folder for COB ``.mat`` files, named after the photo; None: none are written.
        mat_layout: "voc" or "coco".
    """

    store: Store
    options: ProposerOptions
    device: str = "cpu"
    mat: Path | None = None
    mat_layout: Literal["voc", "coco"] = "voc"

    def waiting(self, records: Iterable[Record]) -> list[Record]:
        """Photos that are not done."""
        there = self.store.seen()
        return [
            record
            for record in records
            if not there(record.image_id) or (self.mat is not None and not self._mat_path(record).is_file())
        ]

    def __call__(self, record: Record) -> None:
        """Raises:
        CimError: the photo cannot be read, or the disk cannot be written.
        """
        if self.store.has(record.image_id):
            regions = self.store.load_regions(record.image_id)
        else:
            photo = PhotoFile.of(record.path)
            regions = _kept_proposer(self.options, self.device)(read_photo(record.path))
            self.store.save_regions(record.image_id, regions)
            PhotoTable(self.store.root).note(record.image_id, photo)
        if self.mat is not None:
            write_cob_mat(self._mat_path(record), regions, self.mat_layout)

    def _mat_path(self, record: Record) -> Path:
        assert self.mat is not None  # whoever asks has looked
        return self.mat / f"{record.path.stem}.mat"


def open_proposer(options: ProposerOptions, device: str = "cpu") -> Proposer:
    """What finds the regions of a photo, its networks loaded.

    Raises:
        CimError: weights or a checkpoint that cannot be had, transformers missing.
    """
    return OPENERS[options.method](options, device)


_kept_proposer = lru_cache(maxsize=1)(open_proposer)  # one network per process and options


def _grouping(options: ProposerOptions, device: str) -> Proposer:
    features = None
    if options.deep_features:
        features = TrunkFeatures(options.backbone, options.weights, device=device)
    limits = GroupingOptions(options.max_proposals, min_area=options.min_area, max_area=options.max_area)
    return partial(propose, options=limits, features=features)


def _sam(options: ProposerOptions, device: str) -> Proposer:
    limits = SamOptions(options.max_proposals, min_area=options.min_area, max_area=options.max_area)
    return SamProposer(options.sam_checkpoint, limits, device)


OPENERS: dict[str, Callable[[ProposerOptions, str], Proposer]] = {"grouping": _grouping, "sam": _sam}
"""The makers of cim/proposals/options.py: options, device -> what finds regions."""
