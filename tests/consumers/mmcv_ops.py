"""mmcv's compiled operators from torchvision, as far as training and testing Mask R-CNN needs them.

mmcv-lite has none; :func:`install` makes ``mmcv.ops`` importable before mmdetection asks for it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import torch
import torchvision


class RoIAlign(torchvision.ops.RoIAlign):
    def __init__(self, output_size: Any, spatial_scale: float, sampling_ratio: int = 0, aligned: bool = True) -> None:
        size = (output_size, output_size) if isinstance(output_size, int) else output_size  # mmdetection unpacks it
        super().__init__(size, spatial_scale, sampling_ratio, aligned)


def roi_align(features, rois, size, scale=1.0, sampling_ratio=0, pool_mode="avg", aligned=True):
    assert pool_mode == "avg"
    return torchvision.ops.roi_align(features, rois, size, scale, sampling_ratio, aligned)


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    """Boxes with their scores [n, 5], best first, and their indices."""
    groups = torch.zeros_like(idxs) if class_agnostic else idxs
    keep = torchvision.ops.batched_nms(boxes, scores, groups, nms_cfg["iou_threshold"])
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


OURS = {"RoIAlign": RoIAlign, "roi_align": roi_align, "batched_nms": batched_nms}


class _Ops(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """``mmcv.ops`` and all below it: the three above, and for any other name a class that does nothing."""

    def find_spec(self, name, path=None, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module: ModuleType) -> None:
        def missing(name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__dict__.update(OURS)
        module.__dict__["__getattr__"] = missing


def install() -> None:
    if not any(isinstance(finder, _Ops) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Ops())
