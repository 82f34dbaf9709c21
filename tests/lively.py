"""A random Mask R-CNN that finds something, and is sure of it: no two of its scores are nearly equal."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from cim.core.types import Instances
from cim.models.mask_rcnn import build_mask_rcnn


def lively_mask_rcnn(min_side: int, max_side: int, classes: int = 2) -> GeneralizedRCNN:
    """The light network, in eval mode; its detections differ in class, place and score from photo to photo."""
    torch.manual_seed(0)
    model = build_mask_rcnn("mobilenet_fpn", classes, "none", min_side, max_side).eval()
    with torch.no_grad():
        for layer in model.backbone.trunk.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
        spreads = {  # of the weights: scores that part, boxes that stay near their anchors, masks with holes
            model.rpn.head.cls_logits: 0.1,
            model.rpn.head.bbox_pred: 0.01,
            model.roi_heads.box_predictor.cls_score: 0.1,
            model.roi_heads.box_predictor.bbox_pred: 0.1,
            model.roi_heads.mask_predictor.mask_fcn_logits: 1.0,
        }
        for layer, spread in spreads.items():
            layer.weight.normal_(0, spread)
    return model


def assert_same_instances(found: Instances, wanted: Instances, least: int = 10) -> None:
    """The same detections, at least so many, but for rounding: it may also swap two of nearly one score, and moves
    pixels at the ragged edges of random masks, which shows where these are small."""
    assert len(found) == len(wanted) >= least and found.size == wanted.size
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-3)
    if not least and not len(found):
        return
    ious = np.asarray(coco_mask.iou(found.rles, wanted.rles, [0] * len(wanted)))
    alike = found.class_ids[:, None] == wanted.class_ids
    best = np.where(alike & (np.abs(found.score[:, None] - wanted.score) < 1e-3), ious, 0).max(1)
    assert best.min() > 0.8 and best.mean() > 0.98, np.sort(best)[:5]
