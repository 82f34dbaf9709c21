"""For mmdetection 3.x: COCO json, and a config that trains Mask R-CNN on it as it is."""

from __future__ import annotations

from pathlib import Path
from string import Template

from cim.labels.formats.coco import write_coco
from cim.labels.formats.folders import Placing
from cim.labels.formats.marks import VAL, LabelSet, Written

CONFIG = "mask_rcnn.py"

_CONFIG = Template('''\
"""Mask R-CNN R50-FPN on the labels beside this file, for mmdetection 3.x: mim train mmdet $config

Paths are relative to this file, so the folder may be moved.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

data_root = "{{ fileDirname }}/"
metainfo = {"classes": $classes}

model = {"roi_head": {"bbox_head": {"num_classes": $count}, "mask_head": {"num_classes": $count}}}

train_dataloader = {
    "dataset": {
        "data_root": data_root,
        "ann_file": "annotations/train.json",
        "data_prefix": {"img": "images/train/"},
        "metainfo": metainfo,
        "filter_cfg": {"filter_empty_gt": True, "min_size": 1},
    }
}
$validation
# the rate 0.02 is for 16 photos per update; it is adapted to the number that there are
auto_scale_lr = {"enable": True, "base_batch_size": 16}
''')

_VALIDATION = """\
val_dataloader = {
    "dataset": {
        "data_root": data_root,
        "ann_file": "annotations/val.json",
        "data_prefix": {"img": "images/val/"},
        "metainfo": metainfo,
    }
}
test_dataloader = val_dataloader
val_evaluator = {"ann_file": data_root + "annotations/val.json", "metric": ["bbox", "segm"]}
test_evaluator = val_evaluator
"""

_NO_VALIDATION = """\
# no photos to validate on were exported
val_dataloader = val_evaluator = val_cfg = None
test_dataloader = test_evaluator = test_cfg = None
"""


def write_mmdet(folder: Path, labels: LabelSet, photos: Placing = "link") -> Written:
    """What :func:`cim.labels.formats.coco.write_coco` writes, and ``mask_rcnn.py``."""
    done = write_coco(folder, labels, photos)
    validated = (folder / "annotations" / f"{VAL}.json").is_file()
    text = _CONFIG.substitute(
        config=CONFIG,
        classes=repr(tuple(labels.classes)),
        count=len(labels.classes),
        validation=_VALIDATION if validated else _NO_VALIDATION,
    )
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return done
