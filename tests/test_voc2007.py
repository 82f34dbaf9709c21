"""VOC 2007 from a development kit that the test writes: boxes, difficult objects, masks, tags; and hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from doors import run_tool
from PIL import Image

from cim.cli.main import call
from cim.config.checks import Thoroughness, check_data
from cim.config.loading import load_config
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.datasets.voc import open_voc
from cim.datasets.voc_boxes import devkit_year, make_voc2007_annotations, read_annotation
from cim.pictures.photo_set import PhotoSet

HEAD = "<annotation><folder>VOC2007</folder><size><width>60</width><height>40</height><depth>3</depth></size>"


def thing(name: str, x1: object, y1: object, x2: object, y2: object, difficult: int | None = 0) -> str:
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return f"<object><name>{name}</name>{hard}<bndbox>{corners}</bndbox>{part if name == 'person' else ''}</object>"


PHOTOS = {
    "000005": thing("chair", 11, 1, 60, 40) + thing("chair", 1, 1, 10, 5, 1) + thing("car", 1, 1, 3, 3, 1),
    "000007": thing("person", 1, 2, 30, 40, None) + thing("car", 20.4, 3, 59.6, 40),
    "000001": thing("dog", 5, 5, 20, 30),
}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name, objects in PHOTOS.items():
        (root / "Annotations" / f"{name}.xml").write_text(f"{HEAD}{objects}</annotation>")
        Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("000005\n000007\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    (root / "ImageSets" / "Segmentation" / "trainval.txt").write_text("000007\n")
    labels = np.zeros((40, 60), np.uint8)
    labels[1:40, 0:15], labels[3:40, 25:60], labels[0] = 1, 2, 255
    for folder, values in (("Object", labels), ("Class", np.array([0, 15, 7] + [0] * 252 + [255], np.uint8)[labels])):
        (root / f"Segmentation{folder}").mkdir()
        picture = Image.fromarray(values)
        picture.putpalette([k % 256 for k in range(768)])
        picture.save(root / f"Segmentation{folder}" / "000007.png")
    return root


@pytest.fixture
def data(devkit, tmp_path) -> Path:
    assert not call(["voc", "--devkit", str(devkit), "--data-root", str(tmp_path / "data")])
    (tmp_path / "data" / "VOC2007" / "JPEGImages").symlink_to(devkit / "JPEGImages")
    return tmp_path / "data" / "VOC2007"


def load(data: Path, name: str) -> dict:
    return json.loads((data / "annotations" / f"voc_2007_{name}.json").read_text())


def test_boxes_and_masks(data):
    content = load(data, "trainval")
    assert content["images"][0] == {"id": 5, "file_name": "000005.jpg", "height": 40, "width": 60}
    chair, small, _car, person, car = content["annotations"]
    assert (chair["bbox"], chair["area"], chair["difficult"], chair["category_id"]) == ([10, 0, 50, 40], 2000, 0, 9)
    assert (small["bbox"], small["difficult"]) == ([0, 0, 10, 5], 1)
    assert (person["bbox"], person["difficult"], person["category_id"]) == ([0, 1, 30, 39], 0, 15)
    assert car["bbox"] == [19, 2, 41, 38]  # decimals are rounded
    assert [image["id"] for image in load(data, "test")["images"]] == [1]
    masks = load(data, "trainval_masks")
    assert [image["id"] for image in masks["images"]] == [7]
    assert [(a["category_id"], a["bbox"]) for a in masks["annotations"]] == [(15, [0, 1, 15, 39]), (7, [25, 3, 35, 37])]
    assert not (data / "annotations" / "voc_2007_test_masks.json").exists()  # no list of them in this kit


def test_tags_leave_out_classes_that_are_only_difficult(data):
    dataset = open_voc(data, "trainval")
    assert {r.image_id: [dataset.classes[k] for k in r.tags] for r in dataset} == {5: ["chair"], 7: ["car", "person"]}
    assert dataset[0].size == (40, 60) and dataset[0].path.is_file()


def test_check_and_configs_know_it(data):
    for name in ("voc2007_mobilenet", "resnet50_voc2007"):
        config = load_config(name, [f"data.root={data}"])
        found = {f.what: f for f in check_data(config, name, ("training", "evaluation"), Thoroughness())}
        assert found["tags and list of trainval"].state == "ok" and found["photos of voc test"].state == "ok"
        boxes = found["boxes of voc test"]
        assert (boxes.state, boxes.detail) == ("ok", "1 objects, 0 of them difficult; no masks")
        assert f"cim import --config {name} --split trainval" in found["proposals of trainval"].fix
    (data / "annotations" / "voc_2007_test.json").unlink()
    missing = next(f for f in check_data(config, name, ("evaluation",)) if f.what == "tags and list of test")
    assert missing.state == "missing" and missing.fix == "cim voc --devkit VOCdevkit/VOC2007"


def test_evaluate_and_pictures_without_masks(data, tmp_path, capsys):
    results = [
        {"image_id": 5, "category_id": 9, "bbox": [10, 0, 50, 40], "score": 0.5},
        {"image_id": 5, "category_id": 9, "bbox": [0, 0, 10, 5], "score": 0.9},
        {"image_id": 7, "category_id": 15, "bbox": [0, 1, 30, 39], "score": 0.9},
    ]
    write_json(tmp_path / "results.json", results)
    options = ["--set", f"data.root={data}", f"work_dir={tmp_path / 'run'}", "--split", "trainval"]
    assert call(["evaluate", "voc2007_mobilenet", *options, "--results", str(tmp_path / "results.json")]) == 0
    told = capsys.readouterr().out
    assert "| results | 66.7 | 66.7 |" in told  # chair and person right, car not found; the small chair does not hurt
    assert "2 difficult objects left out" in told
    photos = PhotoSet.of(open_voc(data, "trainval"))
    assert not photos.annotated and len(photos.photos) == 2


def test_year_and_files_that_are_there(devkit, tmp_path, capsys):
    assert devkit_year(devkit) == 2007
    moved = devkit.rename(tmp_path / "kit")
    assert devkit_year(moved) == 2007 and devkit_year(tmp_path) is None
    assert run_tool("pre/voc_annotations", "--devkit", moved, "--data-root", tmp_path / "VOC2007", "--sbd", "x") == 2
    assert "--sbd belongs to VOC 2012" in capsys.readouterr().err
    paths = make_voc2007_annotations(moved, tmp_path / "VOC2007")
    paths[0].write_text("mine")
    assert make_voc2007_annotations(moved, tmp_path / "VOC2007") == paths and paths[0].read_text() == "mine"
    make_voc2007_annotations(moved, tmp_path / "VOC2007", overwrite=True)
    assert paths[0].read_text() != "mine"
    (moved / "ImageSets" / "Main" / "test.txt").unlink()
    assert len(make_voc2007_annotations(moved, tmp_path / "other")) == 2
    (moved / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(CimError, match="no list of photos"):
        make_voc2007_annotations(moved, tmp_path / "third")


LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x SYSTEM "file:///etc/passwd">'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}<annotation>&b;</annotation>", "with a document type"),
        (f"{OUTSIDE}{HEAD}</annotation>", "with a document type"),
        ("<annotation>&b;</annotation>", "damaged annotation"),
        (HEAD, "damaged annotation"),
        ("", "damaged annotation"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "damaged annotation"),
        ("<annotation></annotation>", "without size/height"),
        (f"{HEAD}{thing('unicorn', 1, 1, 2, 2)}</annotation>", "unknown class"),
        (f"{HEAD}{thing('cat', 1, 1, 61, 2)}</annotation>", "box outside the photo"),
        (f"{HEAD}{thing('cat', 0, 1, 6, 2)}</annotation>", "box outside the photo"),
        (f"{HEAD}{thing('cat', 5, 1, 4, 2)}</annotation>", "box outside the photo"),
        (f"{HEAD}{thing('cat', 'x', 1, 4, 2)}</annotation>", "bad bndbox/xmin"),
        (f"{HEAD}{thing('cat', 'inf', 1, 4, 2)}</annotation>", "bad bndbox/xmin"),
        (f"{HEAD}{thing('cat', 'nan', 1, 4, 2)}</annotation>", "bad bndbox/xmin"),
        (f"{HEAD}<object><name>cat</name></object></annotation>", "without bndbox/xmin"),
        (f"{HEAD}{' ' * 2**20}</annotation>", "annotation too large"),
    ],
)
def test_bad_annotations_are_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "000001.xml"
    path.write_text(text)
    with pytest.raises(CimError, match=message):
        read_annotation(path)


def test_missing_annotation(devkit, tmp_path):
    (devkit / "Annotations" / "000007.xml").unlink()
    with pytest.raises(CimError, match="missing annotation"):
        make_voc2007_annotations(devkit, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*trainval.json"))
