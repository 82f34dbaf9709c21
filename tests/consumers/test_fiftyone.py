"""FiftyOne opens the COCO file, with the masks as they are; it needs a MongoDB, its own or another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compared import same_masks, tell

fo = pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
try:
    fo.list_datasets()
except Exception as error:  # whatever its database says
    pytest.skip(f"FiftyOne has no database here: {type(error).__name__}", allow_module_level=True)


@pytest.fixture
def opened():
    """Opens data sets, and removes them from FiftyOne's database afterwards."""
    made = []

    def open_as(**settings):
        made.append(fo.Dataset.from_dir(**settings))
        return made[-1]

    yield open_as
    for dataset in made:
        dataset.delete()


def whole(detection, size) -> np.ndarray:
    """The mask [H, W] of a detection, whose own is that of its box."""
    x, y = (round(side * length) for side, length in zip(detection.bounding_box[:2], size[::-1]))
    mask = np.zeros(size, bool)
    mask[y : y + detection.mask.shape[0], x : x + detection.mask.shape[1]] = detection.mask
    return mask


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco(exported, opened, split):
    root = exported.folder / "coco"
    dataset = opened(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(root / "images" / split),
        labels_path=str(root / "annotations" / f"{split}.json"),
        label_types="segmentations",
        label_field="masks",
    )
    truth = exported.truth(split)
    assert len(dataset) == len(truth)
    for sample in dataset:
        marks = truth[Path(sample.filepath).name]
        detections = sample.masks.detections
        assert same_masks([whole(d, marks[0].mask().shape) for d in detections], marks)
        assert [d.confidence for d in detections] == [1.0] * len(marks)
        assert sorted(d.label for d in detections) == sorted(exported.labels.classes[mark.class_id] for mark in marks)
    tell("fiftyone", f"{len(dataset)} photos of {split}, all masks bit for bit")
