"""ultralytics trains from data.yaml as it is, one epoch of segmentation, and sees the masks that were reported."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from compared import ious, tell

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
pytest.importorskip("ultralytics", reason="ultralytics is not installed")
from ultralytics import YOLO
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygon2mask


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks(exported, split):
    data = check_det_dataset(str(exported.folder / "yolo" / "data.yaml"), autodownload=False)
    assert list(data["names"].values()) == list(exported.labels.classes)
    dataset = YOLODataset(data[split], data=data, task="segment", augment=False)
    truth = exported.truth(split)
    assert len(dataset.labels) == len(truth)
    values = []
    for label in dataset.labels:
        marks = truth[Path(label["im_file"]).name]
        height, width = label["shape"]
        assert label["cls"].ravel().tolist() == [mark.class_id for mark in marks]
        polygons = [segment * (width, height) for segment in label["segments"]]
        values += ious([polygon2mask((height, width), [p.ravel()]) for p in polygons], marks)
    assert min(values) > 0.9
    tell("ultralytics", f"{len(values)} masks of {split}: IoU mean {np.mean(values):.4f}, least {min(values):.4f}")


def test_one_epoch(exported, tmp_path):
    """From a model yaml, nothing downloaded; then the trained model predicts."""
    model = YOLO("yolo11n-seg.yaml")
    results = model.train(
        data=str(exported.folder / "yolo" / "data.yaml"),
        epochs=1,
        imgsz=160,
        batch=4,
        device="cpu",
        workers=0,
        plots=False,
        pretrained=False,
        project=str(tmp_path),
        name="run",
        seed=0,
        verbose=False,
    )
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    row = dict(zip((key.strip() for key in rows[0].split(",")), map(float, rows[1].split(",")), strict=True))
    told = {name.removeprefix("train/"): value for name, value in row.items() if name.startswith("train/")}
    assert told["seg_loss"] > 0 and np.isfinite(list(told.values())).all()
    assert any("(M)" in name for name in results.results_dict)
    tell("ultralytics", f"one epoch of yolo11n-seg: {', '.join(f'{k} {v:.2f}' for k, v in told.items())}")
    photo = next((exported.folder / "yolo" / "images" / "val").iterdir())
    assert len(model.predict(cv2.imread(str(photo)), imgsz=160, device="cpu", verbose=False)) == 1
