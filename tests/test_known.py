"""What is known of photos beyond tags: counts, points, boxes, masks, out of every tool's files, and slips in them."""

from __future__ import annotations

import argparse
import base64
import json
import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cim.cli.jobs import run as run_folder
from cim.cli.options import jobs as options
from cim.config.build import build_dataset
from cim.config.checks import check_data
from cim.config.schema import Config, DataConfig
from cim.core.errors import CimError
from cim.datasets.folder import open_folder
from cim.datasets.known import NOTHING, Known, Mark
from cim.datasets.marks.label_studio import brush_mask

SIZE = (20, 30)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three photos of 20 x 30 in p/, and t.csv: two with tags, one of them with a count; one of no class."""
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 128, np.uint8)).save(path)
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,dog*2 cat\nb.jpg,dog\nsub/c.jpg,cat\n")
    return tmp_path


def opened(shop: Path, *files: str, tags: str | bytes | None = None) -> dict[str, Known]:
    if tags is not None:
        (shop / "t.csv").write_bytes(tags if isinstance(tags, bytes) else tags.encode())
    dataset = open_folder(shop / "p", shop / "t.csv", known=[shop / name for name in files])
    assert dataset.classes == ("cat", "dog")
    return {str(record.image_id): record.known for record in dataset}


def write(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path.name


def pixels(mark: Mark) -> np.ndarray:
    assert mark.mask is not None
    return coco_mask.decode({"size": list(SIZE), "counts": mark.mask}).astype(bool)


def square() -> np.ndarray:
    """The mask that every tool's file of these tests describes: rows 2..9, columns 3..12."""
    mask = np.zeros(SIZE, bool)
    mask[2:10, 3:13] = True
    return mask


CORNERS = [[3, 2], [13, 2], [13, 10], [3, 10]]


# ---------------------------------------------------------------------- counts


def test_a_number_beside_a_label_is_a_count_and_no_number_says_nothing(shop):
    known = opened(shop)
    assert known["a.jpg"] == Known(((1, 2),))
    assert known["a.jpg"].number(1) == 2
    assert known["a.jpg"].number(0) is None
    assert known["b.jpg"] is NOTHING
    assert not known["b.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "image;labels\r\na.jpg;dog*2 cat\r\nb.jpg;dog\r\nsub/c.jpg;cat\r\n",
        "image\tlabels\na.jpg\tdog*2,cat\nb.jpg\tdog\nsub/c.jpg\tcat\n",
        'image,labels\n"a.jpg","dog*2;cat"\nb.jpg,dog dog\nsub/c.jpg,cat\n',
        "labels,image\r\ndog*2 cat dog,a.jpg\r\n\r\ndog,b.jpg\r\ncat,sub/c.jpg",
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_a_spreadsheet_writes_is_read_right(shop, text, mark):
    plain = opened(shop)
    assert opened(shop, tags=mark + text.encode()) == plain


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("dog*", "not a count"),
        ("dog*x", "not a count"),
        ("dog*-1", "not a count"),
        ("dog*2.5", "not a count"),
        ("*3", "not a count"),
        ("dog*2*3", "not a count"),
        ("dog*٣", "not a count"),
        ("!", "not a label"),
        ("!dog*3", "not a label"),
        ("dog !dog", "a class that is there and not there"),
        ("dog*2 !dog", "two counts of one class"),
        ("dog*1001", "expected 0 to 1000"),
        (f"dog*{'9' * 5000}", "a count beyond reason"),
        ("dog*2 dog*3", "two counts of one class"),
    ],
)
def test_bad_counts(shop, label, message):
    with pytest.raises(CimError) as error:
        opened(shop, tags=f"image,labels\na.jpg,{label} cat\n")
    assert message in str(error.value)
    assert "t.csv, line 2" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("said", ["!dog", "dog*0"])
def test_a_class_may_be_said_not_to_be_there(shop, said):
    (shop / "t.csv").write_text(f"image,labels\na.jpg,{said} cat\nb.jpg,dog\nsub/c.jpg,{said}\n")
    dataset = open_folder(shop / "p", shop / "t.csv")
    assert dataset.classes == ("cat", "dog")
    assert [record.tags for record in dataset] == [(0,), (1,), ()]
    assert [record.known for record in dataset] == [Known(absent=(1,)), NOTHING, Known(absent=(1,))]
    (shop / "t.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\nsub/c.jpg,\n")
    unsaid = open_folder(shop / "p", shop / "t.csv")
    assert unsaid.digest == dataset.digest  # it is what leaving the class out says
    assert (unsaid.absent_digest, unsaid.known_digest) == (None, None)
    assert dataset.absent_digest is not None


def test_a_class_that_no_photo_shows_is_none(shop):
    assert opened(shop, tags="image,labels\na.jpg,dog cat !cow\nb.jpg,dog\n")["a.jpg"] is NOTHING


def test_a_count_of_zero_takes_a_tag_back_and_a_later_file_brings_it_again(shop):
    write(shop / "c.json", counted({"dog": 0}))
    write(shop / "d.json", counted({"dog": 1}, {"segmentation": [FLAT]}))
    dataset = open_folder(shop / "p", shop / "t.csv", known=[shop / "c.json"])
    assert dataset[0].tags == (0,)
    assert dataset[0].known == Known(absent=(1,))
    again = open_folder(shop / "p", shop / "t.csv", known=[shop / "c.json", shop / "d.json"])
    assert again[0].tags == (0, 1)
    assert again[0].known.counts == ((1, 1),)
    assert again[0].known.absent == ()
    write(shop / "e.json", counted({"dog": 0}, photo="sub/c.jpg"))  # which has no such tag
    assert opened(shop, "e.json")["sub/c.jpg"] == Known(absent=(1,))


def test_tags_alone_leave_records_and_their_digest_as_they_were(shop):
    with_counts = open_folder(shop / "p", shop / "t.csv")
    (shop / "t.csv").write_text("image,labels\na.jpg,dog cat\nb.jpg,dog\nsub/c.jpg,cat\n")
    plain = open_folder(shop / "p", shop / "t.csv")
    assert [record.known for record in plain] == [NOTHING] * 3
    assert plain.known_digest is None
    assert with_counts.digest == plain.digest  # networks that learn from tags may be used for both
    assert with_counts.known_digest is not None


def test_what_is_known_travels_to_other_processes(shop):
    record = open_folder(shop / "p", shop / "t.csv")[0]
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(record) == hash(pickle.loads(pickle.dumps(record)))


# ---------------------------------------------------------------------- points


@pytest.mark.parametrize(
    "text",
    [
        "image,label,x,y\nb.jpg,dog,3,2.5\nb.jpg,dog,29.9,19\nsub/c.jpg,cat,0,0\n",
        "\ufeffimage;label;x;y\r\nb.jpg;dog;3;2,5\r\nb.jpg;dog;29,9;19\r\nC:\\x\\sub\\c.jpg;cat;0;0\r\n",
    ],
)
def test_points_of_a_csv(shop, text):
    (shop / "p" / "c.jpg").write_bytes((shop / "p" / "sub" / "c.jpg").read_bytes())
    (shop / "t.csv").write_text("image,labels\na.jpg,dog*2 cat\nb.jpg,dog\nsub/c.jpg,cat\nc.jpg,cat\n")
    write(shop / "points.csv", text.replace("C:\\x\\sub\\c.jpg", "sub\\c.jpg"))
    known = opened(shop, "points.csv")
    assert known["b.jpg"] == Known(((1, 2),), (Mark(1, ((3.0, 2.5),)), Mark(1, ((29.9, 19.0),))))
    assert known["sub/c.jpg"].marks[0].points == ((0.0, 0.0),)
    assert known["c.jpg"] is NOTHING


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.jpg,dog,30,2", "point outside the photo"),
        ("b.jpg,dog,3,20", "point outside the photo"),
        ("b.jpg,dog,-0.1,2", "point outside the photo"),
        ("b.jpg,dog,nan,2", "point outside the photo"),
        ("b.jpg,dog,inf,2", "point outside the photo"),
        ("b.jpg,dog,3,", "not a point"),
        ("b.jpg,dog,left,2", "not a point"),
        ("b.jpg,dog,3,2,1", "more values than columns"),
        ("b.jpg,,3,2", "without image or label"),
        ("b.jpg,cow,3,2", "no such class"),
        ("b.jpg,cat,3,2", "'cat' marked on a photo that is not tagged so"),
        ("d.jpg,dog,3,2", "no photo 'd.jpg'"),
        ("other.jpg,dog,3,2", "marks on a photo that is not tagged"),
        ("a.jpg,dog,3,2\na.jpg,dog,4,2\na.jpg,dog,5,2", "more marks than instances"),
    ],
)
def test_bad_points(shop, row, message):
    (shop / "p" / "other.jpg").write_bytes((shop / "p" / "a.jpg").read_bytes())
    write(shop / "points.csv", f"image,label,x,y\n{row}\n")
    with pytest.raises(CimError) as error:
        opened(shop, "points.csv")
    assert message in str(error.value)
    assert f"points.csv, line {2 + row.count(chr(10))}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_larger_count_leaves_instances_to_be_found(shop):
    write(shop / "points.csv", "image,label,x,y\na.jpg,dog,3,2\na.jpg,cat,9,9\n")
    assert opened(shop, "points.csv")["a.jpg"].counts == ((0, 1), (1, 2))


def test_what_is_marked_leaves_out_the_numbers_of_other_classes(shop):
    write(shop / "points.csv", "image,label,x,y\na.jpg,cat,9,9\n")
    known = opened(shop, "points.csv")["a.jpg"]
    assert known.counts == ((0, 1), (1, 2))
    assert known.marked() == Known(((0, 1),), known.marks)
    assert known.marked().marked() == known.marked()


def test_a_later_file_corrects_an_earlier_one_class_by_class(shop):
    write(shop / "first.csv", "image,label,x,y\na.jpg,dog,3,2\na.jpg,cat,9,9\n")
    write(shop / "second.csv", "image,label,x,y\na.jpg,dog,7,7\na.jpg,dog,8,8\n")
    marks = opened(shop, "first.csv", "second.csv")["a.jpg"].marks
    assert [(mark.class_id, mark.points) for mark in marks] == [(0, ((9, 9),)), (1, ((7, 7),)), (1, ((8, 8),))]


def test_ten_thousand_corrections_take_seconds(shop):
    rows = "".join(f"a.jpg,cat,{n % 30},{n % 20}\n" for n in range(1000)) * 10
    write(shop / "points.csv", "image,label,x,y\n" + rows)
    began = time.perf_counter()
    assert len(opened(shop, "points.csv")["a.jpg"].marks) == 10_000
    assert time.perf_counter() - began < 10


def test_ten_thousand_corrected_masks_take_seconds(shop):
    lines = [{"image_id": 9, "category_id": 8, "segmentation": RUNS_AS_TEXT}] * 9000
    content = coco(*lines)
    content["images"][1] |= {"height": SIZE[0], "width": SIZE[1], "counts": {"cat": None}}
    content["images"][1]["deleted"] = [{"category_id": 7, "segmentation": RUNS_AS_TEXT}] * 1000
    write(shop / "c.json", content)
    began = time.perf_counter()
    known = opened(shop, "c.json")["a.jpg"]
    assert time.perf_counter() - began < 20
    assert (known.counts, len(known.marks), len(known.rejected)) == (
        ((1, 2),),
        0,
        1000,
    )


# ---------------------------------------------------------------------- the files of tools


def labelme(*shapes: dict, photo: str = "b.jpg", size: tuple[int, int] = SIZE) -> dict:
    return {
        "imagePath": photo,
        "imageHeight": size[0],
        "imageWidth": size[1],
        "shapes": list(shapes),
        "imageData": None,
    }


def png(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()).decode()


def packed(mask: np.ndarray) -> list[int]:
    """Brush bytes of a mask: alpha where it is, one run per change of a value."""
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n:04b}" for n in (3, 7, 11, 15))
    at = 0
    while at < len(values):
        length = int(np.argmax(np.append(values[at:] != values[at], True)))
        bits += f"1{3:02b}{length - 1:016b}{values[at]:08b}"
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def study(kind: str, value: dict, photo: str = "/data/upload/3/0a1b2c3d-b.jpg", size: tuple[int, int] = SIZE) -> list:
    region = {"type": kind, "original_height": size[0], "original_width": size[1], "value": {kind: ["dog"], **value}}
    skipped = {"was_cancelled": True, "result": [{}]}
    annotations = [{"result": [region, {"type": "choices"}]}, skipped]
    return [
        {"id": 5, "data": {"image": photo}, "annotations": annotations},
        {"data": {"image": "x"}, "annotations": []},
    ]


def percent(x: float, y: float) -> list[float]:
    return [100 * x / SIZE[1], 100 * y / SIZE[0]]


def cvat(shape: str, photo: str = "folder/b.jpg", size: tuple[int, int] = SIZE) -> str:
    image = f'<image id="0" name="{photo}" width="{size[1]}" height="{size[0]}">{shape}<tag label="dog"/></image>'
    return f"<?xml version='1.0'?><annotations><version>1.1</version>{image}</annotations>"


def coco(*annotations: dict, size: tuple[int, int] = SIZE) -> dict:
    return {
        "images": [
            {"id": 4, "file_name": "b.jpg", "height": size[0], "width": size[1]},
            {"id": 9, "file_name": "a.jpg"},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [{"id": n, "image_id": 4, "category_id": 7, **one} for n, one in enumerate(annotations, 1)],
    }


FLAT = [value for corner in CORNERS for value in corner]
POINTS = [
    ("l.json", labelme({"label": "dog", "shape_type": "point", "points": [[6, 4]]})),
    ("s.json", study("keypointlabels", dict(zip("xy", percent(6, 4)), width=0.5))),
    ("c.xml", cvat('<points label="dog" points="6.00,4.00"/>')),
    ("c.json", coco({"keypoints": [6, 4, 2, 8, 8, 1, 0, 0, 0]})),
]
BOXES = [
    ("l.json", labelme({"label": "dog", "shape_type": "rectangle", "points": [[13, 10], [3, 2]]})),
    ("s.json", study("rectanglelabels", {"x": 10, "y": 10, "width": 100 / 3, "height": 40, "rotation": 0})),
    ("c.xml", cvat('<box label="dog" xtl="3" ytl="2" xbr="13" ybr="10"/>')),
    ("c.json", coco({"bbox": [3, 2, 10, 8], "segmentation": []})),
]
RUNS = coco_mask.encode(np.asfortranarray(square().astype(np.uint8)))
RUNS_AS_TEXT = {"size": list(SIZE), "counts": RUNS["counts"].decode()}
MASKS = [
    ("l.json", labelme({"label": "dog", "shape_type": "polygon", "points": CORNERS})),
    (
        "l.json",
        labelme({"label": "dog", "shape_type": "mask", "points": [[3, 2], [12, 9]], "mask": png(np.ones((8, 10)))}),
    ),
    ("s.json", study("polygonlabels", {"points": [percent(x, y) for x, y in CORNERS]})),
    ("s.json", study("brushlabels", {"format": "rle", "rle": packed(square())})),
    ("c.xml", cvat('<polygon label="dog" points="3,2;13,2;13,10;3,10"/>')),
    ("c.xml", cvat('<mask label="dog" rle="0, 80" left="3" top="2" width="10" height="8"/>')),
    ("c.json", coco({"bbox": [3, 2, 10, 8], "segmentation": [FLAT]})),
    ("c.json", coco({"segmentation": RUNS_AS_TEXT})),
]


@pytest.mark.parametrize(("name", "content"), POINTS)
def test_points_of_every_tool(shop, name, content):
    write(shop / name, content)
    (mark,) = opened(shop, name)["b.jpg"].marks
    assert mark.class_id == 1
    assert np.allclose(mark.points, [(6, 4)])
    assert mark.box is mark.mask is None


@pytest.mark.parametrize(("name", "content"), BOXES)
def test_boxes_of_every_tool(shop, name, content):
    write(shop / name, content)
    (mark,) = opened(shop, name)["b.jpg"].marks
    assert mark.box == pytest.approx((3, 2, 13, 10))
    assert mark.points == ()
    assert mark.mask is None


@pytest.mark.parametrize(("name", "content"), MASKS)
def test_masks_of_every_tool(shop, name, content):
    write(shop / name, content)
    known = opened(shop, name)
    (mark,) = known["b.jpg"].marks
    assert (pixels(mark) == square()).all()
    assert known["b.jpg"].counts == ((1, 1),)
    assert known["a.jpg"] == Known(((1, 2),))


def test_shapes_of_a_group_are_one_instance(shop):
    parts = [
        {"label": "dog", "shape_type": "polygon", "group_id": 1, "points": p}
        for p in ([[0, 0], [4, 0], [4, 4]], CORNERS)
    ]
    write(shop / "l" / "b.json", labelme(*parts, {"label": "dog", "shape_type": "point", "points": [[1, 1]]}))
    marks = opened(shop, "l")["b.jpg"].marks
    assert len(marks) == 2
    assert pixels(marks[0])[1, 3]
    assert pixels(marks[0])[5, 5]
    grouped = "".join(f'<points label="dog" group_id="1" points="{p}"/>' for p in ("1,1", "2,2;3,3"))
    write(shop / "c.xml", cvat(grouped))
    (mark,) = opened(shop, "c.xml")["b.jpg"].marks
    assert mark.points == ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("crowd", [{"iscrowd": 1, "segmentation": [FLAT]}, {}])
def test_a_crowd_or_a_bare_category_leaves_the_number_open(shop, crowd):
    write(shop / "c.json", coco({"segmentation": [FLAT]}, crowd))
    assert opened(shop, "c.json")["b.jpg"] == NOTHING


def counted(counts: object, *annotations: dict, photo: str = "a.jpg") -> dict:
    content = coco(*({"image_id": 7, **line} for line in annotations))
    content["images"] = [{"id": 7, "file_name": photo, "height": 20, "width": 30, "counts": counts}]
    return content


def test_counts_of_a_coco_json_replace_those_of_the_tags(shop):
    write(shop / "c.json", counted({"dog": 3, "cat": 2}, {"segmentation": [FLAT]}))
    known = opened(shop, "c.json")["a.jpg"]
    assert known.counts == ((0, 2), (1, 3))
    assert [mark.class_id for mark in known.marks] == [1]
    write(shop / "d.json", counted({"dog": 1}))
    known = opened(shop, "c.json", "d.json")["a.jpg"]
    assert known.counts == ((0, 2), (1, 1))
    assert known.marks == ()
    write(shop / "e.json", counted({}, {"segmentation": [FLAT]}))
    assert opened(shop, "d.json", "e.json")["a.jpg"].counts == ((1, 2),)  # a later file forgets an earlier one's count


def test_a_count_of_null_leaves_the_number_open(shop):
    write(shop / "c.json", counted({"dog": None}, {"segmentation": [FLAT]}, photo="b.jpg"))
    assert opened(shop, "c.json")["b.jpg"] == NOTHING


def test_deleted_masks_are_known_until_a_later_file_says_more(shop):
    wrong = {"category_id": 7, "segmentation": RUNS_AS_TEXT}
    content = counted({"dog": None}, photo="b.jpg")
    content["images"][0]["deleted"] = [wrong, {**wrong, "category_id": 8}]  # no cat is tagged there
    write(shop / "c.json", content)
    known = opened(shop, "c.json")["b.jpg"]
    assert (known.counts, known.marks) == ((), ())
    assert known.rejected == (Mark(1, mask=wrong["segmentation"]["counts"]),)
    dataset = open_folder(shop / "p", shop / "t.csv", known=[shop / "c.json"], rejected=False)
    assert dataset[1].known == NOTHING
    digests = {open_folder(shop / "p", shop / "t.csv", known=names).known_digest for names in ([], [shop / "c.json"])}
    assert len(digests) == 2
    write(shop / "points.csv", "image,label,x,y\nb.jpg,dog,3,2\n")
    assert opened(shop, "c.json", "points.csv")["b.jpg"].rejected == ()
    write(shop / "d.json", counted({"dog": 0}, photo="b.jpg"))
    assert opened(shop, "c.json", "d.json")["b.jpg"] == Known(absent=(1,))


def deleted(*lines: object) -> dict:
    content = counted({})
    content["images"][0]["deleted"] = list(lines)
    return content


def bad(name: str, content: object, message: str) -> tuple[str, object, str]:
    return name, content, message


BAD = [
    *[(name, content, "marked on another size") for name, content in [
        ("l.json", labelme({"label": "dog", "points": CORNERS}, size=(20, 31))),
        ("s.json", study("brushlabels", {"rle": packed(np.ones((20, 31), bool))}, size=(20, 31))),
        ("c.xml", cvat('<points label="dog" points="6,4"/>', size=(20, 31))),
        ("c.json", coco({"bbox": [3, 2, 10, 8]}, size=(20, 31))),
    ]],
    bad("c.json", coco({"segmentation": {"size": [20, 31], "counts": [600, 20]}}), "mask of another size"),
    bad("c.json", coco({"segmentation": {"size": [20, 30], "counts": [600, 20]}}), "damaged mask"),
    bad("c.json", coco({"segmentation": {"size": [20, 30], "counts": "QQ0"}}), "damaged mask"),
    bad("c.json", coco({"segmentation": [[1, 2, 3]]}), "damaged annotation"),
    bad("c.json", coco({"segmentation": [[1, 2, 3, 4]]}), "fewer than three points"),
    bad("c.json", coco({"segmentation": [[3, 2, 40, 2, 13, 10]]}), "outside the photo"),
    bad("c.json", coco({"segmentation": [[3, 2, 3, 2, 3, 2]]}), "mask without pixels"),
    bad("c.json", coco({"bbox": [3, 2, 0, 8]}), "box without pixels"),
    bad("c.json", coco({"bbox": [3, 2, "x", 8]}), "damaged annotation"),
    bad("c.json", coco({"category_id": 99}), "unknown image or category"),
    bad("c.json", counted({"dog": -1}), "a count of 'dog' beyond reason"),
    bad("c.json", counted({"dog": 0}, {"segmentation": [FLAT]}), "more marks than instances"),
    bad("c.json", counted({"dog": 1001}), "a count of 'dog' beyond reason"),
    bad("c.json", counted({"dog": True}), "a count of 'dog' beyond reason"),
    bad("c.json", counted({"dog": "2"}), "a count of 'dog' beyond reason"),
    bad("c.json", counted([3]), "damaged counts"),
    bad("c.json", counted({"dog": 1}, {"segmentation": [FLAT]}, {"segmentation": [FLAT]}), "more marks than instances"),
    bad("c.json", counted({"cow": 1}), "no such class"),
    bad("c.json", counted({"dog": 3}, photo="sub/c.jpg"), "'dog' marked on a photo that is not tagged so"),
    bad("c.json", coco({"keypoints": [30, 4, 2]}), "point outside the photo"),
    bad("l.json", labelme({"label": "dog", "shape_type": "point", "points": [[6, 20]]}), "point outside the photo"),
    bad("c.xml", cvat('<points label="dog" points="6.00,20.00"/>'), "point outside the photo"),
    bad("l.json", labelme({"label": "dog", "shape_type": "mask", "points": [[0, 0]], "mask": png(np.ones((20, 31)))}),
        "mask of (31, 20) in a photo of (30, 20)"),
    bad("c.json", deleted("dog"), "damaged list of deleted masks"),
    bad("c.json", deleted({"category_id": 99, "segmentation": [FLAT]}), "damaged list of deleted masks"),
    bad("c.json", deleted({"category_id": 7, "segmentation": {"size": [20, 31], "counts": [620]}}), "of another size"),
    bad("c.json", deleted({"category_id": 7, "segmentation": {"size": [20, 30], "counts": "QQ0"}}), "damaged mask"),
    bad("c.json", "{", "not a json file"),
    bad("c.json", {"key": 1}, "no known form"),
    bad("c.txt", "dog", "no known form"),
    bad("c.json", [1], "no known form"),
    bad("l.json", labelme({"label": "dog", "shape_type": "circle", "points": [[3, 2], [5, 5]]}), "says nothing here"),
    bad("l.json", labelme({"shape_type": "point", "points": [[3, 2]]}), "shape without a label"),
    bad("l.json", labelme({"label": "dog", "shape_type": "point", "points": [3, 2]}), "shape without points"),
    bad("l.json", labelme({"label": "dog", "shape_type": "mask", "points": [[3, 2]], "mask": "???"}), "damaged mask"),
    bad("s.json", study("ellipselabels", {}), "says nothing here"),
    bad("s.json", study("rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 5}), "a turned box"),
    bad("s.json", study("brushlabels", {"rle": packed(square())[:30]}), "damaged region"),
    bad("s.json", study("brushlabels", {"rle": [999]}), "damaged region"),
    bad("s.json", study("keypointlabels", {"x": 101, "y": 5}), "point outside the photo"),
    bad("s.json", [{"data": {"image": "b.jpg"}}], "task without annotations"),
    bad("c.xml", cvat('<polyline label="dog" points="1,1;2,2"/>'), "says nothing here"),
    bad("c.xml", cvat('<mask label="dog" rle="0, 81" left="3" top="2" width="10" height="8"/>'), "damaged mask"),
    bad("c.xml", cvat('<mask label="dog" rle="0, 80" left="25" top="2" width="10" height="8"/>'), "leaves the photo"),
    bad("c.xml", cvat('<box label="dog" xtl="3" ytl="2" xbr="13" ybr="10" rotation="9"/>'), "a turned box"),
    bad("c.xml", cvat('<points label="dog" points="6;4"/>'), "bad points"),
    bad("c.xml", '<!DOCTYPE a [<!ENTITY b "b">]><annotations>&b;</annotations>', "document type"),
    bad("c.xml", "<other/>", "not CVAT's XML"),
    bad("gone.csv", None, "no such file of marks"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files_of_tools(shop, name, content, message):
    if content is not None:
        write(shop / name, content)
    with pytest.raises(CimError) as error:
        opened(shop, name)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_of_marks(shop):
    (shop / "l").mkdir()
    with pytest.raises(CimError, match="no marks in this folder"):
        opened(shop, "l")


def test_a_brush_is_what_was_packed():
    rng = np.random.default_rng(0)
    mask = rng.random(SIZE) < 0.5
    assert (brush_mask(packed(mask), SIZE) == mask).all()
    with pytest.raises(ValueError, match="a brush of 2400 values in a photo of 20 x 31"):
        brush_mask(packed(mask), (20, 31))


# ---------------------------------------------------------------------- the config


def test_the_config_names_the_files_and_judges_are_refused(shop):
    write(shop / "points.csv", "image,label,x,y\nb.jpg,dog,3,2\n")
    data = {"images": str(shop / "p"), "tags": str(shop / "t.csv"), "known": [str(shop / "points.csv")]}
    assert build_dataset(DataConfig(**data), "train")[1].known.number(1) == 1
    write(shop / "truth.json", coco({"segmentation": [FLAT]}))
    data["known"] = [str(shop / "truth.json")]
    with pytest.raises(CimError, match="judged by what training was told"):
        build_dataset(DataConfig(**data, val_annotations=str(shop / "truth.json"), val_images=str(shop / "p")), "train")


def test_check_says_what_is_known_of_how_many_photos(shop):
    write(shop / "points.csv", "image,label,x,y\nb.jpg,dog,3,2\nb.jpg,dog,9,9\n")
    write(shop / "c.json", coco({"image_id": 9, "category_id": 8, "bbox": [3, 2, 10, 8]}))
    content = json.loads((shop / "c.json").read_text())
    content["images"].append({"id": 9, "file_name": "a.jpg"})
    write(shop / "c.json", content)
    data = DataConfig(
        images=str(shop / "p"),
        tags=str(shop / "t.csv"),
        train_split="train",
        known=(str(shop / "points.csv"), str(shop / "c.json")),
    )
    found = {finding.what: finding for finding in check_data(Config(data=data), "c.yaml", ("training",))}
    known = found["known of train beyond tags"]
    assert (known.state, known.detail) == (
        "ok",
        "of 2 of 3 photos (counts of 1, points of 1, boxes of 1), 3 instances marked",
    )
    (shop / "t.csv").write_text("image,labels\na.jpg,dog*2 cat\nb.jpg,dog\nsub/c.jpg,cat !dog\n")
    found = {finding.what: finding for finding in check_data(Config(data=data), "c.yaml", ("training",))}
    assert "absent classes of 1" in found["known of train beyond tags"].detail
    data = data.model_copy(update={"known": ()})
    (shop / "t.csv").write_text("image,labels\na.jpg,dog cat\nb.jpg,dog\nsub/c.jpg,cat\n")
    found = {finding.what: finding for finding in check_data(Config(data=data), "c.yaml", ("training",))}
    assert "known of train beyond tags" not in found


def test_a_run_hands_on_what_is_known_and_notices_changes(shop):
    write(shop / "points.csv", "image,label,x,y\nb.jpg,dog,3,2\n")
    write(shop / "l" / "b.json", labelme())
    parser = argparse.ArgumentParser()
    options.run(parser)
    words = ["--images", shop / "p", "--tags", shop / "t.csv", "--output", shop / "run"]
    args = parser.parse_args([*map(str, words), "--known", str(shop / "points.csv"), str(shop / "l")])
    config = run_folder.resolve(args)
    assert config.data.known == (str(shop / "points.csv"), str(shop / "l"))
    before = run_folder.state_of(args)
    assert "points.csv" in before
    assert "b.json" in before
    write(shop / "points.csv", "image,label,x,y\nb.jpg,dog,3,2\nb.jpg,dog,9,9\n")
    assert run_folder.state_of(args) != before
    args = parser.parse_args([*map(str, words), "--known", str(shop / "gone.csv")])
    with pytest.raises(CimError, match="no such file or folder"):
        run_folder.resolve(args)
