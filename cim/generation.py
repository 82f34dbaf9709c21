"""The proposal stage: one photo in, one region file out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cim.build import build_proposer
from cim.config import ProposalConfig
from cim.datasets.base import Record
from cim.photo import read_photo
from cim.proposals.cob import write_cob_mat
from cim.regions import RegionSet
from cim.store import Store


@dataclass(frozen=True)
class ProposalStage:
    """Makes the proposals of one photo; what is there already stays. Picklable, for worker processes.

    Attributes:
        store: of kind "regions".
        settings: how.
        device: torch device of the networks involved.
        mat: folder for COB ``.mat`` files, named after the photo; None: none are written.
        mat_layout: "voc" or "coco".
    """

    store: Store
    settings: ProposalConfig
    device: str = "cpu"
    mat: Path | None = None
    mat_layout: Literal["voc", "coco"] = "voc"

    def done(self, record: Record) -> bool:
        return self.store.has(record.image_id) and (self.mat is None or self._mat_path(record).is_file())

    def __call__(self, record: Record) -> None:
        """Raises:
        CimError: the photo cannot be read, or the disk cannot be written.
        """
        if self.store.has(record.image_id):
            regions = self.store.load_regions(record.image_id)
        else:
            regions = _proposer(self.settings.model_dump_json(), self.device)(read_photo(record.path))
            self.store.save_regions(record.image_id, regions)
        if self.mat is not None:
            write_cob_mat(self._mat_path(record), regions, self.mat_layout)

    def _mat_path(self, record: Record) -> Path:
        return self.mat / f"{record.path.stem}.mat"


def provenance(settings: ProposalConfig) -> dict[str, Any]:
    """What the store's manifest says; whoever trains on it can see whether masks were learnt from."""
    limits = {"max_proposals": settings.max_proposals, "min_area": settings.min_area, "max_area": settings.max_area}
    if settings.method == "sam":
        return {
            "maker": "Segment Anything",
            "checkpoint": settings.sam_checkpoint,
            "trained_on_masks": True,
            **limits,
        }
    cue = settings.backbone if settings.deep_features else None
    return {"maker": "cim grouping", "deep_features": cue, "trained_on_masks": False, **limits}


@lru_cache(maxsize=1)
def _proposer(settings: str, device: str) -> Callable[[np.ndarray], RegionSet]:
    """One network per process and settings."""
    return build_proposer(ProposalConfig.model_validate_json(settings), device)
