"""Training that takes its length, its order and its prior from the data: from tagged photos to a checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from doors import call_tool
from test_prm_tools import toy_config

from cim.cli.common import run
from cim.config.build import build_dataset, build_model
from cim.config.loading import save_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.types import Clusters, Sample
from cim.datasets.known import Known
from cim.engine.checkpoints import load_checkpoint
from cim.engine.run_logger import read_log
from cim.mining.losses import Criterion, mil_loss
from cim.mining.miners import CIMMiner
from cim.prm.train import train_prm
from cim.storage.published import open_clusters, open_regions
from cim.storage.store import Store
from cim.training.held_out import ImageLabelLosses
from cim.training.kept import cached_pooled, calibrate, pools
from cim.training.samples import overlaps_of
from cim.training.source import CIMSource
from cim.training.train import check_cim, schedule_of, train_cim


@pytest.fixture
def config(tmp_path: Path) -> Config:
    values = toy_config(tmp_path, fit="converge", frozen_trunk=True, train_norms=False).model_dump()
    values["assign"] |= {"peak_rule": "relative", "background": "rest", "evidence": True, "mean_mask_threshold": 0.3}
    values["model"] = {"backbone": "mobilenet_v2_d16", "weights": "none", "freeze": "all", "head": "region_pool"}
    values["model"] |= {"hidden": 16, "axes": (8, 8, 8)}
    values["loss"] |= {"evidence": 2.0, "stable": True}
    values["train"] |= {"epochs": 2, "visits": 4, "least_updates": 3, "balance": 0.5, "cache_features": True}
    values["train"] |= {"flip": False, "sides": (64,)}
    return Config(**values)


@pytest.fixture
def labelled(config: Config, tmp_path: Path) -> Config:
    save_config(config, tmp_path / "toy.yaml")
    train_prm(config)
    arguments = [str(tmp_path / "toy.yaml"), "--workers", "1"]
    assert run(lambda: call_tool("pre/AGPL_label_assign", *arguments)) == 0
    return config


def test_first_labels_come_with_evidence_for_every_tag(labelled: Config):
    clusters = open_clusters(Path(labelled.work_dir) / "first_labels")
    for record in build_dataset(labelled.data, "train"):
        found = clusters.load(record.image_id)
        assert found.evidence is not None and found.evidence.shape == (len(found), 3)
        assert (found.class_ids >= 0).all()  # the rest is background
        for tag in record.tags:
            assert (found.class_ids == tag + 1).any()
            assert found.evidence[:, tag + 1].max() == 1
        others = [c for c in range(3) if c - 1 not in record.tags]
        assert (found.evidence[:, others] == 1).all()


def test_peaks_without_maps_are_told(labelled: Config, tmp_path: Path, capsys):
    store = Store.open(Path(labelled.work_dir) / "peaks" / "train", "peaks")
    arrays = store.load("p0.png")
    store.save("p0.png", **{name: arrays[name] for name in ("peaks", "values", "grid")})
    Store.open(Path(labelled.work_dir) / "first_labels", "clusters").path("p0.png").unlink()
    assert run(lambda: call_tool("pre/AGPL_label_assign", str(tmp_path / "toy.yaml"), "--workers", "1")) == 2


def test_peaks_of_other_tags_are_told(labelled: Config, tmp_path: Path, caplog):
    """Of a version that did not write down which tags they were made for."""
    store = Store.open(Path(labelled.work_dir) / "peaks" / "train", "peaks")
    arrays = store.load("p0.png")
    store.save("p0.png", **arrays | {"maps": np.repeat(arrays["maps"], 2, 0)})
    Store.open(Path(labelled.work_dir) / "first_labels", "clusters").path("p0.png").unlink()
    assert run(lambda: call_tool("pre/AGPL_label_assign", str(tmp_path / "toy.yaml"), "--workers", "1")) == 2
    assert "peaks made for other tags" in caplog.text


def test_trains_as_long_as_the_rule_says_and_goes_on_where_it_stopped(labelled: Config):
    final = train_cim(labelled)
    signature = load_checkpoint(final)["meta"]["signature"]
    assert signature["schedule"]["updates"] == 6  # 2 rounds of 6 photos, 2 at a time
    assert signature["schedule"]["steps"] == [4]
    assert signature["images"] == 6  # balanced already
    assert train_cim(labelled) == final


def test_fixed_updates_stay_fixed(config: Config):
    fixed = config.train.model_copy(update={"epochs": None, "updates": 45000, "step": (30000,)})
    schedule = schedule_of(fixed, [(0,), (1,)])
    assert (schedule.updates, schedule.steps) == (45000, (30000,))


def source_of(config: Config) -> CIMSource:
    regions = open_regions(Path(config.data.proposals))
    return CIMSource(build_dataset(config.data, "train"), regions, None, (64,), False, 100)


def test_what_the_head_reads_is_kept_and_gives_the_same_scores(config: Config):
    torch.manual_seed(0)
    model, source, device = build_model(config, 2), source_of(config), torch.device("cpu")
    assert pools(config)
    calibrate(model, source, device)
    cache = cached_pooled(config, model, source, device)
    model.eval()
    fresh = source.sample_at(1, 64, False)
    known = replace(source, pooled=cache, max_proposals=5).sample_at(1, 64, False)
    rows = known.proposal
    assert len(rows) == 5 and known.pooled.dtype == torch.float16
    with torch.no_grad():
        pooled = model.roi_head.pooled(model.features_of(fresh), fresh)
        scores = model(replace(fresh, pooled=pooled.half()))
        torch.testing.assert_close(known.pooled, pooled.half()[rows])
        torch.testing.assert_close(model(fresh).cls, scores.cls, atol=5e-3, rtol=0)
    path = cache.store.path("p0.png")
    before = path.stat().st_mtime_ns
    cached_pooled(config, model, source, device)
    assert path.stat().st_mtime_ns == before  # what is there stays
    with pytest.raises(CimError, match="other proposals"):
        cache.load("p0.png", 99)
    other = config.model_copy(update={"model": config.model.model_copy(update={"axes": (4, 4, 4)})})
    with pytest.raises(CimError, match="other settings"):
        cached_pooled(other, model, source, device)


def filled(config: Config) -> CIMSource:
    """A source with first labels whose pooled features are kept."""
    torch.manual_seed(0)
    model, source, device = build_model(config, 2), source_of(config), torch.device("cpu")
    source = replace(source, clusters=open_clusters(Path(config.work_dir) / "first_labels"))
    calibrate(model, source, device)
    return replace(source, pooled=cached_pooled(config, model, source, device))


def test_training_does_without_photos_and_label_maps(labelled: Config, monkeypatch):
    source = filled(labelled)
    whole = [source.sample_at(index, 64, False) for index in range(len(source))]
    monkeypatch.setattr("cim.training.samples.read_photo", None)  # nobody calls it
    for index, wanted in enumerate(whole):
        found = source.sample(index, np.random.default_rng(0))
        assert found.image_id == wanted.image_id and not found.image.numel() and not found.atoms.numel()
        for name in ("members", "atom_areas", "proposal", "tags", "class_ids", "cluster", "evidence", "pooled"):
            ours, theirs = getattr(found, name), getattr(wanted, name)
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
        assert found.told is None and wanted.told is None


def test_photos_are_read_where_what_is_kept_is_not_enough(labelled: Config):
    source = filled(labelled)
    fewer = replace(source, max_proposals=5).sample(0, np.random.default_rng(0))
    assert len(fewer.proposal) == 5 and fewer.image.numel()
    record = source.dataset[0]
    counted = replace(record, known=Known(counts=((record.tags[0], 2),)))
    told = replace(source, dataset=replace(source.dataset, records=(counted,)), known="all")
    assert told.sample(0, np.random.default_rng(0)).told is not None
    marked = replace(told, known="marked").sample(0, np.random.default_rng(0))
    assert marked.told is None and not marked.image.numel()
    store = source.pooled.store
    store.save(record.image_id, pooled=store.load(record.image_id)["pooled"])  # as older versions did
    older = source.sample(0, np.random.default_rng(0))
    assert older.image.numel() and torch.equal(older.pooled, source.sample_at(0, 64, False).pooled)
    whole = store.load(source.dataset[1].image_id)
    for wrong in ({"members": whole["members"][:-1]}, {"members": whole["members"][0]}, {"atom_areas": np.ones(3)}):
        store.save(record.image_id, **{**whole, **wrong})
        with pytest.raises(CimError, match="damaged pooled features"):
            source.sample(0, np.random.default_rng(0))
    store.remove(record.image_id)
    with pytest.raises(CimError):
        source.sample(0, np.random.default_rng(0))


def test_with_and_without_photos_training_is_the_same(labelled: Config, tmp_path: Path, monkeypatch):
    quick = load_checkpoint(train_cim(labelled))["model"]
    monkeypatch.setattr(CIMSource, "_kept", lambda *_: None)
    data = labelled.data.model_copy(update={"first_labels": str(Path(labelled.work_dir) / "first_labels")})
    slow = load_checkpoint(train_cim(labelled.model_copy(update={"work_dir": str(tmp_path / "b"), "data": data})))[
        "model"
    ]
    assert all(torch.equal(slow[name], value) for name, value in quick.items())


def test_numbers_without_marks_do_not_steer_training_unless_asked(labelled: Config, tmp_path: Path):
    tags = tmp_path / "counts.csv"
    records = build_dataset(labelled.data, "train")
    lines = [f"{r.path.name},{' '.join(f'{records.classes[tag]}*1' for tag in r.tags)}" for r in records]
    tags.write_text("\n".join(["image,labels", *lines]) + "\n")
    first_labels = str(Path(labelled.work_dir) / "first_labels")

    def trained(name: str, **known: bool) -> Config:
        data = labelled.data.model_copy(update={"tags": str(tags), "first_labels": first_labels})
        changes = {"work_dir": str(tmp_path / name), "data": data, "known": labelled.known.model_copy(update=known)}
        return labelled.model_copy(update=changes)

    plain = load_checkpoint(train_cim(labelled))["model"]
    told = load_checkpoint(train_cim(trained("told")))["model"]
    assert all(torch.equal(told[name], value) for name, value in plain.items())
    mined = load_checkpoint(train_cim(trained("mined", mining_numbers=True)))["model"]
    assert any(not torch.equal(mined[name], value) for name, value in plain.items())
    with pytest.raises(CimError, match="other settings"):
        train_cim(trained("mined"))


def test_held_out_photos_decide_how_long_training_lasts(labelled: Config, tmp_path: Path, monkeypatch):
    def with_share(name: str, share: float) -> Config:
        data = labelled.data.model_copy(update={"first_labels": str(Path(labelled.work_dir) / "first_labels")})
        train = labelled.train.model_copy(update={"held_out": share, "workers": 0, "least_updates": 4})
        return labelled.model_copy(update={"work_dir": str(tmp_path / name), "data": data, "train": train})

    read, falling = list[str](), itertools.count(0, -1)
    sample = CIMSource.sample

    def noted(self: CIMSource, index: int, rng: np.random.Generator) -> Sample | None:
        found = sample(self, index, rng)
        read.append(str(found.image_id))
        return found

    plain = load_checkpoint(train_cim(with_share("plain", 0)))["model"]
    few = load_checkpoint(train_cim(with_share("few", 0.34)))["model"]  # two of six photos say nothing
    assert all(torch.equal(few[name], value) for name, value in plain.items())
    monkeypatch.setattr("cim.training.held_out.FEWEST", 2)
    monkeypatch.setattr(CIMSource, "sample", noted)
    monkeypatch.setattr("cim.training.held_out.ImageLabelLosses.__call__", lambda self, model: [next(falling)] * 2)
    config = with_share("held", 0.34)
    tags = [record.tags for record in build_dataset(config.data, "train")]
    planned = schedule_of(config.train, tags)
    train_cim(config)
    log = read_log(RunPaths(config).train_dir / "log.jsonl")
    updates = 2 * planned.steps[0]  # at the lower rate from then on: their loss, here, always falls
    assert log[-1]["update"] == round(planned.updates * updates / planned.steps[0])
    first = updates * planned.images_per_update
    held = {str(r.image_id) for r in build_dataset(config.data, "train")} - set(read[:first])
    assert len(held) == 2 and held <= set(read[first:])
    check_cim(config, build_dataset(config.data, "train"))
    with pytest.raises(CimError, match="held_out"):
        check_cim(with_share("held", 0.5), build_dataset(config.data, "train"))


def test_losses_of_held_out_photos_are_those_of_the_image_labels(labelled: Config):
    source = filled(labelled)
    torch.manual_seed(0)
    model = build_model(labelled, 2).eval()
    calibrate(model, source, torch.device("cpu"))
    with torch.no_grad():
        found = ImageLabelLosses(source, torch.device("cpu"), True)(model)
        each = [source.sample_at(n, 64, False) for n in range(len(source))]
        wanted = [mil_loss((scores := model(one)).cls, scores.det, one.tags, True) for one in each]
    assert found == pytest.approx(torch.stack(wanted).tolist(), rel=1e-5)


@pytest.mark.parametrize(("number", "again"), [(1, {"p1.png"}), (0, {f"p{n}.png" for n in range(6)})])
def test_a_replaced_photo_is_pooled_again_and_all_if_the_axes_come_from_it(config: Config, monkeypatch, number, again):
    monkeypatch.setattr("cim.training.kept.calibrated_on", lambda images: [0, images - 1])
    torch.manual_seed(0)
    model, source, device = build_model(config, 2), source_of(config), torch.device("cpu")
    calibrate(model, source, device)
    store = cached_pooled(config, model, source, device).store
    before = {record.image_id: store.path(record.image_id).stat().st_mtime_ns for record in source.dataset}
    photo = source.dataset[number].path
    cv2.imwrite(str(photo), cv2.imread(str(photo))[:, ::-1])
    cached_pooled(config, model, source, device)
    assert again == {name for name, time in before.items() if store.path(name).stat().st_mtime_ns != time}


def test_axes_do_not_change_in_the_middle_of_a_training(config: Config):
    model, source, device = build_model(config, 2), source_of(config), torch.device("cpu")
    calibrate(model, source, device)
    cached_pooled(config, model, source, device)
    begun = Path(config.work_dir) / "train" / "checkpoints" / "update_00000002.pth"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"")
    cached_pooled(config, model, source, device)
    photo = source.dataset[0].path
    cv2.imwrite(str(photo), cv2.imread(str(photo))[:, ::-1])
    with pytest.raises(CimError, match="other photos than when this training began"):
        cached_pooled(config, model, source, device)


def test_only_a_frozen_light_head_at_one_size_is_kept(config: Config):
    for changes in ({"flip": True}, {"sides": (64, 96)}, {"cache_features": False}):
        assert not pools(config.model_copy(update={"train": config.train.model_copy(update=changes)}))
    assert not pools(config.model_copy(update={"model": config.model.model_copy(update={"freeze": "none"})}))


def test_an_order_repeats_photos(config: Config):
    source = replace(source_of(config), order=(0, 0, 5))
    rng = np.random.default_rng(0)
    assert [source.sample(n, rng).image_id for n in range(len(source))] == ["p0.png", "p0.png", "p5.png"]


# ---------------------------------------------------------------------- evidence in the losses


def informed(config: Config, evidence: np.ndarray | None, power: float):
    source = source_of(config)
    sample = source.sample_at(0, 64, False)
    rows = len(sample.boxes)
    clusters = Clusters(np.full(rows, -1), np.zeros(rows, np.int64), evidence)
    sample = replace(sample, evidence=None if clusters.evidence is None else torch.from_numpy(clusters.evidence))
    torch.manual_seed(0)
    scores = build_model(config, 2).eval()(sample)
    criterion = Criterion(CIMMiner(anti_noise=False, containment=False), first_labels=False, evidence=power)
    return scores, criterion.informed(scores, sample), criterion(scores, sample, overlaps_of(sample))[0]


def test_evidence_moves_the_instance_scores(config: Config):
    evidence = np.ones((12, 3), np.float32)
    evidence[:, 1] = 0.01
    evidence[4, 1] = 1
    before, after, losses = informed(config, evidence, 2.0)
    assert after.det[:, 1].argmax() == 4
    torch.testing.assert_close(after.det.sum(0), torch.ones(3))
    torch.testing.assert_close(after.det[:, [0, 2]], before.det[:, [0, 2]])
    assert after.cls is before.cls
    sum(losses.values()).backward()


def test_no_evidence_changes_nothing(config: Config):
    for evidence, power in ((None, 2.0), (np.full((12, 3), 0.3, np.float32), 0.0)):
        before, after, _ = informed(config, evidence, power)
        assert after is before
    before, after, _ = informed(config, np.full((12, 3), 0.3, np.float32), 2.0)  # alike for all
    torch.testing.assert_close(after.det, before.det)


def test_evidence_of_another_length_is_refused():
    with pytest.raises(ValueError, match="share one length"):
        Clusters(np.zeros(3, np.int64), np.zeros(3, np.int64), np.ones((2, 4), np.float32))
