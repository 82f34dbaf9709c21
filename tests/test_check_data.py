"""check_data on a small demo set: every gap is named with the command that fills it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from doors import call_tool
from PIL import Image

from cim.cli.common import run
from cim.config.build import build_dataset
from cim.config.checks import Finding, Thoroughness, check_data
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.regions import RegionSet
from cim.datasets.drawn import make_demo
from cim.storage.store import Store

MAIN = partial(call_tool, "check_data")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("check") / "demo"
    make_demo(root, train=4, val=2)
    return root


@pytest.fixture
def ready(demo, tmp_path) -> Path:
    """A folder config with everything in place."""
    root = tmp_path / "demo"
    shutil.copytree(demo, root)
    data = {
        "dataset": "folder",
        "train_split": "train",
        "eval_split": "val",
        "images": str(root / "images/train"),
        "tags": str(root / "train_tags.csv"),
        "val_images": str(root / "images/val"),
        "val_tags": str(root / "val_tags.csv"),
        "val_annotations": str(root / "val_instances.json"),
    }
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump({"work_dir": str(tmp_path / "run"), "data": data}))
    config = load_config(path)
    paths = RunPaths(config)
    for split in ("train", "val"):
        store = Store.create(paths.proposals(split), "regions", {})
        for record in build_dataset(config.data, split):
            write_regions(store, record.image_id, record.size)
    clusters = Store.create(paths.first_labels, "clusters", {})
    for record in build_dataset(config.data, "train"):
        clusters.save(record.image_id, class_ids=np.array([1, -1]), cluster=np.array([1, 0]))
    paths.checkpoint.parent.mkdir(parents=True)
    paths.checkpoint.write_bytes(b"any")
    return path


def write_regions(store: Store, image_id, size) -> None:
    masks = np.zeros((2, *size), bool)
    masks[0, :5, :5] = masks[1] = True
    RegionSet.from_masks(masks).save(store.path(image_id))


def blocking(config: Config, **options) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_data(config, "my.yaml", **options) if finding.blocks}


def test_everything_there(ready, capsys):
    assert run(lambda: MAIN(str(ready), "--workers", "1")) == 0
    told = capsys.readouterr().out
    assert "training: ready" in told
    assert "export: ready" in told
    assert not blocking(load_config(ready))


def test_fresh_config_lists_the_stages_in_order(ready, tmp_path, capsys):
    shutil.rmtree(tmp_path / "run")
    assert run(lambda: MAIN(str(ready), "--workers", "1")) == 2
    told = capsys.readouterr().out
    commands = [
        " ".join(line.split()[:2]) for line in told.split("to fix, in this order:")[1].splitlines() if line.strip()
    ]
    assert commands == [
        "cim proposals",
        "cim prm",
        "cim labels",
        "cim proposals",
        "cim train",
    ]


def test_only_what_the_purpose_needs(ready, tmp_path):
    shutil.rmtree(tmp_path / "run" / "first_labels")
    config = load_config(ready)
    assert set(blocking(config)) == {"first labels", "response network"}
    assert not blocking(config, purposes=["evaluation", "export"])
    without = config.model_copy(update={"loss": config.loss.model_copy(update={"first_labels": False})})
    assert not blocking(without)
    points = config.model_copy(update={"assign": config.assign.model_copy(update={"points": str(tmp_path)})})
    assert set(blocking(points)) == {"first labels"}


def first_photo(ready: Path, split: str = "train") -> Path:
    return build_dataset(load_config(ready).data, split)[0].path


def missing_photo(ready):
    first_photo(ready).unlink()


def text_for_a_photo(ready):
    first_photo(ready).write_text("not a photo")


def turned_photo(ready):
    path = first_photo(ready, "val")
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)


def no_tags(ready):
    Path(load_config(ready).data.tags).unlink()


def no_masks(ready):
    path = Path(load_config(ready).data.val_annotations)
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))


def masks_of_another_size(ready):
    path = Path(load_config(ready).data.val_annotations)
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"]["size"] = [3, 3]
    path.write_text(json.dumps(content))


def one_without_proposals(ready):
    store = Store.open(RunPaths(load_config(ready)).proposals("train"), "regions")
    store.path("train_0002.jpg").unlink()


def damaged_proposals(ready):
    store = Store.open(RunPaths(load_config(ready)).proposals("val"), "regions")
    next(store.root.glob("*.npz")).write_bytes(b"PK no more")


def proposals_of_another_photo(ready):
    store = Store.open(RunPaths(load_config(ready)).proposals("train"), "regions")
    write_regions(store, "train_0002.jpg", (7, 7))


def foreign_proposals(ready):
    path = RunPaths(load_config(ready)).proposals("train") / "manifest.json"
    path.write_text(json.dumps({"format": 1, "kind": "clusters", "provenance": {}}))


def labels_of_other_proposals(ready):
    store = Store.open(RunPaths(load_config(ready)).first_labels, "clusters")
    store.save("train_0001.jpg", class_ids=np.array([1]), cluster=np.array([1]))


def labels_of_other_classes(ready):
    store = Store.open(RunPaths(load_config(ready)).first_labels, "clusters")
    store.save("train_0001.jpg", class_ids=np.array([6, 0]), cluster=np.array([1, 2]))


def no_checkpoint(ready):
    RunPaths(load_config(ready)).checkpoint.unlink()


GAPS = [
    (missing_photo, "tags and list of train", "missing", "no photo 'train_0001.jpg'"),
    (text_for_a_photo, "tags and list of train", "damaged", "not a readable photo"),
    (turned_photo, "tags and list of val", "damaged", "another size than its annotation says"),
    (no_tags, "tags and list of train", "missing", "no such tag file"),
    (no_masks, "masks of val", "damaged", "without a mask"),
    (masks_of_another_size, "masks of val", "damaged", "another size than the photo"),
    (one_without_proposals, "proposals of train", "missing", "1 of 4 images have none"),
    (damaged_proposals, "proposals of val", "damaged", "1 of 2 opened are damaged"),
    (proposals_of_another_photo, "proposals of train", "damaged", "do not fit"),
    (foreign_proposals, "proposals of train", "damaged", "another kind of artefact"),
    (labels_of_other_proposals, "first labels", "damaged", "for other proposals"),
    (labels_of_other_classes, "first labels", "damaged", "unknown class"),
    (no_checkpoint, "trained CIM", "missing", "final.pth"),
]


@pytest.mark.parametrize(("damage", "what", "state", "detail"), GAPS)
def test_gap(ready, damage, what, state, detail):
    damage(ready)
    found = blocking(load_config(ready))
    assert found[what].state == state
    assert detail in found[what].detail
    assert found[what].fix


def test_only_deep_decodes_photos(ready):
    path = first_photo(ready)
    path.write_bytes(path.read_bytes()[:-800])
    assert not blocking(load_config(ready))
    found = blocking(load_config(ready), how=Thoroughness(deep=True))
    assert "1 damaged" in found["photos of train"].detail


def test_several_bad_photos_are_counted(ready):
    for name in ("train_0001.jpg", "train_0003.jpg"):
        (Path(load_config(ready).data.images) / name).write_text("not a photo")
    assert "2 photos cannot be used" in blocking(load_config(ready))["tags and list of train"].detail


def test_published_tree(demo, tmp_path):
    root = tmp_path / "VOC2012"
    shutil.copytree(demo / "VOC2012", root)
    values = {"dataset": "voc", "root": str(root), "train_split": "trainaug", "eval_split": "val"}
    config = Config(work_dir=str(tmp_path / "run"), data=values)
    assert "photos of voc trainaug" not in blocking(config)
    next((root / "JPEGImages").iterdir()).unlink()
    shutil.rmtree(root / "annotations")
    (root / "annotations").mkdir()
    found = blocking(config)
    assert found["tags and list of trainaug"].state == "missing"
    assert found["tags and list of trainaug"].fix.startswith("cim voc")


def test_missing_photos_of_the_published_tree_are_counted(demo, tmp_path):
    root = tmp_path / "VOC2012"
    shutil.copytree(demo / "VOC2012", root)
    for path in sorted((root / "JPEGImages").iterdir())[:3]:
        path.unlink()
    values = {"dataset": "voc", "root": str(root), "train_split": "trainaug", "eval_split": "val"}
    found = blocking(Config(work_dir=str(tmp_path / "run"), data=values))["photos of voc trainaug"]
    assert (found.state, found.detail[:17]) == ("missing", "3 of 4 missing, 0")


def test_unknown_config_is_told_in_one_line(capsys):
    assert run(lambda: MAIN("nowhere.yaml")) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_the_config_may_be_an_option_and_must_be_given(capsys):
    from doors import run_tool

    assert run_tool("check_data") == 2
    assert capsys.readouterr().err.startswith("error: no config given")
    assert run_tool("check_data", "--config", "no_such_config") == 2
    assert "no such config" in capsys.readouterr().err
