"""CIM training end to end on a handful of toy photos, and every bad input it has to tell."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import doors
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from toy_photos import CLASSES, make_photos

from cim.config.build import build_dataset, proposer_options
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.engine.fit import load_checkpoint
from cim.engine.run_logger import read_log
from cim.models.backbones import Backbone
from cim.proposals.options import provenance
from cim.storage.store import Store
from cim.training.artefacts import missing_stages, open_artefacts
from cim.training.source import CIMSource
from cim.training.train import train_cim

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_photos(tmp_path)


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch) -> None:
    """Two convolutions instead of a real trunk, whose random layers would let no colour through."""

    def build(name, weights=None, *, freeze="published") -> Backbone:
        layers = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 16, 2, 2), nn.ReLU())
        return Backbone(layers, 8, 16)

    monkeypatch.setattr("cim.config.build.build_backbone", build)


def source_of(config: Config) -> CIMSource:
    dataset = build_dataset(config.data, config.data.train_split)
    return CIMSource(dataset, *open_artefacts(config), config.train.sides, True, config.train.max_proposals)


def run_tool(*arguments: object) -> int:
    return doors.run_tool("train", *arguments)


def test_tool_end_to_end(config: Config, tmp_path: Path, capsys):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run_tool(path, "--set", "train.log_every=1") == 2  # unknown key
    assert "unknown setting train.log_every" in capsys.readouterr().err
    assert run_tool(path) == 0
    final = tmp_path / "run" / "train" / "final.pth"
    assert capsys.readouterr().out.strip() == str(final)
    meta = load_checkpoint(final)["meta"]
    assert meta["kind"] == "cim" and tuple(meta["classes"]) == CLASSES
    (line, *_) = read_log(final.parent / "log.jsonl")[-1:]
    assert {"mil", "pcl", "cls0", "iou0", "bag0"} <= set(line["losses"])
    assert {"seeds0", "mined0", "labelled0"} <= set(line["diagnostics"])
    pictures = sorted((final.parent / "pictures").glob("mined_*.png"))
    assert [p.name for p in pictures] == ["mined_00000002.png", "mined_00000004.png"]
    assert Image.open(pictures[0]).size == (4 * (64 + 4), 48)


def test_error_is_one_line_and_exit_code_2(tmp_path: Path, capsys):
    assert run_tool(tmp_path / "no.yaml") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_stopped_and_continued_is_the_same(config: Config, tmp_path: Path, monkeypatch):
    whole = load_checkpoint(train_cim(config))["model"]
    broken = config.model_copy(update={"work_dir": str(tmp_path / "broken")})
    count = 0
    original = CIMSource.sample

    def fail(self, index, rng):
        nonlocal count
        count += 1
        if count == 6:
            raise MemoryError
        return original(self, index, rng)

    monkeypatch.setattr(CIMSource, "sample", fail)
    with pytest.raises(MemoryError):
        train_cim(broken)
    again = load_checkpoint(train_cim(broken))["model"]
    assert all(torch.equal(again[k], whole[k]) for k in whole)


def test_learns_the_toy(config: Config):
    train = config.train.model_copy(
        update={"updates": 60, "step": (), "lr": 0.005, "clip_grad": 5.0, "picture_every": 0}
    )
    final = train_cim(config.model_copy(update={"train": train}))
    log = read_log(final.parent / "log.jsonl")
    assert log[-1]["losses"]["pcl"] < 0.7 * log[0]["losses"]["pcl"]


def test_source_draws_sides_and_flips(config: Config):
    source = source_of(config)
    samples = [source.sample(0, np.random.default_rng(seed)) for seed in range(20)]
    assert {s.image.shape[2] for s in samples} == {64, 96}
    assert len({s.image.numpy().tobytes() for s in samples}) == 4
    assert all(len(s.boxes) == 10 for s in samples)  # 12 proposals, cap 10
    again = source.sample(0, np.random.default_rng(3))
    assert torch.equal(again.image, samples[3].image) and torch.equal(again.proposal, samples[3].proposal)


def test_images_without_proposals_or_tags_are_skipped(config: Config, tmp_path: Path, caplog, monkeypatch):
    regions = Store.open(tmp_path / "regions", "regions")
    regions.path("p0.png").unlink()
    regions.save_regions("p1.png", RegionSet(np.zeros((48, 64), np.int32), np.zeros((0, 1), bool)))
    dataset = build_dataset(config.data, "train")
    records = tuple(replace(r, tags=() if r.image_id == "p2.png" else r.tags) for r in dataset)
    monkeypatch.setattr("cim.training.train.build_dataset", lambda *_: replace(dataset, records=records))
    Store.open(tmp_path / "labels", "clusters").path("p3.png").unlink()
    source = replace(source_of(config), dataset=replace(dataset, records=records))
    assert [source.sample(i, np.random.default_rng(0)) is None for i in range(6)] == [True] * 3 + [False] * 3
    with caplog.at_level(logging.INFO):
        final = train_cim(config)
    for part in ("1 without tags", "1 without proposals", "4 usable", "1 without first labels"):
        assert part in caplog.text
    assert sum(line["skipped"] for line in read_log(final.parent / "log.jsonl")) > 0


def test_missing_artefacts_name_their_command(config: Config, tmp_path: Path):
    assert missing_stages(config) == []
    Store.open(tmp_path / "labels", "clusters").path("p3.png").unlink()
    assert missing_stages(config) == ["prm", "first_labels"]
    points = config.assign.model_copy(update={"points": str(tmp_path)})
    assert missing_stages(config.model_copy(update={"assign": points})) == ["first_labels"]
    data = config.data.model_copy(update={"first_labels": str(tmp_path / "none")})
    with pytest.raises(CimError, match="cim labels"):
        train_cim(config.model_copy(update={"data": data}))
    data = config.data.model_copy(update={"proposals": str(tmp_path / "none")})
    without = config.model_copy(update={"data": data})
    assert missing_stages(without) == ["proposals", "prm", "first_labels"]
    with pytest.raises(CimError, match="cim proposals"):
        train_cim(without)


def test_gaps_are_filled_in_our_own_proposals_alone(config: Config, tmp_path: Path):
    regions = Store.open(tmp_path / "regions", "regions")
    regions.path("p0.png").unlink()
    assert missing_stages(config) == []  # made by something else: that image is left out
    made = json.loads((regions.root / "manifest.json").read_text())
    made["provenance"] = provenance(proposer_options(config.proposals))
    (regions.root / "manifest.json").write_text(json.dumps(made))
    assert missing_stages(config)[0] == "proposals"


def test_first_labels_of_other_proposals_are_refused(config: Config, tmp_path: Path):
    path = tmp_path / "labels" / "manifest.json"
    made = json.loads(path.read_text())
    made["provenance"] = {"proposals": {"maker": "toy", "source": "elsewhere"}}
    path.write_text(json.dumps(made))
    open_artefacts(config)
    made["provenance"] = {"proposals": {"maker": "COB"}}
    path.write_text(json.dumps(made))
    with pytest.raises(CimError, match="first labels of other proposals"):
        open_artefacts(config)


def test_a_trained_run_with_other_tags_is_refused(config: Config, monkeypatch):
    train_cim(config)
    dataset = build_dataset(config.data, "train")
    records = (replace(dataset[0], tags=(1 - dataset[0].tags[0],)), *dataset.records[1:])
    monkeypatch.setattr("cim.training.train.build_dataset", lambda *_: replace(dataset, records=records))
    with pytest.raises(CimError, match="photos_and_tags"):
        train_cim(config)


def test_published_proposals_are_never_replaced_silently(config: Config, tmp_path: Path, monkeypatch):
    dataset = build_dataset(config.data, "train")
    monkeypatch.setattr("cim.training.artefacts.build_dataset", lambda *_: dataset)
    data = config.data.model_copy(update={"dataset": "voc", "proposals": str(tmp_path / "none")})
    with pytest.raises(CimError, match="cim import"):
        missing_stages(config.model_copy(update={"data": data}))


def test_without_first_labels(config: Config, tmp_path: Path):
    data = config.data.model_copy(update={"first_labels": str(tmp_path / "none")})
    loss = config.loss.model_copy(update={"first_labels": False})
    final = train_cim(config.model_copy(update={"data": data, "loss": loss}))
    assert "pcl" not in read_log(final.parent / "log.jsonl")[-1]["losses"]


def test_other_settings_or_network_are_refused(config: Config):
    train_cim(config)
    mining = config.mining.model_copy(update={"seed_fraction": 0.2})
    with pytest.raises(CimError, match=r"other settings \(settings\).*seed_fraction"):
        train_cim(config.model_copy(update={"mining": mining}))
    model = config.model.model_copy(update={"hidden": 24})
    with pytest.raises(CimError, match="other settings"):
        train_cim(config.model_copy(update={"model": model}))


def test_class_counts_that_disagree(config: Config, tmp_path: Path):
    labels = Store.open(tmp_path / "labels", "clusters")
    for number in range(6):
        labels.save(f"p{number}.png", class_ids=np.full(12, 7), cluster=np.ones(12, np.int64))
    with pytest.raises(CimError, match="class numbers of image"):
        train_cim(config)


def test_no_usable_image(config: Config, tmp_path: Path):
    for number in range(6):
        Store.open(tmp_path / "regions", "regions").path(f"p{number}.png").unlink()
    with pytest.raises(CimError, match="no image can be used for training"):
        train_cim(config)


def test_cuda_asked_for_but_absent(config: Config):
    if torch.cuda.is_available():
        pytest.skip("CUDA is present")
    with pytest.raises(CimError, match="CUDA"):
        train_cim(config.model_copy(update={"device": "cuda"}))
