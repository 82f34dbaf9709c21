"""The proposal stage: one photo in, one region file out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.datasets.base import Record
from cim.proposals.cob import write_cob_mat
from cim.proposals.grouping.deep import TrunkFeatures
from cim.proposals.grouping.propose import GroupingOptions, propose
from cim.proposals.options import ProposerOptions
from cim.proposals.sam import SamOptions, SamProposer
from cim.storage.photos import PhotoFile, PhotoTable, tags_of
from cim.storage.store import Store

Proposer = Callable[..., RegionSet]
"""Photo uint8 [H, W, 3] -> its regions. Where points prompt, they follow: float [P, 2], fractions of the photo."""

Prompter = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""Photo, and its tags or none -> such points."""


@dataclass(frozen=True)
class ProposalStage:
    """Makes the proposals of one photo; what is there already stays. Picklable, for worker processes.

    Attributes:
        store: of kind "regions".
        options: how.
        device: torch device of the networks involved.
        mat: folder for COB ``.mat`` files, named after the photo; None: none are written.
        mat_layout: "voc" or "coco".
        prompter: what says where to look, for a maker that can be told; None: nobody. Picklable.
        tagged: the prompter hears the photos' tags.
    """

    store: Store
    options: ProposerOptions
    device: str = "cpu"
    mat: Path | None = None
    mat_layout: Literal["voc", "coco"] = "voc"
    prompter: Prompter | None = None
    tagged: bool = False

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
            photo = PhotoFile.of(record.path, "" if self.depends_on is None else self.depends_on(record))
            regions = self._propose(record)
            PhotoTable(self.store.root).note(record.image_id, photo)
        if self.mat is not None:
            write_cob_mat(self._mat_path(record), regions, self.mat_layout)

    @property
    def depends_on(self) -> Callable[[Record], str] | None:
        """What of a record, besides its photo, the proposals depend on."""
        return tags_of if self.prompter is not None and self.tagged else None

    def _propose(self, record: Record) -> RegionSet:
        """Found and stored."""
        propose, photo = _kept_proposer(self.options, self.device), read_photo(record.path)
        if self.prompter is None:
            regions = propose(photo)
            self.store.save_regions(record.image_id, regions)
        else:
            points = self.prompter(photo, record.tags if self.tagged else ())
            regions = propose(photo, points)
            self.store.save_regions(record.image_id, regions, prompts=points.astype(np.float32))
        return regions

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


def prompt_counts(store: Store, records: Iterable[Record], options: ProposerOptions) -> list[int]:
    """How many points SAM was asked about in each of the photos that are done.

    Raises:
        CimError: a damaged file.
    """
    grid, there = options.grid_side**2, store.seen()
    done = [record.image_id for record in records if there(record.image_id)]
    if options.prompts == "grid":
        return [grid] * len(done)
    return [grid + len(store.load(image_id, only="prompts")["prompts"]) for image_id in done]


def _grouping(options: ProposerOptions, device: str) -> Proposer:
    if options.prompts != "grid":
        fix = "--set proposals.method=sam, or proposals.prompts=grid"
        raise CimError("only Segment Anything takes prompts", expected="sam", found=options.method, fix=fix)
    features = None
    if options.deep_features:
        features = TrunkFeatures(options.backbone, options.weights, device=device)
    limits = GroupingOptions(
        options.max_proposals, min_area=options.min_area, max_area=options.max_area, cuts=options.cuts
    )
    return partial(propose, options=limits, features=features)


def _sam(options: ProposerOptions, device: str) -> Proposer:
    limits = SamOptions(
        options.max_proposals, grid=options.grid_side, min_area=options.min_area, max_area=options.max_area
    )
    return SamProposer(options.sam_checkpoint, limits, device)


OPENERS: dict[str, Callable[[ProposerOptions, str], Proposer]] = {"grouping": _grouping, "sam": _sam}
"""The makers of cim/proposals/options.py: options, device -> what finds regions."""
