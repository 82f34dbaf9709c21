"""Exact labels of a scene's proposals (:mod:`cim.training.scenes`), in place of mined ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cim.core.types import Clusters, PseudoLabels, SceneTruth

POSITIVE = 0.5  # IoU with an instance from which a proposal is labelled in the first labels
COVERED = 0.5  # share of two instances inside a proposal from which it has merged them (as cim.diagnosis counts)
NEAR = 0.1  # IoU with every instance below which nothing is known: the background photo shows other things


def merges(covered: Tensor) -> Tensor:
    """Which proposals hold half of two or more instances each: [M, N] -> bool [N]."""
    return (covered >= COVERED).sum(0) >= 2


def scene_clusters(truth: SceneTruth, class_id: int) -> Clusters:
    """First labels of N proposals: one cluster per instance, merged ones and remnants background.

    Args:
        truth: of M instances.
        class_id: their class, 0..C-1.
    """
    overlap, best = truth.iou.max(0), truth.iou.argmax(0)
    merged = ((truth.covered >= COVERED).sum(0)) >= 2
    front = (overlap >= POSITIVE) & ~merged
    background = ~front & (overlap >= NEAR)
    class_ids = np.where(front, class_id + 1, np.where(background, 0, -1))
    cluster = np.where(front, best + 1, np.where(background, len(truth.iou) + 1, 0))
    return Clusters(class_ids.astype(np.int64), cluster.astype(np.int64))


def scene_labels(iou: Tensor, covered: Tensor, class_number: int | Tensor, branch: int) -> PseudoLabels:
    """Labels of one refinement branch, all of weight 1; a proposal that merges two instances is never complete.

    Args:
        iou, covered: floating [M, N], see :class:`cim.core.types.SceneTruth`.
        class_number: 1..C.
        branch: from 0; its thresholds are CIM's (METHOD section 5).
    """
    positive_iou, complete_iou = (first + 0.1 * branch for first in (0.25, 0.5))
    overlap = iou.amax(0)
    merged = merges(covered)
    class_ids = torch.where((overlap >= positive_iou) | (merged & (overlap > 2 * NEAR)), class_number, 0)
    unknown = overlap < NEAR
    mined = torch.zeros_like(unknown)
    mined[iou.argmax(1)] = True
    return PseudoLabels(
        class_ids=class_ids.masked_fill(unknown, -1),
        integrity=((overlap > complete_iou) & ~merged).to(iou.dtype),
        weight=(~unknown).to(iou.dtype),
        mined=mined,
        seeds=torch.as_tensor(len(iou), device=iou.device),
    )
