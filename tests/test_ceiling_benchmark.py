"""benchmarks/ceiling.py: what its loss asks of the light head."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cim.core.types import RoiScores

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import ceiling


def scores(cls: torch.Tensor, iou: torch.Tensor) -> RoiScores:
    return RoiScores(cls=cls, det=cls, refine_cls=cls[None], refine_iou=iou[None])


def test_the_loss_is_least_where_scores_say_what_the_boxes_say():
    target = torch.tensor([[0.9, 0.0], [0.0, 0.4], [0.0, 0.0]])  # an instance, a part, nothing
    right = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    iou = torch.cat([torch.zeros(3, 1), target], 1)
    assert ceiling.loss_of(scores(right, iou), target) == 0
    assert ceiling.loss_of(scores(right.roll(1, 0), iou), target) > 10
    too_sure = iou.clone()
    too_sure[1, 2] = 1.0
    assert ceiling.loss_of(scores(right, too_sure), target) > 1
    far = iou.clone()
    far[2, 1:] = 1.0  # integrity is learnt near objects alone
    assert ceiling.loss_of(scores(right, far), target) == 0
