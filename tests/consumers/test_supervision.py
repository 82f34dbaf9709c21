"""supervision opens every format that it knows: COCO bit for bit, YOLO as its polygons are, VOC and LabelMe boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compared import ious, same_masks, tell

sv = pytest.importorskip("supervision", reason="supervision is not installed")


def by_name(dataset) -> dict:
    return {Path(path).name: annotations for path, _, annotations in dataset}


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco(exported, split):
    root = exported.folder / "coco"
    dataset = sv.DetectionDataset.from_coco(
        str(root / "images" / split), str(root / "annotations" / f"{split}.json"), force_masks=True
    )
    truth = exported.truth(split)
    assert dataset.classes == list(exported.labels.classes)
    found = by_name(dataset)
    assert found.keys() == truth.keys()
    for name, marks in truth.items():
        assert same_masks(found[name].mask, marks)
        assert sorted(found[name].class_id) == sorted(mark.class_id for mark in marks)


def test_yolo(exported):
    root = exported.folder / "yolo"
    dataset = sv.DetectionDataset.from_yolo(
        str(root / "images" / "train"), str(root / "labels" / "train"), str(root / "data.yaml"), force_masks=True
    )
    assert dataset.classes == list(exported.labels.classes)
    found, truth = by_name(dataset), exported.truth("train")
    assert found.keys() == truth.keys()
    values = [iou for name, marks in truth.items() for iou in ious(found[name].mask, marks)]
    assert min(values) > 0.9
    tell("supervision", f"YOLO, {len(values)} masks: IoU mean {np.mean(values):.4f}, least {min(values):.4f}")


def test_voc(exported):
    root = exported.folder / "voc"
    dataset = sv.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    found = by_name(dataset)
    truth = exported.truth("train") | exported.truth("val")
    assert found.keys() == truth.keys()
    for name, marks in truth.items():
        assert [dataset.classes[k] for k in found[name].class_id] == [
            exported.labels.classes[mark.class_id] for mark in marks
        ]
        assert np.array_equal(found[name].xyxy, np.array([mark.corners() for mark in marks], np.float32))
