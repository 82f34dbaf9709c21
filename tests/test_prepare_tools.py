"""The preparation tools end to end: published files from .mat files or a region store, resumed, with bad images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from doors import TOOLS, call_tool, command_of, run_tool
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.proposals import published_tree as preparation
from cim.storage.published import open_regions, read_pickle

NAMES = ["generate_7_7_voc", "generate_7_7_coco", "create_cob_iou", "create_cob_asy_iou", "import_proposals"]
VOC = ["2007_000001", "2007_000002", "2007_000003"]
COCO = {"COCO_train2014_000000000009": 9, "COCO_val2014_000000000042": 42, "000000000007": 7}
SIZE = (11, 13)


def call(name: str, *args: object) -> int:
    """Exit code, as the command line would give it."""
    return run_tool(f"pre/{name}", *args, "--workers", "1")


def masks_of(name: str, count: int = 6) -> np.ndarray:
    masks = np.random.default_rng(sum(map(ord, name))).random((count, *SIZE)) > 0.6
    masks[:, 3, 4] = True
    return masks


def save_mat(path: Path, masks: np.ndarray, coco: bool = False) -> None:
    cells = np.empty((len(masks), 1), object)
    for index, mask in enumerate(masks):
        cells[index, 0] = mask.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"maskmat": masks.astype(np.uint8) if coco else cells})


def save_json(path: Path, files: dict[int, str]) -> None:
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in files.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}), encoding="utf-8"
    )


@pytest.fixture
def data(tmp_path) -> Path:
    """A small published tree without photos: the tools need none."""
    root = tmp_path / "data"
    for name in VOC:
        save_mat(root / "VOC2012" / "COB_SBD_trainaug" / f"{name}.mat", masks_of(name))
    save_json(
        root / "VOC2012" / "annotations" / "voc_2012_trainaug.json", {int(n.replace("_", "")): f"{n}.jpg" for n in VOC}
    )
    for name in COCO:
        save_mat(root / "coco2017" / "COB-COCO" / f"{name}.mat", masks_of(name), coco=True)
    save_json(
        root / "coco2017" / "annotations" / "instances_train2017.json", {i: f"{i:012d}.jpg" for i in COCO.values()}
    )
    return root


# ---------------------------------------------------------------------- what the published program wrote


@pytest.mark.parametrize("through_store", [False, True])
def test_tools_reproduce_the_published_program(reference, tmp_path, through_store):
    shutil.copytree(reference / "VOC2012", tmp_path / "VOC2012")
    args = ["--dataset", "voc", "--data-root", tmp_path]
    if through_store:
        assert call("import_proposals", "--from", "mat", *args, "--output", tmp_path / "store") == 0
        shutil.rmtree(tmp_path / "VOC2012" / "COB_SBD_trainaug")
        args += ["--regions", tmp_path / "store"]
    for name in ("generate_7_7_voc", "create_cob_iou", "create_cob_asy_iou"):
        assert call(name, *args) == 0
    expected = np.load(reference / "expected" / "proposals.npz")
    cob = read_pickle(tmp_path / "cob" / "voc_2012_trainaug.pkl")
    assert list(cob) == ["indexes", "masks", "boxes", "scores"]
    assert cob["indexes"] == [2007000100, 2007000104] and all(type(i) is int for i in cob["indexes"])
    for row, name in enumerate(("2007_000100", "2007_000104")):
        assert cob["masks"][row].dtype == bool and cob["boxes"][row].dtype == np.uint16
        np.testing.assert_array_equal(cob["boxes"][row], expected[f"{name}.boxes"])
        assert (cob["masks"][row] != expected[f"{name}.grids"]).mean() <= 0.002
        np.testing.assert_array_equal(cob["scores"][row], np.zeros(200))
        for folder, key in (("cob_iou", "iou"), ("cob_asy_iou", "containment")):
            matrix = read_pickle(tmp_path / folder / "VOC2012" / f"{name}.pkl")
            assert matrix.dtype == np.float16
            np.testing.assert_array_equal(matrix, expected[f"{name}.{key}"])


def test_coco_with_its_three_names(data):
    for name in ("generate_7_7_coco", "create_cob_iou", "create_cob_asy_iou"):
        assert call(name, "--dataset", "coco", "--data-root", data) == 0
    cob = read_pickle(data / "cob" / "coco_2017_train.pkl")
    assert cob["indexes"] == [9, 42, 7]  # the data set's order
    for row, (name, image_id) in enumerate(COCO.items()):
        regions = RegionSet.from_masks(masks_of(name))
        np.testing.assert_array_equal(cob["boxes"][row], regions.boxes)
        np.testing.assert_array_equal(cob["masks"][row], regions.grids)
        iou = read_pickle(data / "cob_iou" / "coco2017" / f"{image_id:012d}.pkl")
        np.testing.assert_array_equal(iou, regions.iou().astype(np.float16))
    proposals = open_regions(data / "cob" / "coco_2017_train.pkl").load(42)
    regions = RegionSet.from_masks(masks_of("COCO_val2014_000000000042"))
    np.testing.assert_allclose(proposals.overlaps().containment, regions.containment(), atol=1e-3)


@pytest.mark.parametrize("root", ["data", "data/VOC2012"])
def test_from_anywhere_by_the_command_line(data, tmp_path, root):
    command = [sys.executable, TOOLS / "pre" / "create_cob_iou.py", "--dataset", "voc", "--data-root", tmp_path / root]
    found = subprocess.run([*command, "--workers", "2"], cwd="/", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(data / "cob_iou" / "VOC2012")
    assert sorted(p.stem for p in (data / "cob_iou" / "VOC2012").iterdir()) == VOC


# ---------------------------------------------------------------------- bad images, kills


def test_a_bad_image_harms_no_other(data, caplog):
    mats = data / "VOC2012" / "COB_SBD_trainaug"
    (mats / f"{VOC[0]}.mat").unlink()
    (mats / f"{VOC[1]}.mat").write_bytes(b"MATLAB")
    for name, output in (("generate_7_7_voc", "cob"), ("create_cob_iou", "cob_iou/VOC2012")):
        caplog.clear()
        assert call(name, "--dataset", "voc", "--data-root", data) == 2
        assert [line for line in caplog.messages if "2007_000001.jpg: no proposals" in line]
        assert [line for line in caplog.messages if "2007_000002.jpg: damaged .mat file" in line]
        assert "2 of 3 failed, the others are done" in caplog.messages
        assert any((data / output).glob("*.pkl"))
    assert read_pickle(data / "cob" / "voc_2012_trainaug.pkl")["indexes"] == [2007000003]
    assert [p.name for p in (data / "cob_iou" / "VOC2012").iterdir()] == ["2007_000003.pkl"]  # nothing half-written

    for name in VOC[:2]:
        save_mat(mats / f"{name}.mat", masks_of(name))
    for name in ("generate_7_7_voc", "create_cob_iou"):
        assert call(name, "--dataset", "voc", "--data-root", data) == 0
    assert read_pickle(data / "cob" / "voc_2012_trainaug.pkl")["indexes"] == [2007000001, 2007000002, 2007000003]
    assert len(list((data / "cob_iou" / "VOC2012").iterdir())) == 3
    assert not (data / "cob" / "voc_2012_trainaug.pkl.parts").exists()


def test_mask_of_another_size_and_without_a_pixel(data, tmp_path, caplog):
    mats = data / "VOC2012" / "COB_SBD_trainaug"
    masks = masks_of(VOC[0])
    masks[2] = False
    save_mat(mats / f"{VOC[0]}.mat", masks)
    save_mat(mats / f"{VOC[1]}.mat", masks_of(VOC[1])[:, 1:])
    args = ["--from", "mat", "--dataset", "voc", "--data-root", data, "--output", tmp_path / "s"]
    assert call("import_proposals", *args) == 2
    assert any("mask 2 of 6" in line for line in caplog.messages)
    assert any("not of the photo's size" in line for line in caplog.messages)
    assert call("import_proposals", *args, "--allow-empty") == 2
    np.testing.assert_array_equal(open_regions(tmp_path / "s").load(2007000001).masks(), masks)


def count_loads(monkeypatch) -> list[str]:
    loaded: list[str] = []
    real: Callable = preparation.Task.load
    monkeypatch.setattr(preparation.Task, "load", lambda task: loaded.append(task.name) or real(task))
    return loaded


@pytest.mark.parametrize("name", ["generate_7_7_voc", "create_cob_iou", "import_proposals"])
def test_a_killed_run_continues(data, monkeypatch, name):
    class Killed(BaseException):
        pass

    def load(task):
        if task.name == VOC[1]:
            raise Killed
        return real(task)

    args = ["--dataset", "voc", "--data-root", data, *(["--from", "mat"] if name == "import_proposals" else [])]
    real = preparation.Task.load
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(preparation.Task, "load", load)
        call(name, *args)
    loaded = count_loads(monkeypatch)
    assert call(name, *args) == 0
    assert loaded == VOC[1:]  # the first was kept
    assert call(name, *args) == 0 and loaded == VOC[1:]  # nothing left to do
    assert call(name, *args, "--overwrite") == 0 and loaded == VOC[1:] + VOC
    assert not list(data.rglob("*.tmp*"))


def test_a_complete_pickle_is_not_replaced_by_one_with_gaps(data):
    args = ["--dataset", "voc", "--data-root", data]
    assert call("generate_7_7_voc", *args) == 0
    before = (data / "cob" / "voc_2012_trainaug.pkl").read_bytes()
    (data / "VOC2012" / "COB_SBD_trainaug" / f"{VOC[0]}.mat").unlink()
    assert call("generate_7_7_voc", *args, "--overwrite") == 2
    assert (data / "cob" / "voc_2012_trainaug.pkl").read_bytes() == before


# ---------------------------------------------------------------------- import


def test_import_keeps_where_proposals_came_from(data, tmp_path):
    args = ["--from", "mat", "--dataset", "voc", "--data-root", data]
    assert call("import_proposals", *args) == 0
    source = open_regions(data / "VOC2012" / "cim" / "proposals" / "trainaug")
    assert source.provenance["maker"] == "COB" and source.provenance["trained_on_masks"] is True
    np.testing.assert_array_equal(source.load(2007000002).masks(), masks_of(VOC[1]))
    args += ["--output", tmp_path / "s", "--maker", "ours", "--trained-on-masks", "false"]
    assert call("import_proposals", *args) == 0
    assert open_regions(tmp_path / "s").provenance["trained_on_masks"] is False
    assert call("import_proposals", *args[:-1], "true") == 2  # never mixed silently


def test_import_of_rle_json(data, tmp_path):
    rows = []
    for name, key in ((VOC[0], 2007000001), (VOC[2], f"{VOC[2]}.jpg")):
        for mask in masks_of(name):
            rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
            rows.append({"image_id": key, "segmentation": {"size": SIZE, "counts": rle["counts"].decode()}, "score": 1})
    (tmp_path / "p.json").write_text(json.dumps(rows))
    args = ["--from", "rle", "--input", tmp_path / "p.json", "--dataset", "voc", "--data-root", data]
    assert call("import_proposals", *args, "--output", tmp_path / "s") == 2  # one image has none
    source = open_regions(tmp_path / "s")
    assert source.provenance == {"source": "rle: p.json", "maker": "unknown", "trained_on_masks": None}
    for name in (VOC[0], VOC[2]):
        regions = source.load(int(name.replace("_", "")))
        np.testing.assert_array_equal(regions.masks(), masks_of(name))
        np.testing.assert_array_equal(regions.scores, np.ones(6))
    assert not source.has(2007000002)


def test_import_of_published_pickle(data, tmp_path):
    for name in ("generate_7_7_voc", "create_cob_iou", "create_cob_asy_iou"):
        assert call(name, "--dataset", "voc", "--data-root", data) == 0
    pickle = data / "cob" / "voc_2012_trainaug.pkl"
    args = ["--from", "pickle", "--input", pickle, "--dataset", "voc", "--data-root", data]
    assert call("import_proposals", *args, "--output", tmp_path / "s") == 0
    stored, published = open_regions(tmp_path / "s"), open_regions(pickle)
    assert stored.provenance["trained_on_masks"] is True
    for image_id in (2007000001, 2007000003):
        one, other = stored.load(image_id), published.load(image_id)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.grids, other.grids)
        np.testing.assert_array_equal(one.overlaps().iou, other.overlaps().iou)


def test_import_for_a_folder_of_photos(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / "dog").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos" / "dog" / f"{name}.png")
        save_mat(tmp_path / "mats" / f"{name}.mat", masks_of(name))
    (tmp_path / "c.yaml").write_text(
        f"work_dir: {tmp_path}/run\ndata: {{dataset: folder, images: {tmp_path}/photos, train_split: train}}\n"
    )
    assert call("import_proposals", "--from", "mat", "--config", tmp_path / "c.yaml", "--input", tmp_path / "mats") == 0
    source = open_regions(tmp_path / "run" / "proposals" / "train")
    np.testing.assert_array_equal(source.load("dog/b.png").masks(), masks_of("b"))


# ---------------------------------------------------------------------- wrong commands


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("create_cob_iou", ["--dataset", "voc", "--split", "test"], "no such VOC split"),
        ("create_cob_iou", ["--dataset", "voc", "--mat-dir", "nowhere"], "no folder of COB files"),
        ("create_cob_asy_iou", ["--dataset", "voc", "--regions", "nowhere"], "no regions here"),
        ("generate_7_7_coco", ["--dataset", "coco", "--split", "val2017"], "val2017"),
        ("import_proposals", ["--from", "mat"], "which data set"),
        ("import_proposals", ["--from", "rle", "--dataset", "voc"], "nothing to import"),
        ("import_proposals", ["--from", "pickle", "--dataset", "voc", "--input", "no.pkl"], "missing file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(data, capsys, name, args, message):
    assert call(name, "--data-root", data, *args) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]


def test_output_that_cannot_be_written(data, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    args = ["--dataset", "voc", "--data-root", data]
    assert call("create_cob_iou", *args, "--output", tmp_path / "file") == 2
    assert any("cannot write" in line for line in caplog.messages)
    assert call("import_proposals", "--from", "mat", *args, "--output", tmp_path / "file") == 2
    assert (tmp_path / "file").read_text() == "in the way"


def test_two_photos_for_one_mat_file(data):
    save_json(data / "VOC2012" / "annotations" / "voc_2012_trainaug.json", {1: "a/x.jpg", 2: "b/x.jpg"})
    tree = preparation.Tree.find("voc", data)
    with pytest.raises(CimError, match="two photos would share one"):
        preparation.tasks_from_mat(tree.open("trainaug"), tree.mat_dir("trainaug"))


@pytest.mark.parametrize("name", NAMES)
def test_help_closes_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        call_tool(f"pre/{name}", "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"cim {command_of(f'pre/{name}')[0]}" in shown.split("example:")[1]
    for option in ("--workers", "--overwrite", "--scheduler", "--data-root", "--split", "--dataset"):
        assert option in shown
