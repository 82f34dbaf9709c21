"""What the response network says about whole proposals, not places alone: evidence for every tag of a photo.

A class map is rough, but which proposal covers it best is right more often than what lies around its highest peak
(docs/RESULTS.md). Where few photos or few classes leave CIM free to take what always stands around a class for the
class, this evidence keeps its first scores on things: see ``Criterion.evidence``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cim.config.schema import AssignConfig
from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.models.region_pool import cell_cover
from cim.prm.network import Peaks, find_peaks

LEAST = 0.01  # of the evidence for a tag, whose best proposal has 1
_NOWHERE = 1e-6


def relative_peaks(maps: Tensor, class_ids: Sequence[int], fraction: float) -> Peaks:
    """Peaks of each class that reach ``fraction`` of its highest one in this photo; of a class without any positive
    peak the highest alone.

    The unit of the maps does not matter, and so neither does how long their network was trained.

    Args:
        maps: [C, h, w] of one image.
        class_ids: which to look at, 0..C-1; none gives no peaks.
    """
    found = []
    for class_id in sorted(set(class_ids)):
        highest = find_peaks(maps, [class_id], float("inf"))
        limit = fraction * float(highest.values.max())
        # just below: the peak that sets the limit counts, whatever the fraction
        found.append(find_peaks(maps, [class_id], np.nextafter(limit, -np.inf)) if limit > 0 else highest)
    if not found:
        return find_peaks(maps, [], 0.0)
    return Peaks(np.concatenate([p.index for p in found]), np.concatenate([p.values for p in found]), found[0].grid)


@dataclass(frozen=True)
class PeakOptions:
    """Which places count as peaks of a class, and what else is kept of its map.

    Attributes:
        rule: "value": above ``threshold``, or else the highest (published); "relative": at least ``fraction`` of the
            highest, see :func:`relative_peaks`.
        maps: keep the maps of the tags and the trunk's response, for the evidence of first labels.
    """

    rule: Literal["value", "relative"] = "value"
    threshold: float = 10.0
    fraction: float = 0.7
    maps: bool = False

    @classmethod
    def of(cls, assign: AssignConfig) -> PeakOptions:
        return cls(assign.peak_rule, assign.peak_threshold, assign.peak_fraction, assign.evidence)

    def find(self, maps: Tensor, tags: Sequence[int]) -> Peaks:
        """Peaks in enlarged maps [C, h, w]."""
        if self.rule == "relative":
            return relative_peaks(maps, tags, self.fraction)
        return find_peaks(maps, tags, self.threshold)

    def provenance(self) -> dict[str, Any]:
        """What makes peaks differ; a published rule is named as it always was."""
        rule = {"peak_threshold": self.threshold} if self.rule == "value" else {"peak_fraction": self.fraction}
        return rule | ({"maps": True} if self.maps else {})


def class_evidence(regions: RegionSet, maps: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """How well every proposal covers what speaks for each of T classes, float32 [N, T], the best one of a class 1.

    What speaks for a class at a place: the geometric mean of its map's positive part, as a share of the highest, and
    the trunk's response (:func:`cim.prm.fit.response_strength`). How well a proposal covers it: the sum of it inside,
    over everything that is inside or speaks for the class (intersection over union of soft masks).

    Args:
        regions: N proposals of the photo.
        maps: float [T, h, w], class maps as the head gives them, not enlarged.
        strength: float [h, w], 0..1.
    """
    positive = torch.from_numpy(maps.astype(np.float32)).clamp(min=0)
    share = positive / positive.amax((1, 2), keepdim=True).clamp(min=_NOWHERE)
    speaks = (share * torch.from_numpy(strength.astype(np.float32))).sqrt().flatten(1)  # [T, h * w]
    cover = _cover(regions, maps.shape[1:])
    inside = cover @ speaks.T
    union = cover.sum(1, keepdim=True) + speaks.sum(1) - inside
    overlap = inside / union.clamp(min=_NOWHERE)
    best = overlap.amax(0, keepdim=True) if len(overlap) else overlap.new_ones(1, len(maps))
    relative = torch.where(best > _NOWHERE, overlap / best.clamp(min=_NOWHERE), torch.ones_like(overlap))
    return relative.clamp(min=LEAST).numpy()


def speaks_against(regions: RegionSet, maps: np.ndarray) -> np.ndarray:
    """Proposals inside which every class map is negative on average: bool [N].

    Args:
        maps: float [T, h, w] of the photo's tags, as a solved head gives them (0: as likely as not).
    """
    cover = _cover(regions, maps.shape[1:])
    means = cover @ torch.from_numpy(maps.astype(np.float32)).flatten(1).T
    return (means.amax(1) < 0).numpy() if means.numel() else np.zeros(len(regions), bool)


def with_background(clusters: Clusters, rows: np.ndarray) -> Clusters:
    """The labels with unlabelled proposals among ``rows`` (bool [N]) as background, in its cluster."""
    class_ids, cluster = clusters.class_ids.copy(), clusters.cluster.copy()
    there = cluster[class_ids == 0]
    rows = rows & (class_ids < 0)
    class_ids[rows], cluster[rows] = 0, there[0] if len(there) else cluster.max(initial=0) + 1
    return Clusters(class_ids, cluster, clusters.evidence)


def _cover(regions: RegionSet, size: tuple[int, ...]) -> Tensor:
    """Share of every cell that lies inside every proposal, float32 [N, h * w]."""
    atoms, members = torch.from_numpy(regions.atoms), torch.from_numpy(regions.members)
    return cell_cover(atoms, members, torch.Size(size)).flatten(1)


def complete(clusters: Clusters, evidence: np.ndarray, class_ids: Sequence[int]) -> Clusters:
    """Every tag gets a label: one that has none, takes the proposal with most evidence for it as a further cluster.

    Proposals that are the only one of another tag are left alone.

    Args:
        clusters: first labels of N proposals.
        evidence: float32 [N, T].
        class_ids: T tags of the photo, 0..C-1.
    """
    labels, cluster = clusters.class_ids.copy(), clusters.cluster.copy()
    for column, class_id in enumerate(class_ids):
        if (labels == class_id + 1).any():
            continue
        alone = np.zeros(len(labels), bool)
        for other in class_ids:
            rows = np.flatnonzero(labels == other + 1)
            alone[rows] = len(rows) == 1
        if alone.all():
            continue
        best = int(np.where(alone, -1, evidence[:, column]).argmax())
        labels[best], cluster[best] = class_id + 1, cluster.max() + 1
    return Clusters(labels, cluster)
