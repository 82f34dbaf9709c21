"""The demo data set: the same every time, exact masks, a small telling part in every object."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from doors import call_tool
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cim.cli.common import run
from cim.config.build import build_dataset
from cim.config.schema import DataConfig
from cim.core.errors import CimError
from cim.datasets.drawing import CLASSES, make_object
from cim.datasets.drawn import NEW_PHOTOS, draw_picture, make_demo

MAIN = partial(call_tool, "make_demo")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "set"
    make_demo(root, train=20, val=10)
    return root


def folder_config(root: Path) -> DataConfig:
    return DataConfig(
        images=str(root / "images/train"),
        tags=str(root / "train_tags.csv"),
        train_annotations=str(root / "train_instances.json"),
        val_images=str(root / "images/val"),
        val_tags=str(root / "val_tags.csv"),
        val_annotations=str(root / "val_instances.json"),
    )


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_files_other_seed_other_pictures(demo, tmp_path):
    make_demo(tmp_path / "again", train=20, val=10)
    assert files(tmp_path / "again") == files(demo)
    make_demo(tmp_path / "other", train=1, val=0, seed=1)
    name = "images/train/train_0001.jpg"
    assert files(tmp_path / "other")[name] != files(demo)[name]


def test_tags_say_what_the_masks_show(demo):
    for split, count in (("train", 20), ("val", 10)):
        data = build_dataset(folder_config(demo), split)
        assert (len(data), data.classes, data.category_ids) == (count, CLASSES, (1, 2, 3, 4, 5))
        truth = COCO(str(data.annotations))
        for record in data:
            annotations = truth.loadAnns(truth.getAnnIds(imgIds=[record.image_id]))
            assert 1 <= len(annotations) <= 4
            assert record.tags == tuple(sorted({a["category_id"] - 1 for a in annotations}))
            assert record.size == np.asarray(Image.open(record.path)).shape[:2]


def test_voc_tree_is_the_same_set(demo):
    for split, name in (("train", "trainaug"), ("val", "val")):
        folder = build_dataset(folder_config(demo), split)
        voc = build_dataset(DataConfig(dataset="voc", root=str(demo / "VOC2012")), name)
        assert [(r.size, r.tags, r.path.read_bytes()) for r in voc] == [
            (r.size, r.tags, r.path.read_bytes()) for r in folder
        ]
        assert all(r.image_id == int(r.path.stem.replace("_", "")) for r in voc)
        assert len(COCO(str(voc.annotations)).anns) == len(COCO(str(folder.annotations)).anns)


def test_masks_do_not_overlap_and_contain_their_parts(demo):
    truth = json.loads((demo / "train_instances.json").read_text())
    by_image: dict[int, list[dict]] = {}
    for annotation in truth["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for entries in by_image.values():
        masks = np.stack([coco_mask.decode(a["segmentation"]) for a in entries])
        parts = np.stack([coco_mask.decode(a["part"]) for a in entries])
        assert masks.sum(0).max() == 1
        assert (parts <= masks).all()
        share = parts.sum((1, 2)) / masks.sum((1, 2))
        assert (share > 0.03).all()
        assert (share < 0.35).all()


def test_points_lie_on_their_objects(demo):
    truth = COCO(str(demo / "VOC2012/annotations/voc_2012_trainaug.json"))
    for image in truth.imgs.values():
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[image["id"]]))
        lines = (demo / "VOC2012/Center_points" / f"{Path(image['file_name']).stem}.txt").read_text().splitlines()
        for line, annotation in zip(lines, annotations, strict=True):
            x, y, class_id, _ = line.split()
            assert int(class_id) == annotation["category_id"] - 1
            assert truth.annToMask(annotation)[int(y), int(x)]


def test_new_photos_have_no_annotation(demo):
    assert len(list((demo / "new").glob("*.jpg"))) == NEW_PHOTOS
    assert "new_0001" not in (demo / "train_tags.csv").read_text() + (demo / "val_tags.csv").read_text()


@pytest.mark.parametrize("index", range(10))
def test_every_object_and_its_part_show(index):
    picture = draw_picture(index, np.random.default_rng([3, index]))
    assert picture.class_ids[0] == index % 5
    assert (picture.masks.sum((1, 2)) > 60).all()
    assert (picture.parts.sum((1, 2)) > 4).all()


@pytest.mark.parametrize("name", CLASSES)
def test_body_colours_are_no_clue_and_the_part_is_one(name):
    """Bodies of a class take many hues; its part has the same colours every time."""
    bodies, parts = [], []
    for seed in range(12):
        sprite = make_object(name, 30.0, np.random.default_rng(seed))
        solid, part = sprite.opacity > 0.9, sprite.part > 0.9
        bodies.append(sprite.colour[solid & (sprite.part < 0.1)].mean(0))
        parts.append(sprite.colour[part].mean(0))
    assert np.std(parts, 0).mean() < 0.35 * np.std(bodies, 0).mean()


def test_no_pictures_at_all(tmp_path):
    make_demo(tmp_path / "empty", train=0, val=0)
    assert (tmp_path / "empty" / "train_tags.csv").read_text() == "image,labels\n"


def test_full_size_takes_seconds(tmp_path):
    start = time.process_time()
    make_demo(tmp_path / "full", train=40, val=12)
    assert time.process_time() - start < 3 * 15 / 5  # a fifth of the full set; the full one has 15 s


def test_tool_makes_keeps_and_refuses(tmp_path, capsys):
    arguments = [str(tmp_path / "d"), "--train", "2", "--val", "1"]
    assert run(lambda: MAIN(*arguments)) == 0
    before = (tmp_path / "d" / "demo.json").stat().st_mtime_ns
    assert run(lambda: MAIN(*arguments)) == 0
    assert (tmp_path / "d" / "demo.json").stat().st_mtime_ns == before
    assert run(lambda: MAIN(*arguments, "--seed", "5")) == 2
    assert "a demo made with other settings" in capsys.readouterr().err


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CimError, match="not an empty folder"):
        make_demo(tmp_path, train=1, val=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_half_written_remains(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cim.datasets.drawn._write_points", fail)
    with pytest.raises(CimError, match=r"cannot write.*No space left"):
        make_demo(tmp_path / "d", train=1, val=0)
    assert not list(tmp_path.iterdir())
