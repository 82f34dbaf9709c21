"""What benchmarks/known.py tells a run: files made from the truth of drawn pictures, of tagged classes alone."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.datasets.drawn import make_demo
from cim.datasets.folder import open_folder

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import known


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("known") / "pictures"
    make_demo(root, train=20, val=2, seed=3)
    return root


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_told_is_the_truth(pictures: Path, tmp_path: Path) -> None:
    truth = read_json(pictures / "train_instances.json")
    train = pictures / "images" / "train"
    known.told_by(truth, known.tags_of(open_folder(train, pictures / "train_tags.csv")), tmp_path)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    classes = {line["id"]: line["name"] for line in truth["categories"]}
    objects = [(names[a["image_id"]], classes[a["category_id"]], a["segmentation"]) for a in truth["annotations"]]

    counted = Counter((photo, label) for photo, label, _ in objects)
    numbers = {
        (line["image"], label): int(number)
        for line in lines(tmp_path / "numbers.csv")
        for label, number in (word.split("*") for word in line["labels"].split())
    }
    assert numbers == counted

    points = lines(tmp_path / "points.csv")
    assert len(points) == len(objects)
    for point, (photo, label, mask) in zip(points, objects, strict=True):
        assert (point["image"], point["label"]) == (photo, label)
        assert coco_mask.decode(mask)[int(point["y"]), int(point["x"])]

    masks = read_json(tmp_path / "masks.json")
    assert len(masks["images"]) == 1  # a twentieth of 20
    (photo,) = (image["id"] for image in masks["images"])
    assert masks["annotations"] == [a for a in truth["annotations"] if a["image_id"] == photo]

    told = open_folder(train, tmp_path / "numbers.csv", known=[tmp_path / "points.csv", tmp_path / "masks.json"])
    assert len(told) == 20
    assert told.known_digest is not None


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """Two photos, their numbers and points."""
    (tmp_path / "images" / "train").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(tmp_path / "images" / "train" / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train_counts.csv").write_text("image,labels\na.jpg,cat*2 dog*1\nb.jpg,dog*3\n")
    (tmp_path / "train_points.csv").write_text("image,label,x,y\na.jpg,cat,1,2\na.jpg,dog,3,4\nb.jpg,dog,5,6\n")
    return tmp_path


def test_classes_without_a_tag_are_not_told(counted: Path, tmp_path: Path) -> None:
    tagged = {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
    known.told_in(counted, tagged, tmp_path)
    assert (tmp_path / "numbers.csv").read_text() == "image,labels\na.jpg,cat*2\nb.jpg,dog*3\n"
    assert (tmp_path / "points.csv").read_text() == "image,label,x,y\na.jpg,cat,1.0,2.0\nb.jpg,dog,5.0,6.0\n"
    files = [tmp_path / "numbers.csv", tmp_path / "points.csv"]
    before = [path.stat().st_mtime_ns for path in files]
    known.told_in(counted, tagged, tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == before  # nothing to look at again
    assert known.hours("tags", tmp_path, tagged) == pytest.approx(2 / 3600)
    assert known.hours("numbers", tmp_path, tagged) == pytest.approx(4 / 3600)
    assert known.hours("points", tmp_path, tagged) == pytest.approx((2 + 2 * 2.4) / 3600)


def test_bad_files_are_one_line(counted: Path, tmp_path: Path) -> None:
    with pytest.raises(CimError, match=r"no number for b\.jpg"):
        known.told_in(counted, {"b.jpg": {"dog", "cat"}}, tmp_path)
    (counted / "train_points.csv").write_text("image,label,x\na.jpg,cat,1\n")
    with pytest.raises(CimError, match="train_points"):
        known.told_in(counted, {"b.jpg": {"dog"}}, tmp_path)
