"""voc_annotations on a devkit and an SBD copy that the test writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from doors import call_tool
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cim.cli.common import run
from cim.datasets.voc import open_voc

MAIN = partial(call_tool, "pre/voc_annotations")

TRAIN, VAL, SBD = "2007_000001", "2007_000002", "2008_000003"


def write_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    image.putpalette([k % 256 for k in range(768)])
    image.save(path)


def write_mat(path: Path, numbers: np.ndarray, categories: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = {
        "Segmentation": numbers,
        "Boundaries": np.zeros((1, 1)),
        "Categories": np.array(categories, float)[:, None],
    }
    scipy.io.savemat(path, {"GTinst": truth})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """VOC: two photos, 10 x 12 px, two instances each with void between; SBD: those two and one more."""
    objects = np.zeros((10, 12), np.uint8)
    objects[1:5, 1:5], objects[5, :], objects[6:9, 2:11] = 1, 255, 2
    classes = np.where(objects == 1, 15, np.where(objects == 2, 3, objects)).astype(np.uint8)
    lists = tmp_path / "devkit" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", TRAIN), ("val", VAL)):
        (lists / f"{split}.txt").write_text(f"{name}\n")
        write_png(tmp_path / "devkit" / "SegmentationObject" / f"{name}.png", objects)
        write_png(tmp_path / "devkit" / "SegmentationClass" / f"{name}.png", classes)
    for name in (TRAIN, VAL, SBD):
        numbers = np.zeros((8, 9), np.uint8)
        numbers[2:4, 3:9] = 1
        write_mat(tmp_path / "sbd" / "dataset" / "inst" / f"{name}.mat", numbers, [20])
    (tmp_path / "sbd" / "dataset" / "train.txt").write_text(f"{TRAIN}\n{VAL}\n")
    (tmp_path / "sbd" / "dataset" / "val.txt").write_text(f"{SBD}\n")
    return tmp_path


def arguments(tree: Path, *more: str) -> list[str]:
    return ["--devkit", str(tree / "devkit"), "--data-root", str(tree / "out"), *more]


def load(tree: Path, split: str) -> dict:
    return json.loads((tree / "out" / "VOC2012" / "annotations" / f"voc_2012_{split}.json").read_text())


def test_masks_classes_and_ids(tree):
    assert not MAIN(*arguments(tree, "--sbd", str(tree / "sbd")))
    val = load(tree, "val")
    assert val["images"] == [{"id": 2007000002, "file_name": f"{VAL}.jpg", "height": 10, "width": 12}]
    assert [c["id"] for c in val["categories"]] == list(range(1, 21))
    assert val["categories"][14]["name"] == "person"
    first, second = val["annotations"]
    assert (first["category_id"], first["area"], first["bbox"], first["iscrowd"]) == (15, 16, [1, 1, 4, 4], 0)
    assert (second["category_id"], second["area"], second["bbox"]) == (3, 27, [2, 6, 9, 3])
    mask = coco_mask.decode(first["segmentation"]).astype(bool)
    expected = np.zeros((10, 12), bool)
    expected[1:5, 1:5] = True
    assert (mask == expected).all()


def test_trainaug_is_voc_train_and_sbd_less_voc_val(tree):
    MAIN(*arguments(tree, "--sbd", str(tree / "sbd")))
    data = open_voc(tree / "out" / "VOC2012", "trainaug")
    assert {r.path.stem: (r.image_id, r.size, r.tags) for r in data} == {
        TRAIN: (2007000001, (10, 12), (2, 14)),  # VOC's masks count where both have some
        SBD: (2008000003, (8, 9), (19,)),
    }
    truth = COCO(str(tree / "out" / "VOC2012" / "annotations" / "voc_2012_trainaug.json"))
    (annotation,) = truth.loadAnns(truth.getAnnIds(imgIds=[2008000003]))
    assert annotation["bbox"] == [3, 2, 6, 2]
    assert truth.annToMask(annotation).sum() == annotation["area"] == 12


def test_without_sbd_trainaug_is_voc_train_and_says_so(tree, caplog):
    caplog.set_level("INFO")
    MAIN(*arguments(tree))
    assert [image["file_name"] for image in load(tree, "trainaug")["images"]] == [f"{TRAIN}.jpg"]
    assert "VOC train alone" in caplog.text


def test_trainaug_list_of_the_devkit_wins(tree):
    (tree / "devkit" / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(f"{SBD}\n")
    MAIN(*arguments(tree, "--sbd", str(tree / "sbd" / "dataset")))
    assert [image["file_name"] for image in load(tree, "trainaug")["images"]] == [f"{SBD}.jpg"]


def test_existing_files_stay_unless_overwrite(tree):
    MAIN(*arguments(tree))
    path = tree / "out" / "VOC2012" / "annotations" / "voc_2012_val.json"
    path.write_text("mine")
    MAIN(*arguments(tree))
    assert path.read_text() == "mine"
    MAIN(*arguments(tree, "--overwrite"))
    assert load(tree, "val")["images"]


def test_the_data_set_folder_itself_will_do(tree):
    MAIN("--devkit", str(tree / "devkit"), "--data-root", str(tree / "out" / "VOC2012"))
    assert load(tree, "val")["images"]


def test_photo_without_instances_is_listed(tree):
    for kind in ("Object", "Class"):
        write_png(tree / "devkit" / f"Segmentation{kind}" / f"{VAL}.png", np.zeros((10, 12), np.uint8))
    MAIN(*arguments(tree))
    assert len(load(tree, "val")["images"]) == 1
    assert load(tree, "val")["annotations"] == []


def damage_size(tree):
    write_png(tree / "devkit" / "SegmentationClass" / f"{VAL}.png", np.zeros((5, 5), np.uint8))


def damage_class(tree):
    write_png(tree / "devkit" / "SegmentationClass" / f"{VAL}.png", np.zeros((10, 12), np.uint8))


def damage_png(tree):
    path = tree / "devkit" / "SegmentationObject" / f"{VAL}.png"
    path.write_bytes(path.read_bytes()[:40])


def damage_mode(tree):
    Image.new("RGB", (12, 10)).save(tree / "devkit" / "SegmentationObject" / f"{VAL}.png")


def damage_list(tree):
    (tree / "devkit" / "ImageSets" / "Segmentation" / "val.txt").unlink()


def damage_mat(tree):
    (tree / "sbd" / "dataset" / "inst" / f"{SBD}.mat").write_bytes(b"MATLAB no more")


def damage_foreign_mat(tree):
    scipy.io.savemat(tree / "sbd" / "dataset" / "inst" / f"{SBD}.mat", {"other": 1})


def damage_categories(tree):
    write_mat(tree / "sbd" / "dataset" / "inst" / f"{SBD}.mat", np.full((4, 4), 2, np.uint8), [5])


def damage_missing_mat(tree):
    (tree / "sbd" / "dataset" / "inst" / f"{SBD}.mat").unlink()


def damage_sbd(tree):
    (tree / "sbd" / "dataset").rename(tree / "sbd" / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, "mask of another size"),
        (damage_class, "instance 1 without a class"),
        (damage_png, "damaged mask"),
        (damage_mode, "not a palette picture"),
        (damage_list, "missing list of photos"),
        (damage_mat, "not an SBD instance file"),
        (damage_foreign_mat, "not an SBD instance file"),
        (damage_categories, "instance 2 without a class"),
        (damage_missing_mat, "no masks for this photo"),
        (damage_sbd, "no SBD copy here"),
    ],
)
def test_bad_input_is_told_in_one_line_with_exit_code_2(tree, capsys, damage, message):
    damage(tree)
    assert run(lambda: MAIN(*arguments(tree, "--sbd", str(tree / "sbd")))) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert not list((tree / "out").rglob("*.tmp*"))
