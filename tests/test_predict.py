"""Prediction on photos that no data set knows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from doors import run_tool
from PIL import Image
from pycocotools import mask as coco_mask
from small_run import SIZE, small_config

import cim
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.prediction import networks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    checkpoint = RunPaths(load_config(small_config(folder))).checkpoint
    return folder / "photos", checkpoint


@pytest.fixture(scope="module")
def model(run):
    return cim.load_model(run[1], device="cpu")


def four_masks() -> np.ndarray:
    masks = np.zeros((4, *SIZE), bool)
    masks[0, 5:20, 5:30], masks[1, 25:40, 30:60], masks[2, 5:12, 5:30], masks[3] = True, True, True, True
    return masks


def test_result_holds_together(run, model):
    photo = run[0] / "000.png"
    result = model.predict(photo, regions=four_masks(), score_threshold=0.0)
    count = len(result)
    assert count > 1 and result.masks.shape == (count, *SIZE) and result.masks.dtype == bool
    assert result.boxes.shape == (count, 4) and len(result.labels) == count and set(result.labels) <= {"disc", "box"}
    assert (np.diff(result.scores) <= 0).all()
    for mask, proposal in zip(result.masks, result.instances.proposal, strict=True):
        assert np.array_equal(mask, four_masks()[proposal])
    lines = json.loads(json.dumps(result.to_coco(7)))
    assert [line["score"] for line in lines] == pytest.approx(result.scores.tolist())
    assert all(line["image_id"] == 7 and line["area"] == coco_mask.area(line["segmentation"]) for line in lines)
    assert [line["category_id"] for line in lines] == [("disc", "box").index(name) + 1 for name in result.labels]
    overlay = result.overlay()
    assert overlay.shape == result.image.shape and overlay.dtype == np.uint8 and (overlay != result.image).any()


def test_all_kinds_of_photo_agree(run, model):
    path = run[0] / "001.png"
    arguments = {"regions": RegionSet.from_masks(four_masks()), "score_threshold": 0.0}
    first = model.predict(path, **arguments)
    for image in (str(path), read_photo(path), Image.open(path)):
        again = model.predict(image, **arguments)
        np.testing.assert_allclose(again.scores, first.scores, rtol=1e-5)
    assert len(model.predict(read_photo(path)[:, :, 0], **arguments)) > 0


def test_tags_and_threshold(run, model):
    path = run[0] / "001.png"
    everything = model.predict(path, regions=four_masks(), score_threshold=0.0)
    for tags in (["box"], [1], "box"):
        some = model.predict(path, tags=tags, regions=four_masks(), score_threshold=0.0)
        assert set(some.labels) == {"box"} and len(some) == everything.labels.count("box")
    limit = float(everything.scores[1])
    assert len(model.predict(path, regions=four_masks(), score_threshold=limit)) < len(everything)
    nothing = model.predict(path, regions=four_masks(), score_threshold=2.0)
    assert len(nothing) == 0 and nothing.masks.shape == (0, *SIZE) and nothing.to_coco() == []
    assert np.array_equal(nothing.overlay(), nothing.image)
    assert len(model.predict(path, regions=np.zeros((0, *SIZE), bool))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "nowhere.jpg"}, "missing photo"),
        ({"image": np.zeros((5, 6, 4), np.uint8)}, "not a photo"),
        ({"image": np.zeros((5, 6, 3))}, "not a photo"),
        ({"image": np.zeros((*SIZE, 3), np.uint8), "tags": ["cat"]}, "unknown class; expected one of disc, box"),
        ({"image": np.zeros((*SIZE, 3), np.uint8), "tags": [2]}, "unknown class"),
        ({"image": np.zeros((9, 9, 3), np.uint8), "regions": four_masks()}, "another size"),
        ({"image": np.zeros((*SIZE, 3), np.uint8), "regions": np.zeros(SIZE)}, "not proposals"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(CimError, match=message):
        model.predict(**arguments)


def test_bad_checkpoints(run, tmp_path):
    with pytest.raises(CimError, match="no checkpoint here"):
        cim.load_model(tmp_path)
    state = torch.load(run[1], weights_only=True)
    state["meta"]["kind"] = "prm"
    torch.save(state, tmp_path / "prm.pth")
    with pytest.raises(CimError, match="not a network that finds instances"):
        cim.load_model(tmp_path / "prm.pth")
    assert cim.load_model(run[1].parent.parent, "cpu").classes == ("disc", "box")


def test_built_in_proposals(run, model):
    result = model.predict(run[0] / "000.png", score_threshold=0.0)
    assert len(result) > 0 and result.masks.any((1, 2)).all()
    prompted = Config(name="n", work_dir="w", proposals={"method": "sam", "prompts": "peaks"})
    with pytest.raises(CimError, match="no response network, whose peaks say where to look"):
        networks.make_proposer(prompted, torch.device("cpu"))


def test_weights_that_have_moved(run, monkeypatch):
    used = []
    monkeypatch.setattr(networks, "open_proposer", lambda settings, _: used.append(settings.weights) or four_regions)
    cim.load_model(run[1], "cpu", weights="elsewhere.pth").predict(run[0] / "000.png")
    assert used == ["elsewhere.pth"]


def four_regions(photo: np.ndarray) -> RegionSet:
    return RegionSet.from_masks(four_masks())


def test_tool(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "open_proposer", lambda *_: lambda photo: RegionSet.from_masks(four_masks()))
    folder = tmp_path / "holiday"
    folder.mkdir()
    for name in ("000.png", "001.png"):
        (folder / name).write_bytes((run[0] / name).read_bytes())
    (folder / "broken.jpg").write_text("no photo")
    options = ["--checkpoint", str(run[1]), "--output", str(tmp_path / "out"), "--score-threshold", "0.01"]
    assert run_tool("predict", str(folder), *options, "--device", "cpu") == 2
    printed = capsys.readouterr()
    assert "on 2 photos" in printed.out
    skipped = [line for line in printed.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 1 and "broken.jpg" in skipped[0]
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [i["file_name"] for i in content["images"]] == [str(folder / n) for n in ("000.png", "001.png")]
    assert [c["name"] for c in content["categories"]] == ["disc", "box"] and content["annotations"]
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    overlays = sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir())
    assert overlays == ["00001_000.jpg", "00002_001.jpg"]
    assert run_tool("predict", str(folder / "000.png"), *options, "--tags", "disc", "--no-overlays") == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {a["category_id"] for a in content["annotations"]} <= {1} and len(content["images"]) == 1


def test_tool_errors(run, tmp_path, capsys):
    assert run_tool("predict", str(tmp_path), "--checkpoint", str(run[1])) == 2
    assert "no photos here" in capsys.readouterr().err
    assert run_tool("predict", str(tmp_path / "x.jpg"), "--checkpoint", str(run[1])) == 2
    assert "no such photo or folder" in capsys.readouterr().err
    assert run_tool("predict", str(tmp_path / "*.jpg"), "--checkpoint", str(run[1])) == 2
    assert "no photos here" in capsys.readouterr().err


def test_tool_tells_of_each_photo_as_soon_as_it_is_done(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "open_proposer", lambda *_: four_regions)
    tags = tmp_path / "tags.csv"
    tags.write_text("image,labels\n000.png,box\n001.png,\n002.png,disc box\n003.png,disc*2 !box\n")
    options = ["--checkpoint", run[1], "--output", tmp_path / "out", "--score-threshold", 0, "--no-overlays"]
    assert run_tool("predict", run[0] / "*.png", *options, "--tags-file", tags, "--jsonl", "--batch", 3) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["photo"] for line in lines] == [str(run[0] / f"{n:03d}.png") for n in range(4)]
    labels = [{found["label"] for found in line["instances"]} for line in lines]
    assert labels[0] == {"box"} and labels[1] == set() and labels[3] == {"disc"}
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    told = [{**found, "height": line["height"]} for line in lines for found in line["instances"]]
    assert [found["segmentation"] for found in told] == [a["segmentation"] for a in content["annotations"]]
    assert "4 photos" in printed.err and not (tmp_path / "out" / "overlays").exists()
    tags.write_text("image,labels\n000.png,box\n")
    assert run_tool("predict", run[0], *options, "--tags-file", tags) == 2
    assert "no tags for this photo" in capsys.readouterr().err
