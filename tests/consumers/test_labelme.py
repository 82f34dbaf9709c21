"""LabelMe's own reader opens the files, and its shapes paint the masks as they are."""

from __future__ import annotations

import pytest
from compared import same_masks, tell

pytest.importorskip("labelme", reason="LabelMe is not installed")
label_file = pytest.importorskip("labelme._label_file")
from labelme.utils import shape as labelme_shape

from cim.labels.formats.labelme import read_labelme


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_exact(exported, split):
    files = sorted((exported.folder / "labelme" / split).glob("*.json"))
    truth = exported.truth(split)
    assert len(files) == len(truth)
    for path in files:
        content = label_file.read_label_file(str(path))
        marks = truth[content.image_path]
        size = marks[0].mask().shape
        names = [shape["label"] for shape in content.shapes]
        assert names == [exported.labels.classes[mark.class_id] for mark in marks]
        numbers = {name: number for number, name in enumerate(("_background_", *exported.labels.classes))}
        alone = [labelme_shape.shapes_to_label((*size, 3), [shape], numbers)[0] > 0 for shape in content.shapes]
        assert same_masks(alone, marks)
    tell("labelme", f"{len(files)} files of {split}, all masks bit for bit")


def test_what_labelme_writes_comes_back(exported, tmp_path):
    """Opened and saved by LabelMe, with the photo inside the file."""
    source = exported.folder / "labelme" / "train"
    for path in sorted(source.glob("*.json")):
        content = label_file.read_label_file(str(path))
        label_file.write_label_file(
            str(tmp_path / path.name),
            shapes=[saved(shape) for shape in content.shapes],
            image_path=content.image_path,
            image_height=None,
            image_width=None,
            image_data=content.image_data,
        )
        (tmp_path / content.image_path).write_bytes((source / content.image_path).read_bytes())
    found = {photo.name: marks for photo, marks in read_labelme(tmp_path)}
    truth = exported.truth("train")
    assert found.keys() == truth.keys()
    assert all([m.rle for m in found[name]] == [m.rle for m in marks] for name, marks in truth.items())


def saved(shape):
    """As LabelMe's window writes a shape."""
    from labelme.utils import img_arr_to_b64

    known = {key: shape[key] for key in ("label", "points", "group_id", "description", "shape_type", "flags")}
    return {**known, "mask": None if shape["mask"] is None else img_arr_to_b64(shape["mask"].astype("uint8"))}
