"""Pseudo labels of classes of which is known how many instances there are, beside what a miner finds of others; none
that looks like a mask that somebody deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cim.core.regions import Overlaps
from cim.core.types import PseudoLabels
from cim.mining.steps import labels_of
from cim.mining.told import Told

STEPS = 300  # of the search, three times per photo and update: nearly always the best set, in a few milliseconds
HALF = 0.5  # share of two instances inside a proposal from which it has merged them
POSITIVE, COMPLETE, STEP = 0.25, 0.5, 0.1  # CIM's thresholds (METHOD section 5), higher with every branch
NEAR = 0.1  # mask IoU with all instances below which a proposal is ignored


@dataclass(frozen=True)
class Truths:
    """T pseudo ground truths.

    Attributes:
        rows: int64 [T], proposals; -1: a mask that is none.
        classes: int64 [T], 0..C-1.
        iou: float [T, N], with every proposal.
        inside: bool [T, N], proposals that hold half of one.
        weight: float [T].
    """

    rows: Tensor
    classes: Tensor
    iou: Tensor
    inside: Tensor
    weight: Tensor

    @property
    def merged(self) -> Tensor:
        """bool [N], proposals that hold half of two instances of one class, or more."""
        same = self.classes[:, None] == self.classes
        together = (same.to(self.iou.dtype) @ self.inside.to(self.iou.dtype)) * self.inside
        return (together > 1).any(0)


@torch.no_grad()
def mine_told(
    mine: Callable[[Tensor], PseudoLabels | None],
    weight: Tensor,
    tags: Tensor,
    overlaps: Overlaps,
    branch: int,
    told: Told,
) -> PseudoLabels | None:
    """Labels of one branch: a class with a number has exactly so many pseudo ground truths, the best disjoint set of
    proposals by weight, and certain masks, which weigh as much as the best proposal of their class in the image: with a
    weight of 1 a few photos outvoted all others (docs/ANNOTATE.md). The others are mined as ever. A proposal takes its
    label from whichever overlaps it more.

    Args:
        mine: tags [C] -> labels, the miner with everything else given (:func:`without_barred` scores, too).
        weight: [N, C], class score times instance score.
        tags: [C], non-zero for the classes of the image.
        overlaps: mask overlaps [N, N].
        told: of the same proposals.
    """
    truths = find_truths(weight, overlaps, told)
    unknown = tags * torch.from_numpy(told.numbers < 0).to(tags)
    mined = mine(unknown) if bool(unknown.any()) else None
    if truths is None:
        return mined
    there = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    there[truths.rows[truths.rows >= 0]] = True
    labels = labels_of(
        truths.iou,
        truths.classes + 1,
        truths.weight,
        there,
        positive_iou=POSITIVE + STEP * branch,
        complete_iou=COMPLETE + STEP * branch,
        seeds=len(truths.rows),
        background_from=NEAR,
    )
    merged = truths.merged | torch.from_numpy(told.merged).to(there.device)
    labels.integrity[merged] = 0
    nothing = mined is None or not bool(mined.mined.any())
    return labels if mined is None or nothing else _nearer(labels, truths.iou.amax(0), mined, overlaps.iou)


def without_barred(scores: Tensor, told: Told) -> Tensor:
    """Scores [N, C], 0 where a proposal is like a deleted mask of the class: neither seed nor pseudo ground truth."""
    return scores.masked_fill(torch.from_numpy(told.barred.T).to(scores.device), 0) if told.barred.any() else scores


def ignore_barred(labels: PseudoLabels | None, told: Told) -> PseudoLabels | None:
    """The labels but those of proposals that are like a deleted mask of the class that they would get."""
    if labels is None or not told.barred.any():
        return labels
    barred = torch.from_numpy(told.barred).to(labels.class_ids.device)
    wrong = barred[(labels.class_ids - 1).clamp_min(0), torch.arange(barred.shape[1], device=barred.device)]
    wrong &= labels.class_ids > 0
    return replace(
        labels,
        class_ids=labels.class_ids.masked_fill(wrong, -1),
        integrity=labels.integrity.masked_fill(wrong, 0),
        weight=labels.weight.masked_fill(wrong, 0),
        mined=labels.mined & ~wrong,
    )


def find_truths(weight: Tensor, overlaps: Overlaps, told: Told) -> Truths | None:
    """The pseudo ground truths of the classes with a number; None: no proposal fits, and nothing is certain."""

    def shares(rows: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(rows).to(weight.device)
        inside = overlaps.containment[at][:, at]
        return torch.maximum(inside, inside.T).cpu().numpy()

    scores, pairs = weight.cpu().numpy(), list[tuple[int, int]]()
    for class_id in np.flatnonzero(told.numbers > 0):
        chosen = told.choose(int(class_id), scores[:, class_id], shares, STEPS)
        pairs += [(int(row), int(class_id)) for row in chosen if row >= 0]
    certain = np.flatnonzero(told.certain)
    if not pairs and not len(certain):
        return None
    rows, classes = torch.tensor(pairs, dtype=torch.int64, device=weight.device).reshape(-1, 2).T
    masks = torch.from_numpy(told.fit[certain]).to(weight)
    holds = torch.from_numpy(told.holds[certain]).to(weight.device)
    of_masks = torch.from_numpy(told.class_ids[certain]).to(weight.device)
    best = weight.amax(0) if len(weight) else weight.new_zeros(weight.shape[1])
    return Truths(
        torch.cat([rows, torch.full_like(of_masks, -1)]),
        torch.cat([classes, of_masks]),
        torch.cat([overlaps.iou[rows].to(weight), masks]),
        torch.cat([overlaps.containment[:, rows].T >= HALF, holds]),
        torch.cat([weight[rows, classes], best[of_masks]]),
    )


def _nearer(first: PseudoLabels, overlap: Tensor, second: PseudoLabels, iou: Tensor) -> PseudoLabels:
    """Each proposal's label from the set whose pseudo ground truths it overlaps more; the first where equally."""
    mine = overlap >= iou[second.mined].amax(0)
    return PseudoLabels(
        class_ids=torch.where(mine, first.class_ids, second.class_ids),
        integrity=torch.where(mine, first.integrity, second.integrity.to(first.integrity)),
        weight=torch.where(mine, first.weight, second.weight.to(first.weight)),
        mined=first.mined | second.mined,
        seeds=torch.as_tensor(first.seeds) + torch.as_tensor(second.seeds),
    )
