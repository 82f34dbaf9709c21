"""Labels in the formats of other programs: what is written is read back, and what a person did there is understood."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cim.cli.options.share import FORMATS as OFFERED
from cim.core.errors import CimError
from cim.datasets.coco_writer import encode
from cim.labels.formats.coco import read_coco
from cim.labels.formats.folders import Names, new_folder, place
from cim.labels.formats.label_studio import decode_brush, encode_brush
from cim.labels.formats.marks import VAL, LabelSet, Mark, Photo, grouped, mask_iou, together
from cim.labels.formats.polygons import joined, outlines, paint
from cim.labels.formats.table import FORMATS, in_split, with_validation, write_formats, write_labels_of
from cim.mask_rcnn.source import open_labels

LOSSLESS = ("coco", "mmdet", "labelme", "cvat", "label-studio")
CLASSES = ("zebra", "a cat & <dog>", "Küche")  # not in order, and nothing that XML or yaml may trip over


@st.composite
def masks(draw, height: int, width: int) -> np.ndarray:
    """Noise, blobs with holes and parts, or a single pixel; at least one pixel."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(("noise", "blobs", "pixel", "all")))
    mask = np.zeros((height, width), bool)
    if kind == "noise":
        mask = rng.random((height, width)) < draw(st.floats(0.02, 0.98))
    elif kind == "blobs":
        mask = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 2.0).reshape(height, width) > 0.5
    elif kind == "all":
        mask[:] = True
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


@st.composite
def label_sets(draw) -> list[tuple[tuple[int, int], list[tuple[int, np.ndarray, float]]]]:
    """Up to three photos of (H, W) with up to three instances of (class, mask, score)."""
    photos = []
    for _ in range(draw(st.integers(1, 3))):
        size = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
        marks = [
            (draw(st.integers(0, len(CLASSES) - 1)), draw(masks(*size)), draw(st.floats(0, 1)))
            for _ in range(draw(st.integers(1, 3)))
        ]
        photos.append((size, marks))
    return photos


def make(folder: Path, content, names=("a/x.png", "b/x.png", "y.png"), splits=("train", "val", "train")) -> LabelSet:
    """Photos below ``folder`` and their labels."""
    labelled = []
    for name, split, (size, marks) in zip(names, splits, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
        marks = [Mark(class_id, encode(mask), None, score) for class_id, mask, score in marks]
        labelled.append((Photo(name, path, size, split), marks))
    return LabelSet(CLASSES, lambda: iter(labelled))


def named(labels: LabelSet, flat: bool = False) -> dict[tuple[str, str], list[Mark]]:
    """Marks by split and the last part of the photo's name, with class names for numbers."""
    return {(photo.split, photo.name.replace("__", "/").rsplit("/", 1)[-1]): marks for photo, marks in labels}


def square(size=(20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[4:12, 5:20] = True
    return mask


@pytest.fixture
def two(tmp_path) -> LabelSet:
    """Two photos, the first with a square with a hole, the second with nothing."""
    mask = square()
    mask[6:9, 8:12] = False
    return make(
        tmp_path / "photos", [((20, 30), [(1, mask, 0.75)]), ((20, 30), [])], ("a.png", "b.png"), ("train",) * 2
    )


# ---------------------------------------------------------------------- round trips


def test_the_command_offers_every_format():
    assert tuple(FORMATS) == OFFERED


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=25, deadline=None)
@given(content=label_sets())
def test_masks_come_back_bit_for_bit(name, content):
    with tempfile.TemporaryDirectory() as folder:
        labels = make(Path(folder) / "photos", content)
        ((_, done),) = write_formats(labels, [name], Path(folder) / "out")
        assert not done.ious and done.photos == len(content)
        back = FORMATS[name].read(Path(folder) / "out" / name, None)
        assert back.classes == CLASSES
        before, after = named(labels), named(back)
        assert before.keys() == after.keys()
        for key, marks in before.items():
            assert [(m.class_id, m.rle) for m in marks] == [(m.class_id, m.rle) for m in after[key]]
            if name in ("coco", "mmdet", "label-studio"):
                assert [m.score for m in marks] == [m.score for m in after[key]]


@pytest.mark.parametrize("name", ["yolo", "voc"])
@settings(max_examples=25, deadline=None)
@given(content=label_sets())
def test_what_is_lost_is_told(name, content):
    """The IoU that is reported is that of the masks which come back."""
    with tempfile.TemporaryDirectory() as folder:
        labels = make(Path(folder) / "photos", content)
        ((_, done),) = write_formats(labels, [name], Path(folder) / "out")
        back = FORMATS[name].read(Path(folder) / "out" / name, None)
        assert back.classes == CLASSES
        before, after = named(labels), named(back)
        assert before.keys() == after.keys()
        ious = []
        for key, marks in before.items():
            assert [m.class_id for m in marks] == [m.class_id for m in after[key]]
            for mark, got in zip(marks, after[key], strict=True):
                ious.append(0.0 if got.rle is None else mask_iou(mark.mask(), got.mask()))
                if got.rle is None:  # VOC: another one lies over all of it
                    assert got.box == mark.corners()
        assert ious == pytest.approx(done.ious)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_outlines_give_the_mask_back(data):
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    mask = data.draw(masks(*size))
    rings = outlines(mask)
    assert (paint(rings, size) == mask).all()
    polygon = joined(rings)
    assert len(polygon) >= 3
    assert {tuple(p) for p in polygon} == {tuple(p) for ring in rings for p in ring}
    if len(rings) == 1:
        assert (paint([polygon], size) == mask).all()


def test_holes_and_parts_hang_on_one_polygon():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:30] = True
    mask[10:15, 10:15] = mask[20:25, 18:24] = False
    assert mask_iou(mask, paint([joined(outlines(mask))], mask.shape)) == 1
    mask[10:20, 40:50] = True  # ten pixels away: the bridge costs nine
    painted = paint([joined(outlines(mask))], mask.shape)
    assert (painted & mask).sum() == mask.sum() and (painted & ~mask).sum() == 10


def test_outlines_of_nothing():
    assert outlines(np.zeros((3, 4), bool)) == [] and not paint([], (3, 4)).any()


# ---------------------------------------------------------------------- Label Studio's run lengths


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_brush_strokes_come_back(data):
    mask = data.draw(masks(data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))))
    assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def test_long_runs_and_runs_of_every_kind():
    for width in (1, 2, 3, 4, 5, 64, 65, 16383, 16384, 16385, 40000):
        mask = np.zeros((2, 50000), bool)
        mask[0, 7 : 7 + width] = True
        assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def test_values_that_are_told_one_by_one():
    """What Label Studio writes at soft edges: values without a run; half covered counts as mask."""
    bits = f"{8:032b}{7:05b}{0:04b}{0:04b}{0:04b}{7:04b}" + "0" + "11" + f"{7:08b}"
    bits += "".join(f"{value:08b}" for value in (1, 2, 3, 127, 5, 6, 7, 128))
    data = [int(bits[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(bits), 8)]
    assert decode_brush(data, (1, 2)).tolist() == [[False, True]]
    for cut in range(len(data)):
        with pytest.raises(ValueError):
            decode_brush(data[:cut], (1, 2))
    with pytest.raises(ValueError, match="expected 12 of 8"):
        decode_brush(data, (1, 3))


# ---------------------------------------------------------------------- writing


def test_photos_without_instances(two, tmp_path):
    kept = {name: done.photos for name, done in write_formats(two, list(FORMATS), tmp_path / "out")}
    assert kept == {name: 2 if FORMATS[name].correcting else 1 for name in FORMATS}
    assert {done.photos for _, done in write_formats(two, list(FORMATS), tmp_path / "all", empty=True)} == {2}
    assert (tmp_path / "all" / "yolo" / "labels" / "train" / "b.txt").read_text() == ""
    nothing = LabelSet(CLASSES, lambda: iter([]))
    with pytest.raises(CimError, match="no photo with instances"):
        list(write_formats(nothing, ["coco"], tmp_path / "none"))
    assert not (tmp_path / "none" / "coco").exists()


def test_masks_without_pixels_are_left_out(tmp_path):
    content = [((9, 8), [(0, np.zeros((9, 8), bool), 1.0), (1, square()[:9, :8], 1.0)])]
    labels = make(tmp_path / "photos", content)
    assert [done.marks for _, done in write_formats(labels, list(FORMATS), tmp_path / "out")] == [1] * len(FORMATS)


def test_photos_are_linked_or_copied(two, tmp_path):
    list(write_formats(two, ["coco"], tmp_path / "linked"))
    list(write_formats(two, ["coco"], tmp_path / "copied", photos="copy"))
    linked, copied = (tmp_path / kind / "coco" / "images" / "train" / "a.png" for kind in ("linked", "copied"))
    source = tmp_path / "photos" / "a.png"
    assert linked.samefile(source) and not copied.samefile(source)
    assert linked.read_bytes() == copied.read_bytes()


def test_links_across_disks(two, tmp_path, monkeypatch):
    """Where a file cannot have two names, a symbolic link leads to it."""

    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    list(write_formats(two, ["coco"], tmp_path))
    linked = tmp_path / "coco" / "images" / "train" / "a.png"
    assert linked.is_symlink() and linked.samefile(tmp_path / "photos" / "a.png")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(CimError, match="--photos copy"):
        list(write_formats(two, ["yolo"], tmp_path))


def test_a_folder_is_whole_or_not_there(two, tmp_path):
    (tmp_path / "photos" / "b.png").unlink()
    with pytest.raises(CimError, match="missing photo"):
        list(write_formats(two, ["labelme"], tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_there_is_not_mixed_with(two, tmp_path):
    list(write_formats(two, ["yolo"], tmp_path))
    (tmp_path / "yolo" / "old.txt").write_text("")
    with pytest.raises(CimError, match="--overwrite"):
        list(write_formats(two, ["yolo"], tmp_path))
    list(write_formats(two, ["yolo"], tmp_path, overwrite=True))
    assert not (tmp_path / "yolo" / "old.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CimError, match="not a folder"), new_folder(tmp_path / "file"):
        pass


def test_names_never_meet():
    def name(names: Names, text: str, split: str = "train") -> str:
        return str(names.of(Photo(text, Path(text), (1, 1), split)))

    nested, flat = Names(), Names(flat=True)
    assert [name(nested, text) for text in ("a.jpg", "a.png", "A.PNG", "b/a.jpg")] == [
        "a.jpg",
        "a_png.png",
        "A_PNG.PNG".replace("_PNG", "_3"),
        "b/a.jpg",
    ]
    assert name(nested, "a.jpg", "val") == "a.jpg"
    assert [name(flat, text) for text in ("b/a.jpg", "b__a.jpg")] == ["b__a.jpg", "b__a_jpg.jpg"]


def test_photos_of_one_name_keep_their_labels(tmp_path):
    content = [((9, 8), [(k, square((20, 30))[:9, :8], 1.0)]) for k in range(3)]
    for name in FORMATS:
        labels = make(tmp_path / name, content, ("a.png", "a.bmp", "sub/a.png"), ("train",) * 3)
        list(write_formats(labels, [name], tmp_path / "out"))
        back = FORMATS[name].read(tmp_path / "out" / name, None)
        assert sorted(mark.class_id for _, marks in back for mark in marks) == [0, 1, 2], name


def test_a_share_to_validate_on(tmp_path):
    labels = make(tmp_path, [((3, 3), [])] * 10, [f"{k}.png" for k in range(10)], ["train"] * 10)
    splits = [[photo.split for photo, _ in with_validation(labels, 0.3, seed)] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2] and splits[0].count(VAL) == splits[2].count(VAL) == 3
    for share in (0, 0.01, 1):
        with pytest.raises(CimError, match="no such share"):
            with_validation(labels, share)


def test_classes_of_two_sets_are_matched_by_name(tmp_path):
    one = make(tmp_path / "a", [((9, 8), [(0, square()[:9, :8], 1.0)])])
    other = LabelSet(
        ("dog", "zebra"), in_split(make(tmp_path / "b", [((9, 8), [(1, square()[:9, :8], 1.0)])]), VAL).walk
    )
    both = together([one, other])
    assert both.classes == (*CLASSES, "dog")
    assert [(photo.split, [mark.class_id for mark in marks]) for photo, marks in both] == [("train", [0]), ("val", [0])]


def test_boxes_and_tags_are_written_where_a_format_has_them(tmp_path):
    marks = [Mark(0, None, (2.0, 3.0, 12.0, 9.0)), Mark(1, encode(square()), None), Mark(2)]
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    labels = LabelSet(CLASSES, lambda: iter([(Photo("a.png", tmp_path / "a.png", (20, 30)), marks)]))
    for name in ("coco", "cvat", "label-studio"):
        list(write_formats(labels, [name], tmp_path / "out"))
        ((_, back),) = FORMATS[name].read(tmp_path / "out" / name, None)
        assert [mark.class_id for mark in back] == [0, 1, 2]
        assert back[0].box == pytest.approx(marks[0].box) and back[0].rle is None
        assert back[1].rle == marks[1].rle and back[2].rle is back[2].box is None
    for name in ("labelme", "yolo", "voc"):
        list(write_formats(labels, [name], tmp_path / "out"))
        ((_, back),) = FORMATS[name].read(tmp_path / "out" / name, None)
        assert len(back) == (3 if name == "labelme" else 2)
        assert back[0].box == pytest.approx(marks[0].box, abs=1e-4) and back[1].rle == marks[1].rle


# ---------------------------------------------------------------------- ready to train from


def test_the_config_of_mmdetection(tmp_path):
    content = [((20, 30), [(0, square(), 1.0)])] * 2
    labels = make(tmp_path / "photos", content, ("a.png", "b.png"), ("train", "val"))
    list(write_formats(labels, ["mmdet"], tmp_path))
    values: dict = {}
    exec(
        (tmp_path / "mmdet" / "mask_rcnn.py").read_text().replace("{{ fileDirname }}", str(tmp_path / "mmdet")), values
    )
    assert values["metainfo"]["classes"] == CLASSES
    assert values["model"]["roi_head"]["bbox_head"]["num_classes"] == 3
    for loader, name in (("train_dataloader", "a.png"), ("val_dataloader", "b.png")):
        dataset = values[loader]["dataset"]
        images = json.loads(Path(dataset["data_root"], dataset["ann_file"]).read_text())["images"]
        assert [
            Path(dataset["data_root"], dataset["data_prefix"]["img"], i["file_name"]).is_file() for i in images
        ] == [True]
        assert images[0]["file_name"] == name
    list(write_formats(in_split(labels, "train"), ["mmdet"], tmp_path / "alone"))
    values = {}
    exec((tmp_path / "alone" / "mmdet" / "mask_rcnn.py").read_text(), values)
    assert values["val_dataloader"] is values["test_evaluator"] is values["val_cfg"] is None


def test_the_yaml_of_ultralytics(two, tmp_path):
    list(write_formats(two, ["yolo"], tmp_path))
    content = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert content == {"train": "images/train", "val": "images/train", "names": dict(enumerate(CLASSES))}
    line = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().split()
    points = np.array(line[1:], float).reshape(-1, 2) * (30, 20)
    assert line[0] == "1" and points.min(0) == pytest.approx((5.25, 4.25), abs=1e-3)
    assert points.max(0) == pytest.approx((19.25, 11.25), abs=1e-3)


# ---------------------------------------------------------------------- what people and other programs write


def photo(folder: Path, name: str = "a.png", size=(20, 30)) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(folder / name)
    return folder


def shape(label: str, kind: str, points, group=None, **more) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "group_id": group, **more}


def labelme(folder: Path, *shapes, name="a", **more) -> Path:
    content = {"imagePath": f"..\\elsewhere\\{name}.png", "imageData": None, "shapes": list(shapes), **more}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_labelme_of_people(tmp_path, caplog):
    box = [[2, 3], [10, 3], [10, 8], [2, 8]]
    source = labelme(
        photo(tmp_path),
        shape("cat", "polygon", box, 1),
        shape("cat", "polygon", [[12, 3], [20, 3], [20, 8], [12, 8]], 1),
        shape("dog", "rectangle", [[10, 8], [2, 3]]),
        shape("cat", "circle", [[15, 10], [15, 14]]),
        shape("cat", "point", [[1, 1]]),
        {"label": "old", "points": box},
        flags={"night": True, "blurred": False},
    )
    labels = FORMATS["labelme"].read(source, None)
    assert labels.classes == ("cat", "dog", "night", "old")
    ((_, marks),) = labels
    assert [mark.class_id for mark in marks] == [0, 1, 0, 3, 2]
    assert marks[0].area() == 80 and marks[1].box == (2, 3, 10, 8) and marks[1].rle is None
    assert marks[2].area() == pytest.approx(np.pi * 16, rel=0.05) and marks[3].area() == 40
    assert marks[4].rle is marks[4].box is None
    assert "1 shapes left out: point" in caplog.text


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (shape("cat", "polygon", [[1, 1], [2, 2]]), "fewer than three points"),
        (shape("cat", "polygon", [[1, 1], [2, None], [3, 3]]), "damaged shape"),
        (shape("cat", "rectangle", [[1, 1]]), "damaged shape"),
        (shape("cat", "mask", [[25, 1], [34, 10]], mask=png(np.ones((10, 10), bool))), "leaves the photo"),
        (shape("cat", "mask", [[0, 0], [1, 1]], mask=png(np.ones((99, 99), bool))), "mask of"),
        (shape("cat", "mask", [[0, 0], [1, 1]], mask="####"), "damaged shape"),
        (shape("cat", "mask", [[0, 0], [1, 1]]), "damaged shape"),
        ({"points": []}, "without a label"),
    ],
)
def test_bad_labelme_shapes(tmp_path, bad, told):
    with pytest.raises(CimError, match=told):
        list(FORMATS["labelme"].read(labelme(photo(tmp_path), bad), None))


def cvat(folder: Path, inside: str, name: str = "a.png", size=(20, 30)) -> Path:
    head = "<annotations><meta><job><labels><label><name>cat</name></label></labels></job></meta>"
    image = f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}">{inside}</image>'
    (folder / "annotations.xml").write_text(f"{head}{image}</annotations>")
    return folder / "annotations.xml"


def test_cvat_of_people(tmp_path, caplog):
    inside = """
      <polygon label="cat" points="2,3;10,3;10,8;2,8" group_id="1"/>
      <polygon label="cat" points="12,3;20,3;20,8" group_id="1"/>
      <box label="dog" xtl="1.50" ytl="2" xbr="9" ybr="8"/>
      <ellipse label="cat" cx="15" cy="10" rx="8" ry="4" rotation="90"/>
      <tag label="night"/><points label="cat" points="1,1"/>
      <mask label="cat" rle="1, 2, 3" left="4" top="5" width="3" height="2"/>"""
    labels = FORMATS["cvat"].read(cvat(photo(tmp_path), inside), None)
    assert labels.classes == ("cat", "dog", "night")
    ((_, marks),) = labels
    assert [mark.class_id for mark in marks] == [0, 1, 0, 2, 0]
    assert marks[0].area() == pytest.approx(60, abs=3) and marks[1].box == (1.5, 2, 9, 8)
    x1, y1, x2, y2 = marks[2].corners()
    assert (x2 - x1, y2 - y1) == pytest.approx((8, 16), abs=1)
    assert np.argwhere(marks[4].mask()).tolist() == [[5, 5], [5, 6]]
    assert "1 shapes left out: points" in caplog.text


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ('<mask label="cat" rle="6" left="28" top="0" width="3" height="2"/>', "leaves the photo"),
        ('<mask label="cat" rle="1, 99" left="0" top="0" width="3" height="2"/>', "do not fill"),
        ('<mask label="cat" rle="-1, 7" left="0" top="0" width="3" height="2"/>', "do not fill"),
        ('<mask label="cat" left="0" top="0" width="3" height="2"/>', "damaged mask"),
        ('<polygon label="cat" points="1,1;nan,2;3,3"/>', "no number"),
        ('<box label="cat" xtl="1"/>', "damaged box"),
        ('<box label="cat"', "damaged annotation"),
    ],
)
def test_bad_cvat_shapes(tmp_path, inside, told):
    with pytest.raises(CimError, match=told):
        list(FORMATS["cvat"].read(cvat(photo(tmp_path), inside), None))


def test_xml_with_entities_is_refused(tmp_path):
    path = cvat(photo(tmp_path), "")
    path.write_text('<!DOCTYPE a [<!ENTITY b "cc">]>' + path.read_text())
    with pytest.raises(CimError, match="document type"):
        list(FORMATS["cvat"].read(path, None))


def studio(folder: Path, *results, address="/data/upload/1/0a1b2c3d-a.png", **more) -> Path:
    results = [{"original_width": 30, "original_height": 20, **result} for result in results]
    task = {"data": {"image": address}, "annotations": [{"result": results}], **more}
    (folder / "train.json").write_text(json.dumps([task]))
    return folder / "train.json"


def test_label_studio_of_people(tmp_path, caplog):
    box = {"x": 10, "y": 10, "width": 50, "height": 20, "rotation": 0}
    source = studio(
        photo(tmp_path),
        {"type": "rectanglelabels", "value": {**box, "rectanglelabels": ["dog"]}},
        {"type": "rectanglelabels", "value": {**box, "x": 50, "rotation": 90, "rectanglelabels": ["dog"]}},
        {
            "type": "polygonlabels",
            "value": {"points": [[10, 10], [50, 10], [50, 50], [10, 50]], "polygonlabels": ["cat"]},
        },
        {"type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "ellipselabels": ["cat"]}},
        {"type": "choices", "value": {"choices": ["night", "rain"]}},
        {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cat"]}},
        predictions=[{"result": [{"type": "choices", "value": {"choices": ["never looked at"]}}]}],
    )
    labels = FORMATS["label-studio"].read(source, None)
    assert labels.classes == ("cat", "dog", "night", "rain")
    ((found, marks),) = labels
    assert found.name == "a.png" and [mark.class_id for mark in marks] == [1, 1, 0, 0, 2, 3]
    assert marks[0].box == pytest.approx((3, 2, 18, 6)) and marks[1].box == pytest.approx((11, 2, 15, 17))
    assert marks[2].area() == 12 * 8 and marks[3].area() == pytest.approx(np.pi * 6 * 4, rel=0.05)
    assert "1 results left out: keypointlabels" in caplog.text


def test_what_a_person_says_replaces_the_prediction(tmp_path):
    list(
        write_formats(
            make(tmp_path, [((20, 30), [(0, square(), 1.0)])], ("a.png",)), ["label-studio"], tmp_path / "out"
        )
    )
    path = tmp_path / "out" / "label-studio" / "train.json"
    (task,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**task, "annotations": [{"was_cancelled": True, "result": []}]}]))
    assert [len(marks) for _, marks in FORMATS["label-studio"].read(path, None)] == [1]
    path.write_text(json.dumps([{**task, "annotations": [{"result": []}]}]))
    assert [len(marks) for _, marks in FORMATS["label-studio"].read(path, None)] == [0]


def test_yolo_of_others(tmp_path):
    """Boxes beside polygons, a list of names, folders as Roboflow names them, a photo without a file of labels."""
    photo(tmp_path, "train/images/a.png")
    photo(tmp_path, "train/images/b.png")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0 0 1 0 1 1 0 1\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnames: [cat, dog]\nnc: 2\n")
    labels = FORMATS["yolo"].read(tmp_path / "data.yaml", None)
    (first, marks), (second, nothing) = labels
    assert (first.name, second.name) == ("train/images/a.png", "train/images/b.png") and nothing == []
    assert marks[0].box == pytest.approx((12, 6, 18, 14)) and marks[0].class_id == 1
    assert marks[1].mask().all()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 0.2 0.4", "unknown class"),
        ("0.5 0.5 0.5 0.2 0.4", "unknown class"),
        ("0 0.5 0.5", "6, 8"),
        ("0 0.5 0.5 0.1 nan", "expected numbers"),
        ("0 a b c d", "expected numbers"),
    ],
)
def test_bad_yolo_lines(tmp_path, line, told):
    photo(tmp_path, "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(line)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    with pytest.raises(CimError, match=told) as error:
        list(FORMATS["yolo"].read(tmp_path, None))
    assert "line 1" in str(error.value)


def test_voc_without_masks(tmp_path):
    photo(tmp_path, "JPEGImages/a.png")
    (tmp_path / "Annotations").mkdir()
    xml = (
        "<annotation><filename>a.png</filename><size><width>30</width><height>20</height></size><object><name>dog</name>"
        "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    (tmp_path / "Annotations" / "a.xml").write_text(xml)
    ((_, marks),) = FORMATS["voc"].read(tmp_path, None)
    assert marks == [Mark(0, None, (0, 1, 30, 20))]
    (tmp_path / "SegmentationObject").mkdir()
    Image.fromarray(np.full((20, 30), 2, np.uint8)).save(tmp_path / "SegmentationObject" / "a.png")
    with pytest.raises(CimError, match="more objects than are annotated"):
        list(FORMATS["voc"].read(tmp_path, None))


def test_groups_join_masks_of_one_class_only():
    one, other = (Mark(0, encode(np.eye(4, dtype=bool))), Mark(0, encode(np.eye(4, dtype=bool)[::-1])))
    apart = Mark(1, encode(np.eye(4, dtype=bool)))
    box = Mark(0, None, (0, 0, 1, 1))
    assert [m.area() for m in grouped([(one, 1), (other, 1), (apart, 1), (one, None), (one, None)])] == [8, 4, 4, 4]
    assert grouped([(box, 1), (one, 1)]) == [box, one]


# ---------------------------------------------------------------------- nothing outside the folder


OUTSIDE = ("../secret.png", "/secret.png", "sub/../../secret.png", "..\\secret.png")


@pytest.mark.parametrize("name", OUTSIDE)
def test_photos_outside_the_folder_are_refused(tmp_path, name):
    """Whatever a file of labels says, nothing outside the folder of photos is read, linked or copied."""
    folder = tmp_path / "photos"
    photo(tmp_path, "secret.png")
    photo(folder)
    name = str(tmp_path / "secret.png") if name.startswith("/") else name
    coco = {
        "images": [{"id": 1, "file_name": name, "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    coco["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}]
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"train": str(Path(name.replace("\\", "/")).parent), "names": ["cat"]})
    )
    choice = {"type": "choices", "value": {"choices": ["cat"]}}
    (folder / "Annotations").mkdir()
    size = "<size><width>30</width><height>20</height></size>"
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>{name}</filename>{size}<object><name>cat</name></object></annotation>"
    )
    sources = {
        "coco": folder / "coco.json",
        "cvat": cvat(folder, '<tag label="cat"/>', name),
        "label-studio": studio(folder, choice, address=f"/data/local-files/?d={name}"),
        "voc": folder,
        "yolo": folder,
    }
    for kind, source in sources.items():
        with pytest.raises(CimError, match=r"outside the|no such folder"):
            list(FORMATS[kind].read(source, None if kind == "yolo" else folder))


def test_negatives_of_our_own_labels_lie_elsewhere(tmp_path):
    """What this program wrote itself may name photos outside the folder; it is asked for in so many words."""
    photo(tmp_path / "negatives")
    photo(tmp_path / "photos", "b.png")
    names = (str(tmp_path / "negatives" / "a.png"), "b.png")
    images = [{"id": k, "file_name": name, "height": 20, "width": 30} for k, name in enumerate(names)]
    lines = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}]
    path = tmp_path / "photos" / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": lines, "categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(CimError, match="outside the images folder"):
        list(read_coco(path))
    (done,) = (done for _, done in write_formats(read_coco(path, outside=True), ["cvat"], tmp_path / "out"))
    assert done.photos == 2 and (tmp_path / "out" / "cvat" / "train" / "images" / "outside" / "a.png").is_file()


def test_labelme_looks_beside_its_file_whatever_that_says(tmp_path):
    ((found, _),) = FORMATS["labelme"].read(labelme(photo(tmp_path), shape("cat", "rectangle", [[1, 1], [2, 2]])), None)
    assert found.path == tmp_path / "a.png"


@pytest.mark.parametrize("name", ["coco", "cvat", "voc", "labelme"])
def test_labels_of_another_photo(two, tmp_path, name):
    """Of the same name, but of another size."""
    list(write_formats(two, [name], tmp_path / "out", photos="copy"))
    for path in (tmp_path / "out").rglob("a.png"):
        if "Segmentation" not in str(path):  # those are masks
            Image.new("RGB", (31, 20)).save(path)
    with pytest.raises(CimError, match="another size"):
        list(FORMATS[name].read(tmp_path / "out" / name, None))


@pytest.mark.parametrize("name", list(FORMATS))
def test_nothing_to_read(tmp_path, name):
    with pytest.raises(CimError):
        list(FORMATS[name].read(tmp_path, None))


def test_placing(tmp_path):
    one = Photo("a.png", photo(tmp_path) / "a.png", (20, 30))
    place(one, tmp_path / "new" / "a.png", "copy")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "a.png").read_bytes()


# ---------------------------------------------------------------------- damaged files, many files


JUNK = (None, True, -1, 1e300, "", "x", [], {}, [[]], [1, "a"], {"a": 1}, float("nan"))


def spoilt(node, rng: np.random.Generator):
    """A json with one part, anywhere, replaced by junk or left out."""
    if isinstance(node, dict | list) and node and rng.random() < 0.85:
        node = dict(node) if isinstance(node, dict) else list(node)
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node)))
        if rng.random() < 0.15:
            del node[key]
        else:
            node[key] = spoilt(node[key], rng)
        return node
    return JUNK[rng.integers(len(JUNK))]


@pytest.mark.parametrize(
    ("name", "file"), [("coco", "annotations/train.json"), ("labelme", "train/a.json"), ("label-studio", "train.json")]
)
def test_damaged_jsons_are_told_in_one_line(two, tmp_path, name, file):
    list(write_formats(two, [name], tmp_path))
    path = tmp_path / name / file
    whole = json.loads(path.read_text())
    refused = 0
    for seed in range(60):
        path.write_text(json.dumps(spoilt(whole, np.random.default_rng(seed))))
        try:
            list(FORMATS[name].read(tmp_path / name, None))
        except CimError as error:
            refused += "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cvat", "train/annotations.xml"),
        ("voc", "Annotations/a.xml"),
        ("yolo", "labels/train/a.txt"),
        ("yolo", "data.yaml"),
    ],
)
def test_damaged_texts_are_told_in_one_line(two, tmp_path, name, file):
    list(write_formats(two, [name], tmp_path))
    path = tmp_path / name / file
    whole = path.read_bytes()
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        at = int(rng.integers(len(whole)))
        path.write_bytes(whole[:at] + bytes(rng.integers(0, 256, 3, np.uint8)) + whole[at + int(rng.integers(20)) :])
        try:
            list(FORMATS[name].read(tmp_path / name, None))
        except CimError as error:
            refused += "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize("name", list(FORMATS))
def test_memory_does_not_grow_with_the_masks(name, tmp_path):
    """Of writing: names of photos may stay, 2,000 bytes each, but not masks, of which each has 16,000 here."""
    mask = np.zeros((128, 128), bool)
    mask[::2] = True
    file = photo(tmp_path, size=mask.shape) / "a.png"
    peaks = []
    for count in (10, 40):
        photos = [Photo(f"{k}.png", file, mask.shape) for k in range(count)]
        labels = LabelSet(("cat",), lambda photos=photos: ((one, [Mark(0, encode(mask))]) for one in photos))
        tracemalloc.start()
        list(write_formats(labels, [name], tmp_path / str(count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(encode(mask)["counts"]) > 16_000
    assert peaks[1] - peaks[0] < 30 * 2000


# ---------------------------------------------------------------------- into COCO json


def test_one_json_of_both_splits(tmp_path):
    content = [((20, 30), [(0, square(), 0.5)]), ((20, 30), [(1, square(), 0.5)])]
    labels = make(tmp_path / "photos", content, ("a/x.png", "b/x.png"), ("train", "val"))
    list(write_formats(labels, ["coco"], tmp_path))
    _, counts = write_labels_of(FORMATS["coco"].read(tmp_path / "coco", None), tmp_path / "labels.json")
    assert counts == {"photos": 2, "masks": 2}
    told = json.loads((tmp_path / "labels.json").read_text())
    assert [image["id"] for image in told["images"]] == [1, 2]
    assert {image["file_name"] for image in told["images"]} == {"train/a/x.png", "val/b/x.png"}
    assert told["info"]["image_root"] == str(tmp_path / "coco" / "images")
    _, counts = write_labels_of(FORMATS["coco"].read(tmp_path / "coco", None), tmp_path / "val.json", "val")
    assert counts == {"photos": 1, "masks": 1}
    photos, _ = open_labels(tmp_path / "coco" / "annotations" / "val.json")  # whose photos lie beside it
    assert [photo.path.is_file() for photo in photos] == [True]
    with pytest.raises(CimError, match="no labels"):
        write_labels_of(labels, tmp_path / "none.json", "test")
    assert not (tmp_path / "none.json").exists()
