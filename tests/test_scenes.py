"""Scenes of known truth: which instances are certain, how they are pasted, what is learnt from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_driven_training import config as config
from test_data_driven_training import labelled as labelled
from test_losses import sample_of, scene

from cim.cli.common import run
from cim.cli.main import call
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, DataConfig
from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.engine.checkpoints import load_checkpoint
from cim.mining.losses import Criterion, class_loss, integrity_loss
from cim.mining.miners import CIMMiner
from cim.mining.scene_labels import scene_clusters, scene_labels
from cim.storage.store import Store
from cim.training.scene_source import Mixed, Scenes, SceneSource, among_scenes, draw_scene
from cim.training.scenes import CertainOptions, Cutout, certain_instance, compose, cut_out, scene_truth
from cim.training.train import train_cim


def squares(*corners: tuple[int, int], side: int = 20) -> np.ndarray:
    masks = np.zeros((len(corners), 60, 80), bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


@pytest.mark.parametrize(
    ("scores", "options", "certain"),
    [
        ([0.9, 0.02, 0.01], CertainOptions(), True),
        ([0.9, 0.5, 0.01], CertainOptions(), False),  # another one elsewhere
        ([0.2, 0.02, 0.01], CertainOptions(), False),  # not sure
        ([0.2, 0.02, 0.01], CertainOptions(score=0.1), True),
        ([0.01, 0.02, 0.9], CertainOptions(), False),  # a corner: touches two sides
        ([0.01, 0.02, 0.9], CertainOptions(borders=2), True),
        ([0.9, 0.02, 0.01], CertainOptions(min_area=0.1), False),
        ([0.0, 0.0, 0.0], CertainOptions(score=0), False),
    ],
)
def test_certain_instances(scores: list[float], options: CertainOptions, certain: bool):
    regions = RegionSet.from_masks(squares((20, 20), (20, 50), (0, 0)))
    score = np.array(scores, np.float32)
    assert certain_instance(regions, score, options) == (int(score.argmax()) if certain else None)


def test_groups_are_not_certain():
    masks = squares((20, 10), (20, 30))
    regions = RegionSet.from_masks(np.concatenate([masks, masks.any(0, keepdims=True)]))
    assert certain_instance(regions, np.array([0.05, 0.05, 0.9])) == 2
    assert certain_instance(regions, np.array([0.5, 0.5, 0.9])) is None
    assert certain_instance(regions.select(np.zeros(0, int)), np.zeros(0)) is None


def test_the_largest_part_is_cut_out():
    mask = squares((5, 10)).any(0) | squares((40, 70), side=5).any(0)
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    found = cut_out(photo, mask)
    assert found.mask.shape == (20, 20) and found.mask.all()
    np.testing.assert_array_equal(found.pixels, photo[5:25, 10:30])


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    red = Cutout(np.full((30, 20, 3), (255, 0, 0), np.uint8), np.ones((30, 20), bool))
    return compose(np.full((60, 80, 3), 7, np.uint8), [red, red], np.random.default_rng(seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_scenes_show_what_their_labels_say(seed: int):
    made = drawn(seed)
    if made is None:
        return
    photo, labels = made
    assert photo.shape == (375, 500, 3) and photo.dtype == np.uint8 and labels.shape == (375, 500)
    seen = np.bincount(labels.ravel())
    assert len(seen) in (3, 4) and (seen[1:] >= 0.01 * labels.size).all()
    again, same = drawn(seed)  # type: ignore[misc]
    np.testing.assert_array_equal(photo, again)
    np.testing.assert_array_equal(labels, same)
    inside = labels > 0
    assert (photo[inside][:, 0] > 60).all()  # red, but for soft borders
    rows, columns = np.nonzero(inside)
    away = np.ones_like(inside)
    away[max(rows.min() - 3, 0) : rows.max() + 4, max(columns.min() - 3, 0) : columns.max() + 4] = False
    assert (photo[away] == 7).all()


def test_most_draws_succeed():
    assert sum(drawn(seed) is not None for seed in range(100)) > 50


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), instances=st.integers(1, 3))
def test_truth_and_labels_equal_the_loops(seed: int, count: int, instances: int):
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 50), np.int32)
    for number in range(1, instances + 1):  # beside each other: each is seen
        labels[5:30, 14 * number : 14 * number + 14] = number
    masks = np.zeros((count, 40, 50), bool)
    for mask in masks:
        y, x = rng.integers(0, 30), rng.integers(0, 40)
        mask[y : y + rng.integers(2, 40), x : x + rng.integers(2, 50)] = True
    truth = scene_truth(RegionSet.from_masks(masks), labels)
    branch = seed % 3
    found = scene_labels(*map(torch.from_numpy, truth), 2, branch)
    first = scene_clusters(truth, 1)
    for n, mask in enumerate(masks):
        overlaps, covered = [], []
        for number in range(1, instances + 1):
            thing = labels == number
            overlaps.append((mask & thing).sum() / (mask | thing).sum())
            covered.append((mask & thing).sum() / thing.sum())
        np.testing.assert_allclose(truth.iou[:, n], overlaps, rtol=1e-6)
        np.testing.assert_allclose(truth.covered[:, n], covered, rtol=1e-6)
        best, merged = truth.iou[:, n].max(), sum(share >= 0.5 for share in truth.covered[:, n]) >= 2
        known = best >= 0.1
        front = best >= 0.25 + 0.1 * branch or (merged and best > 0.2)
        assert found.class_ids[n] == (-1 if not known else 2 if front else 0)
        assert found.weight[n] == float(known)
        assert found.integrity[n] == float(best > 0.5 + 0.1 * branch and not merged)
        cluster = int(truth.iou[:, n].argmax()) + 1
        if best >= 0.5 and not merged:
            assert (first.class_ids[n], first.cluster[n]) == (2, cluster)
        elif known:
            assert (first.class_ids[n], first.cluster[n]) == (0, instances + 1)
        else:
            assert (first.class_ids[n], first.cluster[n]) == (-1, 0)


def test_scenes_are_not_mined():
    scores, photo, overlaps, _ = scene(0)
    truth = torch.rand(2, 2, 30, generator=torch.Generator().manual_seed(0))
    known = replace(photo, truth=truth, truth_class=torch.tensor(1))
    losses, _ = Criterion(CIMMiner(), stable=True)(scores, known, overlaps)
    for branch in range(3):
        labels = scene_labels(*truth, 1, branch)
        cls, iou = scores.refine_cls[branch].float(), scores.refine_iou[branch].float()
        torch.testing.assert_close(losses[f"cls{branch}"].float(), class_loss(cls, labels, True))
        torch.testing.assert_close(losses[f"iou{branch}"].float(), 3 * integrity_loss(iou, labels))
    assert sample_of(None).truth is None


def made_scenes(root: Path, classes: list[str], count: int = 3) -> Scenes:
    scenes = Scenes.create(root, {"classes": classes})
    number = 0
    for seed in range(100):
        made = drawn(seed)
        if made is not None and number < count:
            masks = made[1] == np.arange(1, made[1].max() + 1)[:, None, None]
            regions = RegionSet.from_masks(np.concatenate([masks, masks.any(0, keepdims=True)]))
            scenes.save(number, *made, regions, 1, (0, 1))
            number += 1
    return scenes


def test_scenes_from_disk(tmp_path: Path):
    with pytest.raises(CimError, match="no scenes here"):
        Scenes.open(tmp_path)
    made_scenes(tmp_path, ["a", "b"])
    source = SceneSource(Scenes.open(tmp_path), 2, 96)
    assert len(source) == 3
    sample = source.sample(1, np.random.default_rng(0))
    assert sample.image.shape == (3, 72, 96) and sample.tags.tolist() == [1, 1] and sample.truth_class == 2
    count = sample.truth.shape[1]
    assert sample.truth.shape == (2, count, count + 1)
    np.testing.assert_allclose(sample.truth[0, :, :count], np.eye(count), atol=1e-6)
    assert sample.class_ids.tolist() == [2] * count + [0]
    assert len(replace(source, max_proposals=2).sample_at(1, 96).proposal) == 2
    mixed = Mixed(source, source, 5)
    assert len(mixed) == 8
    assert mixed.sample(7, np.random.default_rng(0)).image_id.startswith("scene ")
    fewer = replace(source, max_proposals=2)
    assert among_scenes(fewer, mixed) == Mixed(fewer, source, 5) and among_scenes(fewer, source) is fewer


def test_backgrounds_lack_the_class():
    records = [Record(n, Path(str(n)), (60, 80), tags) for n, tags in enumerate([(0,), (1,), ()])]
    dataset = Dataset("toy", ("a", "b"), (1, 2), tuple(records))
    red = Cutout(np.full((30, 20, 3), (255, 0, 0), np.uint8), np.ones((30, 20), bool))
    seen: list[Path] = []

    def photo_of(path: Path) -> np.ndarray:
        seen.append(path)
        return np.full((60, 80, 3), 7, np.uint8)

    for seed in range(5):
        *_, class_id, tags = draw_scene(dataset, {0: [red, red], 1: [red]}, photo_of, np.random.default_rng(seed))
        assert class_id == 0 and tags == (0, 1)
    assert set(seen) == {Path("1")}
    with pytest.raises(CimError, match="no scenes can be made"):
        draw_scene(dataset, {1: [red]}, photo_of, np.random.default_rng(0))


def test_trains_with_scenes(labelled: Config):
    root = Path(labelled.work_dir) / "scenes"
    train = labelled.train.model_copy(update={"scenes": 1})
    wanted = labelled.model_copy(update={"train": train})
    with pytest.raises(CimError, match="no scenes here"):
        train_cim(wanted)
    classes = list(build_dataset(labelled.data, "train").classes)
    made_scenes(root, classes[::-1])
    with pytest.raises(CimError, match="other classes"):
        train_cim(wanted)
    for path in ("scenes", "regions"):
        (root / path / "manifest.json").unlink()
    made_scenes(root, classes)
    final = load_checkpoint(train_cim(wanted))
    signature = final["meta"]["signature"]
    assert signature["schedule"]["updates"] == 6 and signature["schedule"]["images_per_update"] == 3
    assert signature["images"] == 9
    second = wanted.model_copy(update={"work_dir": str(root.parent / "second"), "data": data_of(wanted)})
    train = train.model_copy(update={"start": str(root.parent / "train" / "final.pth"), "lr": 1e-9})
    again = load_checkpoint(train_cim(second.model_copy(update={"train": train})))
    for name, value in final["model"].items():
        torch.testing.assert_close(again["model"][name], value, atol=1e-6, rtol=1e-6)
    train = train.model_copy(update={"start": str(root / "missing.pth")})
    with pytest.raises(CimError):
        train_cim(second.model_copy(update={"train": train, "work_dir": str(root.parent / "third")}))


def data_of(config: Config) -> DataConfig:
    """The artefacts of a run, named, for another one."""
    layout = RunPaths(config)
    found = {"scenes": str(layout.scenes), "first_labels": str(layout.first_labels), "features": str(layout.features)}
    return config.data.model_copy(update=found | {"proposals": str(layout.proposals("train"))})


def run_command(*words: object) -> int:
    return run(lambda: call([str(word) for word in words]))


def test_the_command(tmp_path: Path, capsys):
    path = small_run.small_config(tmp_path)
    config = load_config(path)
    store = Store.create(RunPaths(config).proposals("train"), "regions", {})
    dataset = build_dataset(config.data, "train")
    truth = tmp_path / "truth.json"
    for number, record in enumerate(dataset, 1):
        store.save_regions(record.image_id, small_run.proposals(truth, number))
    assert run_command("scenes", path) == 2
    assert "cim score CONFIG --split train" in capsys.readouterr().err
    assert run_command("score", path, "--split", "train", "--workers", 1) == 0
    scores = Store.open(RunPaths(config).detections("train"), "detections")
    for record in dataset:
        values = np.full((8, 2), 0.01, np.float32)
        values[0] = 0.9  # the whole object
        scores.save(record.image_id, scores=values, mil=values)
    arguments = (path, "--count", 2, "--set", "proposals.max_proposals=20", "proposals.weights=none")
    assert run_command("scenes", *arguments) == 0
    found = capsys.readouterr()
    assert "disc 2, box 2" in found.err and "2 scenes" in found.out
    scenes = Scenes.open(RunPaths(config).scenes)
    before = scenes.store.path(0).stat().st_mtime_ns
    assert run_command("scenes", path, "--count", 3, *arguments[3:]) == 0
    assert len(scenes) == 3 and scenes.store.path(0).stat().st_mtime_ns == before
    sample = SceneSource(scenes, 2, 96).sample_at(2, 96)
    assert sample.tags.tolist() == [1, 1]  # pasted on a photo of the other class
