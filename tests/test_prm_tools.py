"""The response network's tools from end to end, on drawn photos, and the retrieval of PRM."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from doors import call_tool
from PIL import Image
from torch import nn
from toy_photos import H, W, make_photos

from cim.cli.common import run
from cim.config.build import build_dataset
from cim.config.loading import save_config
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.inference.retrieval import Retrieval, contour_sums, proposal_values, retrieve
from cim.prm.assign import assign_from_peaks, assign_from_points
from cim.prm.first_labels import load_peaks
from cim.prm.network import Peaks, ResponseNet, class_scores, load_response_net
from cim.prm.photos import PhotoSource
from cim.prm.train import average_precision, prm_step, tag_metrics, train_prm
from cim.storage.published import open_clusters
from cim.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent


def toy_config(root: Path, **prm) -> Config:
    config = make_photos(root)
    small = {
        "backbone": "mobilenet_v2",
        "weights": "none",
        "image_size": 64,
        "batch_size": 3,
        "epochs": 2,
        "workers": 0,
    }
    settings = config.model_dump()
    settings["prm"] |= {**small, **prm}
    settings["data"] |= {"first_labels": None, "val_images": settings["data"]["images"]}
    settings["data"] |= {"val_tags": settings["data"]["tags"], "val_proposals": settings["data"]["proposals"]}
    return Config(**settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config, its yaml file) with a response network trained by the tool."""
    root = tmp_path_factory.mktemp("toy")
    config = toy_config(root)
    save_config(config, root / "toy.yaml")
    assert run(lambda: call_tool("train_prm", str(root / "toy.yaml"))) == 0
    return config, root / "toy.yaml"


# ---------------------------------------------------------------------- training


def test_training_leaves_a_network_and_metrics(trained):
    config, yaml = trained
    folder = Path(config.work_dir) / "prm"
    net = load_response_net(folder / "final.pth", 2)
    assert net.classes == ("box", "disc")
    assert not net.training
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == 6
    assert set(metrics["average_precision"]) == {"box", "disc"}
    before = (folder / "final.pth").stat().st_mtime_ns
    assert call_tool("train_prm", str(yaml)) is None
    assert (folder / "final.pth").stat().st_mtime_ns == before


def test_a_frozen_trunk_trains_the_same_with_and_without_its_cache(tmp_path):
    heads = {}
    for name, size in (("cached", 1.0), ("plain", 0.0)):
        config = toy_config(tmp_path / name, frozen_trunk=True, flip=False, feature_cache_gb=size)
        state = torch.load(train_prm(config), weights_only=True)["model"]
        heads[name] = state["head.weight"]
        assert not list((tmp_path / name / "run" / "prm").glob("*features*"))
    torch.testing.assert_close(heads["cached"], heads["plain"], atol=1e-4, rtol=1e-3)


def test_the_step_learns_the_tags_of_coloured_shapes(tmp_path):
    config = toy_config(tmp_path)
    source = PhotoSource(build_dataset(config.data, "train"), 64)
    samples = [source.sample(index, np.random.default_rng(0)) for index in range(6)]
    torch.manual_seed(0)
    net = ResponseNet(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU()), 8, 2, upsample=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        losses, found = prm_step(net, samples, torch.Generator())
        optimizer.zero_grad()
        losses["tags"].backward()
        optimizer.step()
    assert float(losses["tags"].detach()) < 0.1
    assert float(found["tag_agreement"]) == 1.0  # red boxes against blue discs


def test_a_data_set_without_tags_is_refused(trained, capsys):
    _, yaml = trained
    code = run(lambda: call_tool("train_prm", str(yaml), "--set", "data.tags=none.csv"))
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_average_precision_by_hand():
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(np.array([1.0]), np.array([False])))
    found = tag_metrics(np.array([[1.0, -1], [-2, 3]]), np.array([[True, False], [True, False]]), ["a", "b"])
    assert found["average_precision"] == {"a": 1.0, "b": None}
    assert found["top_class_correct"] == 0.5
    assert found["exact_tags"] == 0.5


# ---------------------------------------------------------------------- first labels


def test_agpl_labels_exports_and_continues(trained, tmp_path):
    config, yaml = trained
    main = partial(call_tool, "pre/AGPL_label_assign")
    output, pickle = tmp_path / "labels", tmp_path / "labels.pkl"
    arguments = [str(yaml), "--output", str(output), "--peaks", str(tmp_path / "peaks"), "--workers", "1"]
    assert main(*arguments, "--export", str(pickle)) == 0
    ours, published = open_clusters(output), open_clusters(pickle)
    peaks, regions = Store.open(tmp_path / "peaks", "peaks"), Store.open(config.data.proposals, "regions")
    for name in (f"p{i}.png" for i in range(6)):
        expected = assign_from_peaks(regions.load_regions(name), load_peaks(peaks, name))
        for source in (ours, published):
            np.testing.assert_array_equal(source.load(name).class_ids, expected.class_ids)
            np.testing.assert_array_equal(source.load(name).cluster, expected.cluster)
    kept, removed = Store.open(output, "clusters").path("p0.png"), Store.open(output, "clusters").path("p1.png")
    before = kept.stat().st_mtime_ns
    removed.unlink()
    assert main(*arguments) == 0
    assert removed.exists()
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(CimError, match="other settings"):
        main(*arguments, "--set", "assign.iou=0.4")


def test_agpl_leaves_out_photos_without_proposals(trained, tmp_path, caplog):
    config, yaml = trained
    shutil.copytree(config.data.proposals, tmp_path / "regions")
    Store.open(tmp_path / "regions", "regions").path("p2.png").unlink()
    arguments = ["--output", tmp_path / "labels", "--peaks", tmp_path / "peaks", "--proposals", tmp_path / "regions"]
    assert call_tool("pre/AGPL_label_assign", str(yaml), *map(str, arguments), "--workers", "1") == 0
    assert "1 of 6 images have no proposals" in caplog.text and len(Store.open(tmp_path / "labels", "clusters")) == 5


def test_agpl_on_a_folder_without_a_config(trained, tmp_path):
    config, _ = trained
    arguments = ["--dataset", "folder", "--images", config.data.images, "--tags", config.data.tags, "--workers", "1"]
    arguments += ["--proposals", config.data.proposals, "--work-dir", str(tmp_path)]
    arguments += ["--checkpoint", str(Path(config.work_dir) / "prm" / "final.pth")]
    assert call_tool("pre/AGPL_label_assign", *arguments) == 0
    assert len(Store.open(tmp_path / "first_labels", "clusters")) == 6


def test_a_damaged_photo_harms_no_other(tmp_path, trained, capsys, caplog):
    config = toy_config(tmp_path)
    save_config(config, tmp_path / "toy.yaml")
    photo = tmp_path / "photos" / "p2.png"
    photo.write_bytes(photo.read_bytes()[:200])
    checkpoint = str(Path(trained[0].work_dir) / "prm" / "final.pth")
    arguments = [str(tmp_path / "toy.yaml"), "--workers", "1", "--checkpoint", checkpoint]
    assert run(lambda: call_tool("pre/AGPL_label_assign", *arguments)) == 2
    assert "p2.png" in caplog.text
    assert len(Store.open(tmp_path / "run" / "first_labels", "clusters")) == 5


@pytest.mark.parametrize("arguments", [[], ["--dataset", "voc", "--data-root", "nowhere"], ["no_such_config"]])
def test_agpl_errors_are_one_line(arguments, capsys):
    assert run(lambda: call_tool("pre/AGPL_label_assign", *arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_agpl_without_a_trained_network_says_what_to_do(tmp_path, capsys):
    save_config(toy_config(tmp_path), tmp_path / "toy.yaml")
    assert run(lambda: call_tool("pre/AGPL_label_assign", str(tmp_path / "toy.yaml"))) == 2
    assert "cim prm" in capsys.readouterr().err


def test_points_label_with_either_tool(trained, tmp_path):
    config, yaml = trained
    points = tmp_path / "points"
    points.mkdir()
    for number in range(6):
        (points / f"p{number}.txt").write_text(f"{W / 2} {H / 2} {number % 2} 1.0\n")
    for name, extra in (
        ("pre/point_level_label_assign", ["--points", str(points)]),
        ("pre/AGPL_label_assign", ["--set", f"assign.points={points}"]),
    ):
        output = tmp_path / Path(name).stem
        assert call_tool(name, yaml, "--output", output, "--workers", "1", *extra) == 0
        regions = Store.open(config.data.proposals, "regions").load_regions("p1.png")
        expected = assign_from_points(regions, np.array([[W / 2, H / 2, 1]]))
        np.testing.assert_array_equal(open_clusters(output).load("p1.png").class_ids, expected.class_ids)
    with pytest.raises(CimError, match="no points given"):
        call_tool("pre/point_level_label_assign", str(yaml))


# ---------------------------------------------------------------------- retrieval and pictures


def slow_values(masks, maps, peaks, responses, constants):
    """METHOD section 2, last item, on pictures."""
    values = np.full((len(peaks), len(masks)), -np.inf)
    for p, (class_id, _, _) in enumerate(peaks.index):
        size = masks.shape[:0:-1]
        response = cv2.resize(responses[p].astype(np.float64), size)
        response /= response.sum()
        stretched = cv2.resize(maps[class_id].astype(np.float64), size)
        background = stretched < constants.background_factor * stretched.mean()
        for n, mask in enumerate(masks):
            if not constants.smallest <= mask.mean() <= constants.largest:
                continue
            kernel = np.ones((5, 5), np.uint8)
            small = mask.astype(np.uint8)
            contour = cv2.dilate(small, kernel) != cv2.erode(small, kernel)
            values[p, n] = 0.8 * response[mask].sum() + response[contour].sum() - 1e-5 * (background & mask).sum()
    return values


def retrieval_case(seed: int):
    rng = np.random.default_rng(seed)
    masks = np.zeros((9, 40, 60), bool)
    for mask in masks[:-1]:
        y, x = rng.integers(0, 36), rng.integers(0, 56)
        mask[y : y + rng.integers(3, 30), x : x + rng.integers(3, 40)] = True
    masks[-1] = True  # too large
    maps = cv2.GaussianBlur(rng.normal(size=(16, 16, 3)), (5, 5), 2).transpose(2, 0, 1).astype(np.float32)
    peaks = Peaks(np.array([[0, 3, 4], [2, 10, 10], [2, 0, 15]]), np.float32([1, 2, 3]), (16, 16))
    responses = rng.random((3, 32, 32)) ** 8
    return masks, maps, peaks, responses


@pytest.mark.parametrize("seed", range(4))
def test_proposal_values_equal_the_slow_version(seed):
    masks, maps, peaks, responses = retrieval_case(seed)
    found = proposal_values(RegionSet.from_masks(masks), maps, peaks, responses, Retrieval())
    np.testing.assert_allclose(found, slow_values(masks, maps, peaks, responses, Retrieval()), atol=1e-9)
    assert np.isneginf(found[:, -1]).all()


def test_retrieval_takes_the_best_of_each_peak_and_drops_overlaps():
    masks, maps, peaks, responses = retrieval_case(0)
    regions = RegionSet.from_masks(masks)
    values = proposal_values(regions, maps, peaks, responses, Retrieval())
    proposal, class_ids, score = retrieve(regions, maps, peaks, responses)
    best = values.max(1)
    assert score[0] == pytest.approx(best.max())
    assert (np.diff(score) <= 0).all()
    assert class_ids[0] == peaks.index[best.argmax(), 0]
    overlap = regions.iou()[np.ix_(proposal, proposal)]
    assert (overlap[~np.eye(len(proposal), dtype=bool)] <= 0.3).all()
    one, _, _ = retrieve(regions, maps, peaks, responses, Retrieval(nms_iou=-1.0))
    assert len(one) == 1


def test_retrieval_of_nothing():
    masks, maps, peaks, responses = retrieval_case(0)
    none = Peaks(np.zeros((0, 3), np.int64), np.zeros(0, np.float32), (16, 16))
    regions = RegionSet.from_masks(masks)
    for found in (
        retrieve(regions, maps, none, np.zeros((0, 32, 32))),
        retrieve(RegionSet.from_masks(masks[:0]), maps, peaks, responses),
        retrieve(RegionSet.from_masks(masks[-1:]), maps, peaks, responses),
    ):
        assert [len(part) for part in found] == [0, 0, 0]
    assert contour_sums(regions, np.zeros((1, 40, 60)), 5, np.zeros(9, bool)).tolist() == [[0] * 9]


def test_prm_instances_writes_results(trained, tmp_path):
    config, yaml = trained
    output = tmp_path / "results.json"
    assert call_tool("prm_instances", str(yaml), "--use-tags", "--output", str(output)) == 0
    results = json.loads(output.read_text())
    assert {entry["image_id"] for entry in results} <= {f"p{i}.png" for i in range(6)}
    assert results
    assert all(entry["segmentation"]["size"] == [H, W] and entry["category_id"] in (1, 2) for entry in results)
    regions = Store.open(config.data.proposals, "regions")
    first = results[0]
    mask = regions.load_regions(first["image_id"]).masks([first["proposal"]])[0]
    assert first["bbox"][2] == mask.any(0).sum()


def test_pictures_are_drawn(trained, tmp_path):
    _, yaml = trained
    arguments = [str(yaml), "--output", str(tmp_path), "--photos", "p0.png"]
    assert call_tool("prm_pictures", *arguments) is None
    with Image.open(tmp_path / "p0.png") as picture:
        assert picture.width > 4 * W  # four panels
        assert len(picture.getcolors(1 << 20)) > 50
    with pytest.raises(CimError, match="no such photo"):
        call_tool("prm_pictures", str(yaml), "--photos", "nothing.png")


def test_scores_stay_finite_on_a_black_photo(trained):
    net = load_response_net(Path(trained[0].work_dir) / "prm" / "final.pth")
    assert torch.isfinite(class_scores(net(torch.zeros(1, 3, 64, 64)))).all()
