"""What CIM training is fed with: photos with proposals, tags and first labels, one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cim.core.types import Sample
from cim.datasets.base import Dataset
from cim.datasets.known import NOTHING
from cim.storage.published import ClusterSource, RegionSource
from cim.training.feature_cache import FeatureCache
from cim.training.pooled_cache import PooledCache
from cim.training.samples import make_sample


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
        known: heed what is known of the photos beyond tags.
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
    known: bool = False

    def __len__(self) -> int:
        return len(self.dataset) if self.order is None else len(self.order)

    def sample(self, index: int, rng: np.random.Generator) -> Sample | None:
        """None for an image without tags or proposals.

        Raises:
            CimError: damaged photo or artefact, or artefacts that do not belong together.
        """
        side = int(rng.choice(self.sides))
        return self.sample_at(index, side, self.flip and rng.random() < 0.5, rng)

    def sample_at(self, index: int, side: int, flip: bool, rng: np.random.Generator | None = None) -> Sample | None:
        """The same, at a given scale."""
        record = self.dataset[index if self.order is None else self.order[index]]
        if not record.tags or not self.regions.has(record.image_id):
            return None
        if not self.known:
            record = replace(record, known=NOTHING)
        regions = self.regions.load(record.image_id)
        if not len(regions):
            return None
        clusters = None
        if self.clusters is not None and self.clusters.has(record.image_id):
            clusters = self.clusters.load(record.image_id)
        sample = make_sample(record, regions, clusters, side, flip, len(self.dataset.classes), self.max_proposals, rng)
        if self.pooled is not None:
            return replace(sample, pooled=self.pooled.load(record.image_id, len(regions))[sample.proposal])
        return sample if self.features is None else replace(sample, features=self.features.load(record.image_id, side))
