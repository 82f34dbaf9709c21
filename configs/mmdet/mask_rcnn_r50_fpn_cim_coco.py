"""Mask R-CNN R50-FPN on CIM's pseudo labels of COCO train2017, for mmdetection 3.x (docs/EXPORT.md).

Run from the root of this repository: paths are relative to it. Other paths: --cfg-options
train_dataloader.dataset.ann_file=... and so on.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

labels = "runs/resnet50_coco2017/pseudo_labels/msrcnn_pseudo_label_0.3.json"
truth = "data/coco2017/annotations/instances_val2017.json"

train_dataloader = {
    "dataset": {"data_root": "", "ann_file": labels, "data_prefix": {"img": "data/coco2017/train2017/"}}
}
val_dataloader = {"dataset": {"data_root": "", "ann_file": truth, "data_prefix": {"img": "data/coco2017/val2017/"}}}
test_dataloader = val_dataloader
val_evaluator = {"ann_file": truth, "metric": "segm"}
test_evaluator = val_evaluator

auto_scale_lr = {"enable": False, "base_batch_size": 16}  # 0.02 is for 16 images; --auto-scale-lr adapts it
