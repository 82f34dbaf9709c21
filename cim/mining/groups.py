"""Several instances taken for one: a region that holds two separate regions of its class, each nearly as good.

Training from tags rewards the mask around a whole group, and greedy NMS lets it drop its members. Two regions inside
it that share hardly a pixel and score almost as high say that it is a group: one animal's head and body seldom do.
"""

from __future__ import annotations

import numpy as np

from cim.core.regions import RegionSet

INSIDE = 0.8  # share of a member that lies inside the group
SMALLER = 0.8  # a member's area is below this share of the group's
APART = 0.2  # members share less than this part of the smaller one
LOWERED = 0.1  # factor on the score of a group
CANDIDATES = 60  # best regions inside a group that may be its members
_FAINT = 0.01  # of the best score of the class: fainter regions are neither groups nor members


def lower_groups(regions: RegionSet, scores: np.ndarray, ratio: float) -> np.ndarray:
    """The scores with those of groups lowered, so that members come first and are not dropped for them.

    Args:
        regions: N proposals.
        scores: float [N, C], class scores without background.
        ratio: a region is a group of a class from where its second member scores this share of it.

    Returns:
        float [N, C], of the same type; ``scores`` is not changed.
    """
    lowered = scores.copy()
    if len(regions) < 3:
        return lowered
    shared = regions.intersections(regions.members)
    for column in range(scores.shape[1]):
        if scores[:, column].max() > 0:
            groups = member_strength(scores[:, column], shared) >= ratio
            lowered[groups, column] *= LOWERED
    return lowered


def member_strength(score: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Score of the second member over that of the region, for the best two members inside every region.

    Args:
        score: floating [N], of one class.
        shared: floating [N, N], pixels that two regions share; the diagonal holds their areas.

    Returns:
        float64 [N]; 0 without two members, and for regions of less than a hundredth of the best score.
    """
    seen = np.flatnonzero(score > _FAINT * score.max(initial=0))
    order = seen[np.argsort(-score[seen], kind="stable")]
    falling, shared = score[order], shared[np.ix_(order, order)]
    area = shared.diagonal()
    member = (shared > INSIDE * area) & (area < SMALLER * area[:, None])
    member &= member.cumsum(1) <= CANDIDATES
    apart = np.triu(shared < APART * np.minimum.outer(area, area), 1)  # a before b, a the better one
    second = member & (member.astype(np.float32) @ apart.astype(np.float32) > 0)
    strength = np.zeros(len(score))
    strength[order] = np.where(second.any(1), falling[second.argmax(1)] / falling, 0)
    return strength
