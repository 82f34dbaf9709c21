"""Mask R-CNN R50-FPN on CIM's pseudo labels of VOC trainaug, for mmdetection 3.x (docs/EXPORT.md).

Run from the root of this repository: paths are relative to it. Other paths: --cfg-options
train_dataloader.dataset.ann_file=... and so on.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

labels = "runs/resnet50_voc/pseudo_labels/msrcnn_pseudo_label_0.3.json"
truth = "data/VOC2012/annotations/voc_2012_val.json"
photos = {"img": "data/VOC2012/JPEGImages/"}
metainfo = {
    "classes": (
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    )
}

model = {"roi_head": {"bbox_head": {"num_classes": 20}, "mask_head": {"num_classes": 20}}}

train_dataloader = {"dataset": {"data_root": "", "ann_file": labels, "data_prefix": photos, "metainfo": metainfo}}
val_dataloader = {"dataset": {"data_root": "", "ann_file": truth, "data_prefix": photos, "metainfo": metainfo}}
test_dataloader = val_dataloader
# val.segm.json goes through tools/evaluation.py for the VOC thresholds 0.25, 0.50, 0.70, 0.75.
val_evaluator = {"ann_file": truth, "metric": "segm", "outfile_prefix": "runs/resnet50_voc/mmdet/val"}
test_evaluator = val_evaluator

auto_scale_lr = {"enable": False, "base_batch_size": 16}  # 0.02 is for 16 images; --auto-scale-lr adapts it
