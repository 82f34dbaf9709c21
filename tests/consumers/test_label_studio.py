"""Label Studio's own converter reads the brush strokes and the tasks, and its strokes are read here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from compared import same_masks, tell

pytest.importorskip("label_studio_sdk", reason="label-studio-sdk is not installed")
brush = pytest.importorskip("label_studio_sdk.converter.brush")
from label_studio_sdk.converter import Converter

from cim.labels.formats.label_studio import CONFIG, decode_brush, read_label_studio


def tasks(exported, split: str) -> list[dict]:
    return json.loads((exported.folder / "label-studio" / f"{split}.json").read_text())


@pytest.mark.parametrize("split", ["train", "val"])
def test_strokes_are_exact(exported, split):
    truth = exported.truth(split)
    count = 0
    for task in tasks(exported, split):
        marks = truth[task["data"]["image"].rsplit("/", 1)[-1]]
        results = task["predictions"][0]["result"]
        layers = []
        for result in results:
            size = result["original_height"], result["original_width"]
            layers.append(brush.decode_rle(result["value"]["rle"]).reshape(*size, 4)[:, :, 3] > 0)
        assert same_masks(layers, marks)
        assert [result["value"]["brushlabels"] for result in results] == [
            [exported.labels.classes[mark.class_id]] for mark in marks
        ]
        count += len(layers)
    tell("label-studio-sdk", f"{count} brush strokes of {split}, all bit for bit")


def test_its_strokes_are_read_here(exported):
    for marks in exported.truth("val").values():
        for mark in marks:
            mask = mark.mask()
            theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
            assert (decode_brush(theirs, mask.shape) == mask).all()


def test_the_converter_takes_the_config_and_tasks_that_a_person_accepted(exported, tmp_path):
    """Its json of COCO and its masks as arrays, from an export with annotations instead of predictions."""
    accepted = []
    for number, task in enumerate(tasks(exported, "val"), 1):
        result = task["predictions"][0]["result"]
        annotation = {"id": number, "result": result, "was_cancelled": False, "completed_by": {"email": "a@b.c"}}
        accepted.append({"id": number, "data": task["data"], "annotations": [annotation], "predictions": []})
    path = exported.folder / "label-studio" / "accepted.json"
    path.write_text(json.dumps(accepted))
    config = (exported.folder / "label-studio" / CONFIG).read_text()
    converter = Converter(config, str(tmp_path), download_resources=False)
    (tmp_path / "masks").mkdir()  # which the converter leaves to others
    converter.convert(str(path), str(tmp_path / "masks"), "BRUSH_TO_NUMPY", is_dir=False)
    files = sorted((tmp_path / "masks").rglob("*.npy"))
    truth = exported.truth("val")
    assert len(files) == sum(map(len, truth.values()))
    for number, task in enumerate(accepted, 1):
        marks = truth[task["data"]["image"].rsplit("/", 1)[-1]]
        found = [np.load(file) > 0 for file in files if file.name.startswith(f"task-{number}-")]
        assert same_masks(found, marks)
    back = {photo.name.rsplit("/", 1)[-1]: marks for photo, marks in read_label_studio(path)}
    path.unlink()
    assert all([m.rle for m in back[name]] == [m.rle for m in marks] for name, marks in truth.items())
    tell("label-studio-sdk", f"its converter made {len(files)} masks out of accepted tasks, all bit for bit")
