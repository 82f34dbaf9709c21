"""torchvision's wrapper of COCO data sets gives the masks as they are; it is installed wherever this program is."""

from __future__ import annotations

import pytest
import torch
from compared import same_masks, tell
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms import v2


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_exact(exported, split):
    root = exported.folder / "coco"
    dataset = CocoDetection(root / "images" / split, root / "annotations" / f"{split}.json")
    names = {number: dataset.coco.imgs[number]["file_name"] for number in dataset.ids}
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=("image_id", "boxes", "labels", "masks"))
    truth = exported.truth(split)
    assert len(wrapped) == len(truth)
    for _, target in wrapped:
        marks = truth[names[target["image_id"]]]
        assert same_masks(target["masks"].numpy(), marks)
        assert sorted(target["labels"].tolist()) == sorted(mark.class_id + 1 for mark in marks)
        assert torch.equal(target["boxes"], torch.tensor([mark.corners() for mark in marks]))
    tell("torchvision", f"{len(wrapped)} photos of {split}, all masks bit for bit")


def test_a_training_step(exported):
    root = exported.folder / "coco"
    dataset = CocoDetection(
        root / "images" / "train",
        root / "annotations" / "train.json",
        transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    )
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))
    images, targets = zip(*(wrapped[k] for k in range(2)), strict=True)
    classes = len(exported.labels.classes) + 1
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, min_size=96, max_size=128)
    losses = model(list(images), list(targets))
    assert "loss_mask" in losses and all(torch.isfinite(loss) for loss in losses.values())
