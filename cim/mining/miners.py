"""Miners: from the scores of one branch to the pseudo labels that train the next (METHOD section 5).

All miners have one shape, so that every published alternative is one line of a config::

    labels = miner(cls_scores, instance_scores, tags, overlaps, branch, generator)

with s = cls_scores and d = instance_scores, floating [N, C] without the background column; tags [C],
non-zero for the classes of the image; mask overlaps [N, N]; the branch counted from 0; a generator on
any device, or None where nothing is drawn. The answer is None when there is nothing to mine: no class, or no
proposal. N proposals, C classes, P of them present in the image.

Everything is vectorised over proposals and present classes (cim/mining/steps.py) and computed in float32 at least
whatever the autocast mode. Tags that lie on the host are never asked for: no size depends on what is mined, so that
nothing waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cim.core.regions import Overlaps
from cim.core.types import PseudoLabels
from cim.mining.steps import (
    CENTRES,
    cluster_centres,
    find_big,
    find_complete,
    find_seeds,
    listed,
    marked,
    one_class_each,
    sample_distinct,
    seed_count,
    spread,
)

Miner = Callable[[Tensor, Tensor, Tensor, Overlaps, int, "torch.Generator | None"], "PseudoLabels | None"]


class PresentClassMiner(ABC):
    """What all miners share: full precision, no gradient, only the classes of the image, nothing from nothing."""

    @torch.no_grad()
    def __call__(
        self,
        cls_scores: Tensor,
        instance_scores: Tensor,
        tags: Tensor,
        overlaps: Overlaps,
        branch: int,
        generator: torch.Generator | None = None,
    ) -> PseudoLabels | None:
        """Pseudo labels of one branch; arguments as in the module's head."""
        if not len(cls_scores):
            return None
        with torch.autocast(cls_scores.device.type, enabled=False):
            at = tags.nonzero()[:, 0].to(cls_scores.device, non_blocking=True)
            if not len(at):
                return None
            s, d = (_at_least_float32(scores[:, at].T) for scores in (cls_scores, instance_scores))
            return self.mine(at + 1, s, d, overlaps, branch, generator)

    @abstractmethod
    def mine(
        self, classes: Tensor, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None
    ) -> PseudoLabels:
        """The same for class numbers [P] (from 1) and their scores [P, N]."""


@dataclass(frozen=True)
class CIMMiner(PresentClassMiner):
    """Complete Instances Mining (METHOD section 5, whose steps the comments number).

    Attributes:
        seed_fraction: p, share of the proposals that may become seeds of a class.
        cls_threshold: t_cls of branch 0, mask IoU.
        iou_threshold: t_iou of branch 0, mask IoU above which a proposal counts as complete.
        threshold_step: added to both with every branch.
        contain_threshold: t_con, share of a seed that must lie inside its pseudo ground truth.
        big_fraction: a proposal that contains this share of all proposals is *big*.
        big_as_background: label big proposals background; the published program never does.
        anti_noise: sample the mined proposals by weight.
        containment: search the complete instance; without, every seed is its own pseudo ground truth.
        cluster_seeds: take the seeds from PCL's score clusters instead of step 2; not published.
        background_iou: a proposal whose mask IoU with every pseudo ground truth is below this is ignored, not
            background; published 0.
    """

    seed_fraction: float = 0.1
    cls_threshold: float = 0.25
    iou_threshold: float = 0.5
    threshold_step: float = 0.1
    contain_threshold: float = 0.85
    big_fraction: float = 0.9
    big_as_background: bool = False
    anti_noise: bool = True
    containment: bool = True
    cluster_seeds: bool = False
    background_iou: float = 0.0

    def mine(
        self, classes: Tensor, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None
    ) -> PseudoLabels:
        t_cls = self.cls_threshold + self.threshold_step * branch
        t_iou = self.iou_threshold + self.threshold_step * branch
        weight = s * d
        most = seed_count(s, self.seed_fraction)
        if self.cluster_seeds:
            most = max(most, CENTRES)
            centres, weight, _ = cluster_centres(weight, overlaps.iou)
            index, is_seed = listed(centres, CENTRES)
        else:
            index, is_seed = find_seeds(s, overlaps.iou, self.seed_fraction, t_cls)  # step 2
        big = None
        if self.containment or self.big_as_background:
            big = find_big(overlaps.containment, self.contain_threshold, self.big_fraction)  # step 1
        if self.containment and big is not None:
            mined = find_complete(overlaps.containment, self.contain_threshold, big, d, index, is_seed)  # step 3
        else:
            mined = marked(s, index, is_seed)
        mined = one_class_each(mined, weight)  # step 4
        if self.anti_noise:
            mined = sample_distinct(weight, mined, most, generator)  # step 5
        seeds = is_seed.sum()
        labels = spread(mined, weight, classes, overlaps.iou, t_cls, t_iou, seeds, most, self.background_iou)  # step 6
        if big is not None and self.big_as_background:  # step 7
            known = big & mined.any()  # from nothing nothing is learnt
            labels.class_ids.masked_fill_(known, 0)
            labels.integrity.masked_fill_(known, 0)
        return labels


@dataclass(frozen=True)
class MISTMiner(PresentClassMiner):
    """MIST's self-training labels (CVPR 2020): the seeds by s * d are the pseudo ground truth themselves.

    Attributes: as in :class:`CIMMiner`.
    """

    seed_fraction: float = 0.1
    cls_threshold: float = 0.25
    iou_threshold: float = 0.5
    threshold_step: float = 0.1

    def mine(
        self, classes: Tensor, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None
    ) -> PseudoLabels:
        t_cls = self.cls_threshold + self.threshold_step * branch
        t_iou = self.iou_threshold + self.threshold_step * branch
        weight = s * d
        index, is_seed = find_seeds(weight, overlaps.iou, self.seed_fraction, t_cls)
        mined = one_class_each(marked(s, index, is_seed), weight)
        return spread(mined, weight, classes, overlaps.iou, t_cls, t_iou, is_seed.sum(), index.shape[1])


@dataclass(frozen=True)
class OICRMiner(PresentClassMiner):
    """Online instance classifier refinement (CVPR 2017): one pseudo ground truth per class, the best proposal.

    Attributes:
        positive_iou: proposals with this mask IoU to it share its class, all others are background.
    """

    positive_iou: float = 0.5

    def mine(
        self, classes: Tensor, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None
    ) -> PseudoLabels:
        weight = s * d
        best = weight.argmax(1, keepdim=True)
        mined = torch.zeros_like(s, dtype=torch.bool).scatter_(1, best, True)
        mined = one_class_each(mined, weight)
        iou, limit = overlaps.iou, self.positive_iou
        seeds = torch.ones_like(best).sum()  # one per class
        return spread(mined, weight, classes, iou, limit, limit, seeds, 1, background_from=None)


@dataclass(frozen=True)
class PCLMiner(PresentClassMiner):
    """Proposal cluster learning (TPAMI 2018): several pseudo ground truths per class, found on a graph.

    Attributes:
        groups, graph_iou, max_centres: see :func:`cim.mining.steps.cluster_centres`.
        positive_iou: mask IoU to a centre from which a proposal takes its class.
        background_iou: mask IoU below which a proposal is ignored.
    """

    groups: int = 3
    graph_iou: float = 0.4
    max_centres: int = CENTRES
    positive_iou: float = 0.5
    background_iou: float = 0.1

    def mine(
        self, classes: Tensor, s: Tensor, d: Tensor, overlaps: Overlaps, branch: int, generator: torch.Generator | None
    ) -> PseudoLabels:
        iou, limit = overlaps.iou, self.positive_iou
        mined, weight, seeds = cluster_centres(s * d, iou, self.groups, self.graph_iou, self.max_centres)
        mined = one_class_each(mined, weight)
        most, background = self.max_centres, self.background_iou
        return spread(mined, weight, classes, iou, limit, limit, seeds, most, background_from=background)


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
