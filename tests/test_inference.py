"""Scores against passes done one by one, the stage's resuming, and the tools from photos to metrics."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doors import run_tool
from small_run import CLASSES, save_network, small_config

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.engine import distributed
from cim.inference.detections import (
    PublishedScores,
    Selection,
    StoredScores,
    detect,
    select_dataset,
    upload_name,
    write_upload,
)
from cim.inference.scores import (
    detection_store,
    find_checkpoint,
    load_trained,
    mirrored,
    score_dataset,
    score_proposals,
)
from cim.inference.selection import select
from cim.storage.published import open_regions
from cim.storage.store import Store
from cim.training.samples import make_sample


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = small_config(tmp_path_factory.mktemp("small"))
    config = load_config(path)
    dataset = build_dataset(config.data, "val")
    return path, config, dataset, open_regions(RunPaths(config).proposals("val"))


def test_scores_are_the_mean_over_passes(run):
    _, config, dataset, source = run
    trained = load_trained(RunPaths(config).checkpoint)
    record, regions = dataset[0], source.load(dataset[0].image_id)
    expected = []
    with torch.no_grad():
        for side in (64, 96):
            for flip in (False, True):  # the slow way: every pass from the photo
                sample = make_sample(record, regions, None, side, flip, 2)
                out = trained.model(sample)
                expected.append(sum(c * i for c, i in zip(out.refine_cls, out.refine_iou)) / len(out.refine_cls))
    expected = torch.stack(expected).mean(0)[:, 1:].numpy()
    photo = read_photo(record.path)
    scores = score_proposals(trained.model, photo, regions, num_classes=2, sides=(64, 96), flip=True)
    assert scores.dtype == np.float32 and scores.std() > 1e-4
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    unflipped = score_proposals(trained.model, photo, regions, num_classes=2, sides=(64,), flip=False)
    assert np.abs(unflipped - scores).max() > 1e-6


def test_mirrored_is_the_flipped_sample(run):
    _, _, dataset, source = run
    record, regions = dataset[1], source.load(dataset[1].image_id)
    ours, slow = (
        mirrored(make_sample(record, regions, None, 90, False, 2)),
        make_sample(record, regions, None, 90, True, 2),
    )
    for name in ("image", "boxes", "grids", "atoms", "members", "proposal"):
        assert torch.equal(getattr(ours, name), getattr(slow, name)), name


def test_capped_and_no_proposals(run):
    _, config, dataset, source = run
    trained = load_trained(RunPaths(config).checkpoint)
    photo = read_photo(dataset[0].path)
    regions = source.load(dataset[0].image_id)
    ranked = RegionSet(regions.atoms, regions.members, np.arange(len(regions), dtype=np.float32))
    scores = score_proposals(trained.model, photo, ranked, num_classes=2, sides=(64,), flip=False, max_proposals=3)
    assert (scores[:-3] == 0).all() and (scores[-3:] > 0).all()
    empty = RegionSet.from_masks(np.zeros((0, *photo.shape[:2]), bool))
    assert score_proposals(trained.model, photo, empty, num_classes=2, sides=(64,), flip=True).shape == (0, 2)


def test_resumes_and_reports_bad_images(run, tmp_path):
    _, config, dataset, source = run
    paths = RunPaths(config)
    trained = load_trained(paths.checkpoint)
    store = detection_store(tmp_path / "d", paths.checkpoint, config.infer, source.provenance)
    broken = replace(dataset[2], path=tmp_path / "nowhere.png")
    partly = replace(dataset, records=(*dataset.records[:2], broken, dataset.records[3]))
    report = score_dataset(trained.model, partly, source, store, config.infer)
    assert report.done == 3 and "missing photo" in report.failed[str(broken.image_id)]
    before = store.path(dataset[0].image_id).stat().st_mtime_ns
    report = score_dataset(trained.model, dataset, source, store, config.infer)
    assert report.done == 1 and not report.failed and store.path(dataset[0].image_id).stat().st_mtime_ns == before
    arrays = store.load(dataset[0].image_id)
    assert arrays["scores"].shape == arrays["mil"].shape == (8, 2)
    np.testing.assert_array_less(arrays["mil"].sum(0), 1.0001)  # det is a softmax over proposals
    save_network(config, tmp_path / "other.pth", seed=1)
    with pytest.raises(CimError, match="made with other settings"):
        detection_store(tmp_path / "d", tmp_path / "other.pth", config.infer, source.provenance)
    store = detection_store(tmp_path / "d", tmp_path / "other.pth", config.infer, source.provenance, overwrite=True)
    assert len(store) == 0
    with pytest.raises(CimError, match=r"made with other settings \(proposals\)"):
        detection_store(tmp_path / "d", tmp_path / "other.pth", config.infer, {"maker": "another"})


def test_processes_share_the_images(run, tmp_path, monkeypatch):
    _, config, dataset, source = run
    paths = RunPaths(config)
    trained = load_trained(paths.checkpoint)
    store = detection_store(tmp_path / "d", paths.checkpoint, config.infer, source.provenance)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "wait", lambda: None)
    for rank, expected in ((1, {1, 3}), (0, {0, 1, 2, 3})):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        score_dataset(trained.model, dataset, source, store, config.infer)
        assert {n for n, record in enumerate(dataset) if store.has(record.image_id)} == expected


def test_detections_of_a_data_set(run, tmp_path):
    _, config, dataset, source = run
    paths = RunPaths(config)
    store = detection_store(tmp_path / "d", paths.checkpoint, config.infer, source.provenance)
    score_dataset(load_trained(paths.checkpoint).model, dataset, source, store, config.infer)
    path = detect(dataset, source, store, tmp_path / "d" / "results.json", Selection(), workers=2)
    results = json.loads(path.read_text())
    expected = 0
    for record in dataset:
        expected += len(select(source.load(record.image_id), store.load(record.image_id)["scores"], record.image_id))
    assert len(results) == expected > 0 and {r["category_id"] for r in results} == {1, 2}
    written = path.stat().st_mtime_ns
    detect(dataset, source, store, path, Selection())
    assert path.stat().st_mtime_ns == written
    detect(dataset, source, store, path, Selection(max_per_image=1))
    assert len(json.loads(path.read_text())) == len(dataset)
    upload = tmp_path / upload_name("test-dev2017")
    assert upload.name == "detections_test-dev2017_cim_results.json"
    write_upload(path, upload)
    assert set(json.loads(upload.read_text())[0]) == {"image_id", "category_id", "segmentation", "score"}
    tagged = list(select_dataset(dataset, source, StoredScores(store), Selection(), tagged_classes_only=True))
    for record, lines in zip(dataset, tagged, strict=True):
        assert {line["category_id"] - 1 for line in lines} == set(record.tags)
    with pytest.raises(CimError, match="other proposals or classes"):
        list(select_dataset(replace(dataset, classes=("a", "b", "c")), source, StoredScores(store), Selection()))


class DyingScores(StoredScores):
    """The first process that asks for image 3 is killed."""

    def load(self, image_id):
        marker = self.store.root.parent / "died"
        if image_id == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(image_id)


def test_a_killed_worker_of_the_selection(run, tmp_path, monkeypatch):
    """One line, no results; the same call makes what an unbroken one makes."""
    _, config, dataset, source = run
    paths = RunPaths(config)
    store = detection_store(tmp_path / "d", paths.checkpoint, config.infer, source.provenance)
    score_dataset(load_trained(paths.checkpoint).model, dataset, source, store, config.infer)
    unbroken = detect(dataset, source, store, tmp_path / "unbroken.json", Selection()).read_bytes()
    monkeypatch.setattr("cim.inference.detections.StoredScores", DyingScores)
    path = tmp_path / "results.json"
    with pytest.raises(CimError, match=r"a worker process was killed.*the same command continues"):
        detect(dataset, source, store, path, Selection(), workers=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "died", "unbroken.json", "unbroken.settings.json"]
    assert detect(dataset, source, store, path, Selection(), workers=2).read_bytes() == unbroken


def test_damaged_detections_are_made_again(run, tmp_path):
    _, config, dataset, source = run
    paths = RunPaths(config)
    store = detection_store(tmp_path / "d", paths.checkpoint, config.infer, source.provenance)
    score_dataset(load_trained(paths.checkpoint).model, dataset, source, store, config.infer)
    path = detect(dataset, source, store, tmp_path / "d" / "results.json", Selection())
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert detect(dataset, source, store, path, Selection()).read_bytes() == whole


def test_published_detections(run, tmp_path):
    _, _, dataset, _ = run
    scores = {r.image_id: np.random.default_rng(r.image_id).random((8, 3)).astype(np.float32) for r in dataset}
    boxes = {f"/home/someone/{k:012d}.jpg": {"boxes": np.zeros((8, 4)), "scores": s} for k, s in scores.items()}
    path = tmp_path / "detections.pkl"
    path.write_bytes(pickle.dumps({"all_boxes": boxes}, protocol=4))
    published = PublishedScores(path, 2)
    np.testing.assert_array_equal(published.load(3), scores[3][:, 1:])
    with pytest.raises(CimError, match="no detections of image 99"):
        published.load(99)
    with pytest.raises(CimError, match="scores of image 3"):
        PublishedScores(path, 7).load(3)
    config_path = run[0]
    assert run_tool("evaluation", config_path, "--detections", path, "--name", "published", "--output", tmp_path) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert list(rows) == ["published"]


def test_tools_from_photos_to_metrics(run, capsys):
    path, config, _, _ = run
    assert run_tool("test", path, "--workers", "1") == 0
    assert run_tool("evaluation", path, "--oracle") == 0
    assert run_tool("evaluation", path, "--branch", "mil", "--nms", "mask", "--name", "WSDDN") == 0
    printed = capsys.readouterr().out
    assert "| oracle | 100.0 | 100.0 | 100.0 | 100.0 |" in printed and "complete" in printed
    work = Path(config.work_dir)
    metrics = json.loads((work / "metrics.json").read_text())
    assert list(metrics["rows"]) == ["CIM", "oracle", "oracle, ranked by IoU", "WSDDN"]
    assert metrics["settings"]["WSDDN"]["selection"]["nms"] == "mask"
    assert {"mAP@0.25", "mAP_present@0.25", "per_class", "subset_multi"} <= metrics["rows"]["CIM"].keys()
    diagnosis = json.loads((work / "diagnosis.json").read_text())["rows"]
    assert diagnosis["oracle"]["ground_truth"]["shares"]["complete"] == 100
    assert (work / "diagnosis.png").is_file()
    results = work / "detections" / "val" / "results.json"
    truth = config.data.val_annotations
    other = work / "elsewhere"
    assert (
        run_tool("evaluation", "--results", results, "--annotations", truth, "--output", other, "--name", "file") == 0
    )
    again = json.loads((other / "metrics.json").read_text())["rows"]["file"]
    assert again["mAP@0.50"] == metrics["rows"]["CIM"]["mAP@0.50"]
    assert run_tool("evaluation", path, "--results", results, "--corloc", "--metric", "coco", "--output", other) == 0
    row = json.loads((other / "metrics.json").read_text())["rows"]["results"]
    assert 0 <= row["CorLoc"] <= 100 and "APL" in row and "AP" in row["per_class"][CLASSES[0]]
    options = ["--set", "data.eval_split=train"]  # as if another split were the usual one
    assert run_tool("evaluation", path, "--split", "val", *options) == 0
    rows = json.loads((work / "metrics.json").read_text())["rows"]
    assert rows["CIM"] == metrics["rows"]["CIM"] and rows["CIM (val)"]["mAP@0.50"] == again["mAP@0.50"]


def test_photos_without_proposals_are_left_out_and_counted(tmp_path, caplog):
    """The published flow over a gap, as COB's files have some: every tool goes on, one line tells how many."""
    path = small_config(tmp_path)
    config = load_config(path)
    store = Store.open(RunPaths(config).proposals("val"), "regions")
    store.path(2).unlink()
    labels = ["generate_mask_for_MaskRCNN", path, "--split", "val"]
    for command in (["test", path], ["evaluation", path, "--oracle"], labels):
        caplog.clear()
        assert run_tool(*command) == 0
        assert "1 of 4 images have no" in caplog.text
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert rows["CIM"]["images"] == 4 and rows["oracle"]["mAP@0.25"] == pytest.approx(75, abs=0.5)  # half the boxes
    labels = json.loads((tmp_path / "run" / "pseudo_labels" / "val" / "msrcnn_pseudo_label.json").read_text())
    assert len(labels["images"]) == 4 and {line["image_id"] for line in labels["annotations"]} == {1, 3, 4}
    for image in (1, 3, 4):
        store.path(image).unlink()
    assert run_tool("test", path) == 2


def test_a_split_without_masks_has_no_metrics(run, capsys):
    path, config, _, _ = run
    without = ["--set", f"data.val_tags={config.data.val_annotations}", "data.val_annotations=null"]
    assert run_tool("evaluation", path, "--if-annotated", *without) == 0
    assert "no metrics" in capsys.readouterr().out
    assert run_tool("evaluation", path, *without) == 2


def test_another_checkpoint_has_its_own_folder(run, tmp_path):
    path, config, _, _ = run
    save_network(config, tmp_path / "final.pth", seed=3)
    assert run_tool("test", path, "--checkpoint", tmp_path, "--workers", "1", "--set", "infer.sides=[64]") == 0
    assert run_tool("evaluation", path, "--checkpoint", tmp_path) == 0
    assert (tmp_path / "final_evaluation" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "nowhere.pth"], "no trained network here: nowhere.pth"),
        (["--set", "data.val_annotations=nowhere.json"], "nowhere.json"),
    ],
)
def test_errors_are_one_line(run, argv, message, capsys):
    assert run_tool("test", run[0], *argv) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0] and error[0].startswith("error: ")


def test_nothing_to_evaluate(capsys):
    assert run_tool("evaluation", "--results", "x.json") == 2
    assert "nothing to evaluate" in capsys.readouterr().err


def test_checkpoint_of_other_classes_or_kind(run, tmp_path, capsys):
    path, config, _, _ = run
    state = torch.load(RunPaths(config).checkpoint, weights_only=True)
    state["meta"]["kind"] = "prm"
    torch.save(state, tmp_path / "prm.pth")
    with pytest.raises(CimError, match="not a CIM network"):
        load_trained(tmp_path / "prm.pth")
    state["meta"] |= {"kind": "cim", "classes": ["disc", "ring"]}
    torch.save(state, tmp_path / "ring.pth")
    assert run_tool("test", path, "--checkpoint", tmp_path / "ring.pth") == 2
    assert "different classes" in capsys.readouterr().err
    state["meta"]["classes"] = ["a", "b", "c"]
    torch.save(state, tmp_path / "three.pth")
    with pytest.raises(CimError, match="weights do not fit"):
        load_trained(tmp_path / "three.pth")
    assert find_checkpoint(None, RunPaths(config)) == RunPaths(config).checkpoint


def test_both_branches_together_are_their_geometric_mean(tmp_path):
    store = Store.create(tmp_path / "detections", "detections", {})
    arrays = {"scores": np.float32([[0.5, 0.0]]), "mil": np.float32([[0.02, 0.3]])}
    store.save(1, **arrays)
    np.testing.assert_allclose(StoredScores(store, "both").load(1), [[0.1, 0.0]], rtol=1e-6)
    store.save(2, scores=arrays["scores"])
    with pytest.raises(CimError, match="no mil in these detections"):
        StoredScores(store, "both").load(2)
