"""mmdetection trains from the folder as it is, on the masks as they are."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
from compared import same_masks, tell

pytest.importorskip("mmdet", reason="mmdetection is not installed")
pytest.importorskip("mmcv")
import mmcv_ops

mmcv_ops.install()

from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

SMALL = (176, 160)


@pytest.fixture(scope="module")
def config(exported):
    register_all_modules()
    return Config.fromfile(str(exported.folder / "mmdet" / "mask_rcnn.py"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_exact(config, exported, split):
    settings = config.train_dataloader.dataset if split == "train" else config.val_dataloader.dataset
    load = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
    dataset = DATASETS.build({**settings, "pipeline": load})
    truth = exported.truth(split)
    assert len(dataset) == len(truth)
    for number in range(len(dataset)):
        found = dataset[number]
        marks = truth[found["img_path"].rsplit("/", 1)[-1]]
        assert same_masks(found["gt_masks"].to_ndarray(), marks)
        assert sorted(found["gt_bboxes_labels"].tolist()) == sorted(mark.class_id for mark in marks)
        assert dataset.metainfo["classes"] == exported.labels.classes


def test_training_and_validation(config, exported, tmp_path):
    """Three epochs of Mask R-CNN R50-FPN from scratch on small photos: losses fall, validation has its metrics."""
    small = copy.deepcopy(config)
    small.model.backbone.init_cfg = None
    for loader in (small.train_dataloader, small.val_dataloader, small.test_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
        for step in loader.dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = SMALL
    small.train_cfg.max_epochs, small.train_cfg.val_interval = 3, 3
    small.param_scheduler = []
    small.default_hooks.logger.interval = 1
    small.work_dir = str(tmp_path)
    runner = Runner.from_cfg(small)
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    first, last = np.mean(losses[:6]), np.mean(losses[-6:])
    assert np.isfinite(losses).all() and last < first
    score = runner.message_hub.get_scalar("val/coco/segm_mAP").current()
    assert 0 <= score <= 1
    tell(
        "mmdet",
        f"{len(losses)} updates of Mask R-CNN, loss {first:.2f} -> {last:.2f}, mask AP of validation {score:.3f}",
    )


def test_the_folder_may_be_moved(exported, tmp_path):
    shutil.copytree(exported.folder / "mmdet", tmp_path / "elsewhere")
    moved = Config.fromfile(str(tmp_path / "elsewhere" / "mask_rcnn.py"))
    assert moved.data_root == f"{tmp_path}/elsewhere/"
