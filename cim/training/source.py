"""What CIM training is fed with: photos with proposals, tags and first labels, one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cim.core.types import Clusters, Sample
from cim.datasets.base import Dataset, Record
from cim.datasets.known import NOTHING
from cim.storage.published import ClusterSource, RegionSource
from cim.training.feature_cache import FeatureCache
from cim.training.pooled_cache import PooledCache
from cim.training.samples import make_pooled_sample, make_sample

Heeded = Literal["nothing", "marked", "all"]
"""What is heeded of what is known of the photos beyond tags; "marked": not the numbers of classes of which nothing is
marked."""


@dataclass(frozen=True)
class CIMSource:
    """Photos with proposals, tags and first labels, at a random scale and side (METHOD section 7).

    Attributes:
        regions: proposals; clusters: first labels, None when training goes without.
        sides: long sides to draw from, pixels.
        flip: mirror half of the samples.
        max_proposals: cap per image, see :func:`cim.training.samples.keep_best`.
        features: the frozen trunk's maps; needs ``flip`` off.
        pooled: what the light head makes of them, instead of these.
        order: photos of one round, rare classes more often (:func:`balanced_order`); None: each once.
        known: what is heeded of what is known of the photos beyond tags.
    """

    dataset: Dataset
    regions: RegionSource
    clusters: ClusterSource | None
    sides: tuple[int, ...]
    flip: bool = True
    max_proposals: int | None = None
    features: FeatureCache | None = None
    pooled: PooledCache | None = None
    order: tuple[int, ...] | None = None
    known: Heeded = "nothing"

    def __len__(self) -> int:
        return len(self.dataset) if self.order is None else len(self.order)

    def sample(self, index: int, rng: np.random.Generator) -> Sample | None:
        """None for an image without tags or proposals.

        Raises:
            CimError: damaged photo or artefact, or artefacts that do not belong together.
        """
        side = int(rng.choice(self.sides))
        kept = self._kept(index)
        return self.sample_at(index, side, self.flip and rng.random() < 0.5, rng) if kept is None else kept

    def _kept(self, index: int) -> Sample | None:
        """The sample without its photo, where what is kept is enough: all proposals, nothing known beyond tags."""
        record = self._record(index)
        if self.pooled is None or not record.tags or record.known:
            return None
        kept = self.pooled.kept(record.image_id)
        if kept is None or not 0 < len(kept.members) <= (self.max_proposals or len(kept.members)):
            return None
        return make_pooled_sample(record, kept, self._clusters(record), len(self.dataset.classes))

    def _record(self, index: int) -> Record:
        record = self.dataset[index if self.order is None else self.order[index]]
        if self.known == "all":
            return record
        return replace(record, known=record.known.marked() if self.known == "marked" else NOTHING)

    def _clusters(self, record: Record) -> Clusters | None:
        if self.clusters is None or not self.clusters.has(record.image_id):
            return None
        return self.clusters.load(record.image_id)

    def sample_at(self, index: int, side: int, flip: bool, rng: np.random.Generator | None = None) -> Sample | None:
        """The same, at a given scale."""
        record = self._record(index)
        if not record.tags or not self.regions.has(record.image_id):
            return None
        regions = self.regions.load(record.image_id)
        if not len(regions):
            return None
        clusters = self._clusters(record)
        sample = make_sample(record, regions, clusters, side, flip, len(self.dataset.classes), self.max_proposals, rng)
        if self.pooled is not None:
            return replace(sample, pooled=self.pooled.load(record.image_id, len(regions))[sample.proposal])
        return sample if self.features is None else replace(sample, features=self.features.load(record.image_id, side))
