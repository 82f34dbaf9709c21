"""The mean of several runs' scores: against a plain mean, refusals, and the tools around it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from doors import run_tool
from small_run import save_network, small_config

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.inference.averaging import average_scores
from cim.storage.store import Store


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Config file and two run folders that scored the same proposals with different networks."""
    path = small_config(tmp_path_factory.mktemp("mean"))
    config = load_config(path)
    first = RunPaths(config).work_dir
    second = first.with_name("second")
    settings = [f"work_dir={second}", f"data.val_proposals={RunPaths(config).proposals('val')}"]
    save_network(config, RunPaths(load_config(path, settings)).checkpoint, seed=1)
    assert run_tool("test", path, "--workers", 1) == 0
    assert run_tool("test", path, "--workers", 1, "--set", *settings) == 0
    return path, first, second


def test_tool_writes_the_mean_and_its_detections(runs, tmp_path):
    path, first, second = runs
    assert run_tool("average_scores", path, "--runs", first, second, "--output", tmp_path, "--workers", 1) == 0
    stores = [Store.open(root / "detections" / "val", "detections") for root in (first, second, tmp_path)]
    for record in build_dataset(load_config(path).data, "val"):
        a, b, mean = (store.load(record.image_id) for store in stores)
        assert np.abs(a["scores"] - b["scores"]).max() > 1e-4
        for name in ("scores", "mil"):
            np.testing.assert_allclose(mean[name], (a[name] + b[name]) / 2, rtol=1e-6)
            assert mean[name].dtype == np.float32
    results = tmp_path / "detections" / "val" / "results.json"
    assert json.loads(results.read_text())
    assert run_tool("evaluation", path, "--results", results, "--name", "mean of two") == 0
    assert "mean of two" in json.loads(RunPaths(load_config(path)).metrics.read_text())["rows"]


def test_labels_from_mean_scores(runs, tmp_path):
    path, first, second = runs
    arguments = (path, "--runs", first, second, "--output", tmp_path, "--workers", 1)
    assert run_tool("average_scores", *arguments) == 0
    labels = tmp_path / "labels.json"
    scores = ("--scores", tmp_path / "detections" / "val", "--output", labels)
    assert run_tool("generate_mask_for_MaskRCNN", path, "--split", "val", "--workers", 1, *scores) == 0
    assert json.loads(labels.read_text())["info"]["scores"]["mean_of"]


def test_other_proposals_and_missing_images(runs, tmp_path):
    path, first, _ = runs
    records = build_dataset(load_config(path).data, "val").records
    good = Store.open(first / "detections" / "val", "detections")
    bad = Store.create(tmp_path / "bad", "detections", {})
    output = Store.create(tmp_path / "out", "detections", {})
    with pytest.raises(CimError, match="no detections for image"):
        average_scores([good, bad], output, records)
    for record in records:
        bad.save(record.image_id, **{name: values[1:] for name, values in good.load(record.image_id).items()})
    with pytest.raises(CimError, match="scores of other proposals"):
        average_scores([good, bad], output, records)
    assert not len(output)


def test_one_run_is_no_mean(runs, tmp_path, capsys):
    path, first, _ = runs
    assert run_tool("average_scores", path, "--runs", first, "--output", tmp_path) == 2
    assert "two or more --runs" in capsys.readouterr().err
