"""Mask R-CNN on pseudo labels: what it is fed with, its weighted losses, training, detection, and the tools."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import small_run
import torch
import yaml
from doors import TOOLS, run_tool
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss, paste_masks_in_image

from cim import load_model
from cim.cli.learn.refine import judge_difference
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import RefineConfig
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.engine.checkpoints import load_checkpoint
from cim.engine.run_logger import read_log
from cim.evaluation.bootstrap import Difference
from cim.labels.export import NAME, label_path
from cim.mask_rcnn.detect import MaskDetector, load_detector
from cim.mask_rcnn.pixels import mask_boxes, pasted, target_size
from cim.mask_rcnn.scenes import PastedScenes
from cim.mask_rcnn.source import LabelSource, open_labels
from cim.mask_rcnn.train import (
    LabelLosses,
    _fed,
    _param_groups,
    hold_out,
    refine_step,
    schedule_of,
    train_mask_rcnn,
    with_scenes,
)
from cim.models import mask_rcnn
from cim.models.mask_rcnn import BUILDS, UNKNOWN, build_mask_rcnn, weighted_box_losses, weighted_mask_loss

TINY = {"channels": 8, "hidden": 16, "mask_layers": 1, "regions": 16, "before": 50, "after": 20}


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """The light network, lighter still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mask_rcnn.BUILDS, "mobilenet_fpn", dataclasses.replace(BUILDS["mobilenet_fpn"], **TINY))
        yield


@pytest.fixture
def truth(tmp_path):
    return small_run.draw(tmp_path, 4)


def edited(truth, change):
    """The truth file, changed by ``change(content)``."""
    content = json.loads(truth.read_text())
    change(content)
    truth.write_text(json.dumps(content))
    return truth


def opened(truth):
    return open_labels(truth, truth.parent / "photos")


# ---------------------------------------------------------------------- labels to samples


def test_labels_become_samples(truth):
    photos, classes = opened(truth)
    assert classes == small_run.CLASSES and len(photos) == 4
    sample = LabelSource(photos, 96, 128, flip=False).sample(1, np.random.default_rng(0))
    mask = coco_mask.decode(photos[1].rles[0])
    assert sample["image"].shape == (3, 96, 128) and sample["image"].min() >= 0 and sample["image"].max() <= 1
    assert torch.equal(sample["target"]["masks"][0], torch.from_numpy(mask.repeat(2, 0).repeat(2, 1)))
    ys, xs = np.nonzero(mask)
    wanted = [2 * xs.min(), 2 * ys.min(), 2 * xs.max() + 2, 2 * ys.max() + 2]
    assert sample["target"]["boxes"].tolist() == [wanted]
    assert sample["target"]["labels"].tolist() == [2]
    assert "weights" not in sample["target"]


def test_mirrored_sample(truth):
    photos, _ = opened(truth)
    plain = LabelSource(photos, 48, 64, flip=False).sample(0, np.random.default_rng(0))
    source = LabelSource(photos, 48, 64, weighted=True)
    flipped = next(s for s in (source.sample(0, np.random.default_rng(k)) for k in range(20)) if is_flipped(s, plain))
    assert torch.equal(flipped["target"]["masks"], plain["target"]["masks"].flip(-1))
    assert flipped["target"]["boxes"][0, 0] == 64 - plain["target"]["boxes"][0, 2]
    assert flipped["target"]["weights"].tolist() == [1]


def is_flipped(sample, plain) -> bool:
    return torch.equal(sample["image"], plain["image"].flip(-1))


def test_weights_come_from_weight_then_score(truth):
    def change(content):
        content["annotations"][0]["score"] = 0.4
        content["annotations"][1] |= {"score": 0.4, "weight": 0.8}

    photos, _ = opened(edited(truth, change))
    assert [p.weights for p in photos] == [(0.4,), (0.8,), (1.0,), (1.0,)]


def test_crowds_polygons_empty_masks_and_images_without_labels(truth, caplog):
    def change(content):
        lines = content["annotations"]
        lines[0]["iscrowd"] = 1
        lines[1]["segmentation"] = {"size": list(small_run.SIZE), "counts": [small_run.SIZE[0] * small_run.SIZE[1]]}
        lines[2]["segmentation"] = [[5, 5, 25, 5, 25, 20, 5, 20]]
        del lines[3]

    with caplog.at_level("INFO"):
        photos, _ = opened(edited(truth, change))
    assert [p.image_id for p in photos] == [3]
    assert coco_mask.area(photos[0].rles[0]) == 300
    assert "left out: without pixels" in caplog.text
    assert "classes without any label" in caplog.text and "box" in caplog.text


def test_degenerate_boxes_teach_nothing(truth):
    def change(content):
        mask = np.zeros(small_run.SIZE, np.uint8)
        mask[10, 5:40] = 1
        coded = coco_mask.encode(np.asfortranarray(mask))
        content["annotations"][0]["segmentation"] = {"size": coded["size"], "counts": coded["counts"].decode()}

    photos, _ = opened(edited(truth, change))
    assert LabelSource(photos, 48, 64).sample(0, np.random.default_rng(0)) is None


def test_missing_photo(truth):
    (truth.parent / "photos" / "001.png").unlink()
    with pytest.raises(CimError, match=r"1 of 4 labelled photos are missing.*001.png.*--images"):
        opened(truth)


def test_photo_of_another_size(truth):
    def change(content):
        for image, line in zip(content["images"], content["annotations"], strict=True):
            image |= {"height": 60, "width": 60}
            line["segmentation"] = [[5, 5, 25, 5, 25, 20]]

    photos, _ = opened(edited(truth, change))
    with pytest.raises(CimError, match="another size"):
        LabelSource(photos, 48, 64).sample(0, np.random.default_rng(0))


def test_crowds_beside_instances_are_areas_where_nothing_is_known(truth, caplog):
    def change(content):
        content["annotations"][1] |= {"image_id": content["annotations"][0]["image_id"], "iscrowd": 1}

    with caplog.at_level("INFO"):
        photos, _ = opened(edited(truth, change))
    assert photos[0].labels == (1, UNKNOWN) and "1 areas where nothing is known" in caplog.text
    target = LabelSource(photos, 48, 64, flip=False).sample(0, np.random.default_rng(0))["target"]
    assert target["labels"].tolist() == [1, UNKNOWN] and len(target["masks"]) == 2


def test_only_crowds(truth):
    with pytest.raises(CimError, match="no usable instance"):
        opened(edited(truth, lambda content: [line.update(iscrowd=1) for line in content["annotations"]]))


@pytest.mark.parametrize(
    ("size", "wanted"), [((375, 500), (288, 384)), ((100, 400), (96, 384)), ((50, 50), (288, 288))]
)
def test_target_size(size, wanted):
    assert target_size(size, 288, 384) == wanted


def test_mask_boxes():
    masks = np.zeros((3, 8, 9), np.uint8)
    masks[0, 2:5, 3:9], masks[1, 7, 2:6] = 1, 1
    boxes, good = mask_boxes(masks)
    assert boxes[:2].tolist() == [[3, 2, 9, 5], [2, 7, 6, 8]]
    assert good.tolist() == [True, False, False]


# ---------------------------------------------------------------------- what is not known


def test_boxes_inside_unknown_areas_are_no_background():
    model = build_mask_rcnn("mobilenet_fpn", 2, "none", 48, 64).train()
    known, unknown = torch.tensor([0.0, 0, 20, 20]), torch.tensor([30.0, 0, 60, 40])
    boxes, labels = torch.stack([unknown, known]), torch.tensor([UNKNOWN, 2])
    part, aside, half = torch.tensor([32.0, 2, 40, 9]), torch.tensor([0.0, 30, 10, 40]), torch.tensor([20.0, 0, 42, 40])
    own = torch.stack([known, unknown, part, aside, half])
    matched, found = model.roi_heads.assign_targets_to_proposals([own], [boxes], [labels])
    assert found[0].tolist() == [2, UNKNOWN, UNKNOWN, 0, UNKNOWN] and matched[0][0] == 1
    found, _ = model.rpn.assign_targets_to_anchors([own], [{"boxes": boxes, "labels": labels}])
    assert found[0].tolist() == [1, UNKNOWN, UNKNOWN, 0, UNKNOWN]
    plain, _ = model.rpn.assign_targets_to_anchors([own], [{"boxes": boxes[1:], "labels": labels[1:]}])
    assert plain[0].tolist() == [1, 0, 0, 0, 0]


def test_an_image_of_nothing_but_unknown_areas_trains(truth):
    photos, _ = opened(truth)
    sample = LabelSource(photos, 96, 128).sample(0, np.random.default_rng(0))
    sample["target"]["labels"][:] = UNKNOWN
    torch.manual_seed(0)
    model = build_mask_rcnn("mobilenet_fpn", 2, "none", 96, 128).train()
    losses, found = refine_step(model, [sample], torch.Generator())
    assert all(torch.isfinite(loss) for loss in losses.values()) and found == {"instances": 0}


def test_scenes_are_pasted_from_certain_labels(truth):
    def change(content):
        for line in content["annotations"]:
            line["certain"] = True

    photos, _ = opened(edited(truth, change))
    labels = LabelSource(photos, 96, 128)
    pasted = PastedScenes.of(labels)
    assert {label: len(pairs) for label, pairs in pasted.certain.items()} == {1: 2, 2: 2}
    seen = set()
    for seed in range(6):
        target = pasted.sample(0, np.random.default_rng(seed))["target"]
        (label,) = set(target["labels"].tolist()) - {UNKNOWN}
        seen.add(label)
        masks = target["masks"].numpy()
        assert (target["labels"] == label).sum() >= 2 and masks.sum(0).max() == 1
        # the photo below shows the other class, which is not learnt
        assert (target["labels"] == UNKNOWN).sum() <= 1
    assert seen == {1, 2}


def test_the_same_scene_from_the_same_draw(truth):
    photos, _ = opened(edited(truth, lambda content: [line.update(certain=True) for line in content["annotations"]]))
    pasted = PastedScenes.of(LabelSource(photos, 48, 64))
    one, two = (pasted.sample(0, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one["image"], two["image"]) and torch.equal(one["target"]["masks"], two["target"]["masks"])


def test_no_scenes_without_certain_labels(truth, caplog):
    photos, _ = opened(truth)
    source = LabelSource(photos, 48, 64)
    assert with_scenes(source, RefineConfig(scenes=2)) is source and "no scenes are pasted" in caplog.text


def test_scenes_among_the_photos(truth):
    photos, _ = opened(edited(truth, lambda content: [line.update(certain=True) for line in content["annotations"]]))
    mixed = with_scenes(LabelSource(photos, 48, 64), RefineConfig(scenes=2, images_per_update=4))
    assert len(mixed) == 6 and schedule_of(RefineConfig(scenes=2, images_per_update=4)).images_per_update == 6
    assert mixed.sample(5, np.random.default_rng(0))["image_id"] == "scene"


# ---------------------------------------------------------------------- weighted losses


def regions(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    scores, regression = torch.randn(10, 4, generator=g), torch.randn(10, 16, generator=g)
    labels = [torch.tensor([0, 1, 3, 0, 2]), torch.tensor([2, 0, 0, 1, 1])]
    offsets = [torch.randn(5, 4, generator=g) for _ in range(2)]
    return scores, regression, labels, offsets


def test_weights_of_one_are_torchvisions_losses():
    scores, regression, labels, offsets = regions()
    ours = weighted_box_losses(scores, regression, labels, offsets, [torch.ones(5)] * 2)
    for ours_, theirs in zip(ours, fastrcnn_loss(scores, regression, labels, offsets), strict=True):
        assert torch.allclose(ours_, theirs)


def test_background_keeps_its_weight():
    scores, regression, labels, offsets = regions()
    none, _ = weighted_box_losses(scores, regression, labels, offsets, [torch.zeros(5)] * 2)
    class_ids = torch.cat(labels)
    losses = torch.nn.functional.cross_entropy(scores, class_ids, reduction="none")
    assert torch.allclose(none, losses[class_ids == 0].sum() / 10)


def test_mask_loss():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 7, 7, generator=g)
    boxes = [torch.tensor([[0.0, 0, 8, 8], [2, 2, 9, 7]]), torch.tensor([[1.0, 1, 6, 6]])]
    masks = [(torch.rand(2, 10, 10, generator=g) > 0.5).byte(), (torch.rand(1, 10, 10, generator=g) > 0.5).byte()]
    labels, matched = [torch.tensor([1, 3]), torch.tensor([2])], [torch.tensor([0, 1]), torch.tensor([0])]
    theirs = maskrcnn_loss(logits, boxes, masks, labels, matched)
    ones = [torch.ones(2), torch.ones(1)]
    assert torch.allclose(weighted_mask_loss(logits, boxes, masks, labels, matched, ones), theirs)
    half = [torch.full((2,), 0.5), torch.full((1,), 0.5)]
    assert torch.allclose(weighted_mask_loss(logits, boxes, masks, labels, matched, half), theirs / 2)
    empty = [torch.zeros(0, dtype=torch.int64)]
    nothing = weighted_mask_loss(logits[:0], [torch.zeros(0, 4)], masks[:1], empty, empty, [torch.zeros(0)])
    assert nothing == 0


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_mask_rcnn("mobilenet_fpn", 2, "none", 48, 64)


def test_weighted_second_stage_equals_torchvisions_with_ones(truth, network):
    photos, _ = opened(truth)
    rng = np.random.default_rng
    plain = [LabelSource(photos, 48, 64, flip=False).sample(k, rng(0)) for k in range(2)]
    weighted = [LabelSource(photos, 48, 64, flip=False, weighted=True).sample(k, rng(0)) for k in range(2)]
    network.train()
    losses = []
    for samples in (plain, weighted):
        torch.manual_seed(0)
        losses.append(refine_step(network, samples, torch.Generator())[0])
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.allclose(value, losses[1][name]), name


def test_frozen_layers_stay(network):
    network.train()
    trunk = network.backbone.trunk.body.features
    assert not any(p.requires_grad for p in trunk[:4].parameters()) and trunk[10].conv[0][0].weight.requires_grad
    assert not any(m.training for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "strides"), [("mobilenet_fpn", (8, 16, 32, 64)), ("resnet50_fpn", (4, 8, 16, 32, 64))]
)
def test_pyramid_levels(name, strides):
    levels = build_mask_rcnn(name, 2, "none", 48, 64).backbone.eval()(torch.zeros(1, 3, 128, 128))
    assert [level.shape[-1] for level in levels.values()] == [128 // s for s in strides]


# ---------------------------------------------------------------------- is it better than CIM?


@pytest.mark.parametrize(
    ("low", "keys", "level"),
    [
        (0.5, ["mAP@0.50", "mAP@0.75"], "fine"),
        (-0.5, ["mAP@0.50", "mAP@0.75"], "doubtful"),
        (0.5, ["box_mAP"], "fine"),
        (0.5, ["found"], "doubtful"),
    ],
)
def test_better_only_by_more_than_the_interval(low, keys, level):
    found = {key: Difference(50.0, 53.0, 0.5, 4.0) for key in keys}
    found[keys[-1]] = Difference(50.0, 53.0, low, 4.0)
    verdict = judge_difference(found)
    assert verdict.level == level and all(
        f"{low:+.1f} to +4.0" in verdict.reason for _ in keys[:1] if keys != ["found"]
    )


# ---------------------------------------------------------------------- detection


class Fixed(torch.nn.Module):
    """Finds the same two objects on every photo, as soft masks in their boxes."""

    transform = SimpleNamespace(min_size=(48,), max_size=64, size_divisible=32)

    def forward(self, images):
        found = []
        for h, w in (image.shape[1:] for image in images):
            boxes = torch.tensor([[0, 0, w / 2, h / 2], [0, h / 2, w, h], [0, 0, w, h]])
            masks = torch.ones(3, 1, 28, 28) * torch.tensor([1, 1, 0.4]).view(3, 1, 1, 1)  # 0.4: never one half
            labels = torch.tensor([2, 1, 1])
            found.append({"boxes": boxes, "scores": torch.tensor([0.9, 0.5, 0.45]), "labels": labels, "masks": masks})
        return found


@pytest.mark.parametrize("size", [(40, 60), (1000, 3200), (2, 6000), (900, 1)])
def test_detector(size):
    detector = MaskDetector(Fixed(), ("a", "b"), torch.device("cpu"))
    photo = np.zeros((*size, 3), np.uint8)
    found = detector(photo)
    assert found.size == size
    if min(size) < 3:
        return  # half of one pixel is none; that it ends well is all
    assert found.class_ids.tolist() == [1, 0]
    assert found.boxes[0].tolist() == pytest.approx([0, 0, size[1] / 2, size[0] / 2], abs=2)
    assert coco_mask.decode(found.rles[0]).shape == size
    assert detector(photo, [0]).class_ids.tolist() == [0]
    assert len(detector(photo, threshold=0.95)) == 0 and detector(photo, threshold=0.95).boxes.shape == (0, 4)


@pytest.mark.parametrize("box", [(3.2, 4.7, 20.9, 30.1), (-2.5, -8, 50.0, 17.5), (10, 10, 11, 11), (0, 0, 48, 40)])
def test_masks_are_pasted_as_torchvision_does(box):
    soft = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    wanted = paste_masks_in_image(soft, torch.tensor([box]), (40, 48))[0, 0].numpy()
    certain = np.abs(wanted - 0.5) > 1e-4
    found = pasted(soft[0, 0].numpy(), np.array(box), (40, 48))
    assert found.any() and np.array_equal(found[certain], wanted[certain] >= 0.5) and certain.mean() > 0.99


@pytest.mark.parametrize("size", [(2, 6000), (3000, 3)])
def test_the_network_itself_takes_very_narrow_photos(size):
    model = build_mask_rcnn("mobilenet_fpn", 2, "none", 48, 64).eval()
    assert MaskDetector(model, ("a", "b"), torch.device("cpu"))(np.zeros((*size, 3), np.uint8)).size == size


# ---------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained run folder: config file."""
    folder = tmp_path_factory.mktemp("refine")
    path = small_run.small_config(folder)
    values = yaml.safe_load(path.read_text())
    values["refine"] = {
        "backbone": "mobilenet_fpn",
        "weights": "none",
        "images_per_update": 2,
        "updates": 2,
        "step": [],
        "warmup_updates": 0,
        "lr": 0.001,
        "min_side": 48,
        "max_side": 64,
        "score_weighted": True,
        "workers": 0,
    }
    path.write_text(yaml.safe_dump(values))
    labels = ("--labels", folder / "truth.json", "--images", folder / "photos")
    assert run_tool("train_mask_rcnn", path, *labels) == 0
    return path


def test_training_leaves_a_checkpoint_and_a_row(trained):
    paths = RunPaths(load_config(trained))
    state = load_checkpoint(paths.refine_dir / "final.pth")
    assert state["meta"]["kind"] == "mask_rcnn" and tuple(state["meta"]["classes"]) == small_run.CLASSES
    log = [json.loads(text) for text in (paths.refine_dir / "log.jsonl").read_text().splitlines()]
    assert "loss_mask" in str(log) and "loss_objectness" in str(log)
    rows = json.loads(paths.metrics.read_text())["rows"]
    assert "mAP@0.50" in rows["CIM + Mask R-CNN"]


def test_predicts_without_proposals(trained):
    paths = RunPaths(load_config(trained))
    predictor = load_model(paths.refine_dir, device="cpu")
    photo = build_dataset(load_config(trained).data, "val")[0].path
    found = predictor.predict(photo, score_threshold=0.0)
    assert predictor.classes == small_run.CLASSES and found.image.shape[:2] == small_run.SIZE
    assert len(found.masks) == len(found)


def test_same_weights_same_detections(trained):
    path = RunPaths(load_config(trained)).refine_dir / "final.pth"
    photo = read_photo(build_dataset(load_config(trained).data, "val")[0].path)
    first, second = (load_detector(load_checkpoint(path), path, torch.device("cpu"))(photo) for _ in range(2))
    assert np.array_equal(first.score, second.score) and first.rles == second.rles


def test_one_more_round(trained, monkeypatch):
    path = RunPaths(load_config(trained)).refine_dir / "final.pth"
    state = load_checkpoint(path)
    detector = load_detector(state, path, torch.device("cpu"))
    fixed = MaskDetector(Fixed(), detector.classes, detector.device)
    monkeypatch.setattr("cim.mask_rcnn.detect.load_detector", lambda *_: fixed)
    assert run_tool("generate_mask_for_MaskRCNN", trained, "--from-mask-rcnn") == 0
    labels = label_path(load_config(trained), "train", round_two=True)
    assert labels.name == f"{NAME}_round2.json"
    content = json.loads(labels.read_text())
    dataset = build_dataset(load_config(trained).data, "train")
    assert [a["category_id"] for a in content["annotations"]] == [dataset.category_ids[r.tags[0]] for r in dataset]


def short_run(folder, **refine):
    """Config and arguments of four updates on four drawn photos."""
    path = small_run.small_config(folder)
    settings = {"backbone": "mobilenet_fpn", "weights": "none", "images_per_update": 2, "updates": 4, "step": [3]}
    settings |= {"warmup_updates": 0, "lr": 0.001, "min_side": 48, "max_side": 64, "workers": 0, **refine}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "refine": settings}))
    return path, folder / "truth.json", folder / "photos"


def test_a_stopped_run_continues_exactly(tmp_path, monkeypatch):
    """Stopped in the middle of the third update, continued: bit for bit the weights of a run without a stop."""
    (tmp_path / "a").mkdir()
    path, labels, photos = short_run(tmp_path / "a", checkpoint_every=1, optimizer="adamw", micro_batch=1)
    config = load_config(path)
    whole = load_checkpoint(train_mask_rcnn(config, labels, photos, tmp_path / "whole"))["model"]
    calls = 0

    def interrupted(*given):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return refine_step(*given)

    monkeypatch.setattr("cim.mask_rcnn.train.refine_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_mask_rcnn(config, labels, photos, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "final.pth").exists()
    monkeypatch.setattr("cim.mask_rcnn.train.refine_step", refine_step)
    torch.manual_seed(99)  # whatever the new process's generator holds
    continued = load_checkpoint(train_mask_rcnn(config, labels, photos, tmp_path / "stopped"))["model"]
    assert all(torch.equal(continued[name], value) for name, value in whole.items())


def test_mixed_precision(tmp_path):
    path, labels, photos = short_run(tmp_path, precision="bf16", updates=2, step=[])
    checkpoint = train_mask_rcnn(load_config(path), labels, photos)
    assert all(torch.isfinite(value).all() for value in load_checkpoint(checkpoint)["model"].values())
    log = [json.loads(text) for text in (checkpoint.parent / "log.jsonl").read_text().splitlines()]
    assert log[-1]["update"] == 2 and log[-1]["skipped"] == 0


def test_torchrun(tmp_path):
    """Two processes through the tool itself; its one row is written once."""
    path, labels, photos = short_run(tmp_path, updates=2, step=[])
    tool = TOOLS / "train_mask_rcnn.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tool)]
    arguments = [str(path), "--labels", str(labels), "--images", str(photos)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + arguments, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = RunPaths(load_config(path))
    assert (paths.refine_dir / "final.pth").is_file()
    assert list(json.loads(paths.metrics.read_text())["rows"]) == ["CIM + Mask R-CNN"]


def test_the_trunk_learns_at_its_own_rate(network):
    config = RefineConfig(lr=0.1, trunk_lr_factor=0.5)
    trunk, rest = _param_groups(network, config)
    own = {id(p) for p in network.backbone.trunk.parameters()}
    assert trunk["lr"] == 0.05 and rest["lr"] == 0.1 and {id(p) for p in trunk["params"]} <= own
    assert not own & {id(p) for p in rest["params"]}
    learning = [p for p in network.parameters() if p.requires_grad]
    assert len(trunk["params"]) + len(rest["params"]) == len(learning)


def test_as_long_as_the_rule_says():
    config = RefineConfig(images_per_update=4, epochs=6)
    labels = [[1, 2]] * 350 + [[3]] * 350
    assert schedule_of(config, labels).updates == 1050 and schedule_of(config, labels).steps == (840,)
    assert schedule_of(config.model_copy(update={"stretch": 2}), labels).updates == 2100
    assert schedule_of(config, [[1]] * 20).updates == 400  # the floor
    assert schedule_of(RefineConfig(), labels).updates == 18000


def test_held_out_photos_decide_how_long(tmp_path, monkeypatch):
    """Their losses are the same each time and change no random state; they are held out until the rate falls."""
    monkeypatch.setattr("cim.training.held_out.FEWEST", 2)
    path, labels, photos = short_run(tmp_path, updates=4, step=[2], held_out=0.5)
    config = load_config(path)
    fed = _fed(config, labels, photos)
    held_out = hold_out(fed, config.refine, torch.device("cpu"))
    assert len(held_out.source) + len(held_out.losses.photos) == len(fed.source)
    assert {p.path for p in held_out.source.photos}.isdisjoint({p.path for p in held_out.losses.photos.photos})
    model = build_mask_rcnn("mobilenet_fpn", len(fed.classes), "none", 48, 64)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = held_out.losses(model), held_out.losses(model)
    assert first == second and len(first) == len(held_out.losses.photos) and torch.equal(state, torch.get_rng_state())
    assert not model.training
    falling = itertools.count(0, -1)
    monkeypatch.setattr(LabelLosses, "__call__", lambda self, model: [next(falling)] * 2)
    train_mask_rcnn(config, labels, photos)
    log = read_log(RunPaths(config).refine_dir / "log.jsonl")
    assert log[-1]["update"] == 8  # twice as long as planned: the loss, here, always falls
    assert hold_out(fed, config.refine.model_copy(update={"held_out": 0.1}), torch.device("cpu")) is None


def test_no_labels_yet(tmp_path, capsys):
    path = small_run.small_config(tmp_path)
    assert run_tool("train_mask_rcnn", path) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "cim export" in error[0]
    assert run_tool("generate_mask_for_MaskRCNN", path, "--from-mask-rcnn") == 2


def test_foreign_checkpoint(trained):
    with pytest.raises(CimError, match="not a Mask R-CNN"):
        load_detector({"meta": {"kind": "cim"}}, "x.pth", torch.device("cpu"))
