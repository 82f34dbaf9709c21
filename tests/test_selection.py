"""Selection: NMS against the obvious loop, and against the published program's detections."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cim.core.regions import RegionSet
from cim.inference.selection import box_iou_published, compressed_rles, greedy_nms, select


def random_regions(rng: np.random.Generator, count: int, size: tuple[int, int] = (30, 40)) -> RegionSet:
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, size[0] - 2), rng.integers(0, size[1] - 2)
        mask[y : y + rng.integers(2, 20), x : x + rng.integers(2, 20)] = True
        mask &= rng.random(size) < 0.9
    return RegionSet.from_masks(masks)


def slow_box_iou(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> float:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        [min(max(float(v), 0), (size[1] if k % 2 == 0 else size[0]) - 1) for k, v in enumerate(box)] for box in (a, b)
    )
    width = max(0.0, min(ax2, bx2) - max(ax1, bx1) + 1)
    height = max(0.0, min(ay2, by2) - max(ay1, by1) + 1)
    areas = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    return width * height / (areas - width * height)


def slow_select(iou: np.ndarray, scores: np.ndarray, threshold: float, limit: float, most: int | None) -> set:
    kept = []
    for class_id in range(scores.shape[1]):
        order = sorted(np.flatnonzero(scores[:, class_id] > threshold), key=lambda i: (-scores[i, class_id], i))
        alive: list[int] = []
        for i in order:
            if all(iou[j, i] <= limit for j in alive):
                alive.append(i)
        kept += [(int(i), class_id) for i in alive]
    if most is not None and len(kept) > most:
        cut = sorted((scores[pair] for pair in kept), reverse=True)[most - 1]
        kept = [pair for pair in kept if scores[pair] >= cut]
    return set(kept)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 40),
    nms=st.sampled_from(["box", "mask"]),
    most=st.sampled_from([None, 1, 5, 30]),
    steps=st.sampled_from([3, 1000]),
)
def test_equals_the_loop(seed, count, nms, most, steps):
    rng = np.random.default_rng(seed)
    regions = random_regions(rng, count)
    scores = (rng.integers(0, steps, (count, 4)) / steps).astype(np.float32)  # few steps: many ties
    found = select(regions, scores, 7, score_threshold=0.2, nms=nms, nms_iou=0.3, max_per_image=most)
    if nms == "mask":
        iou = regions.iou()
    else:
        iou = np.array([[slow_box_iou(a, b, regions.size) for a in regions.boxes] for b in regions.boxes])
    pairs = set(zip(found.proposal.tolist(), found.class_ids.tolist()))
    assert pairs == slow_select(iou, scores, 0.2, 0.3, most)
    assert len(pairs) == len(found)
    assert (np.diff(found.score) <= 0).all()
    assert np.array_equal(found.score, scores[found.proposal, found.class_ids])
    assert np.array_equal(found.boxes, regions.boxes[found.proposal])


def test_published_box_iou():
    boxes = np.array([[0, 0, 40, 30], [10, 5, 20, 25], [39, 29, 40, 30]], np.float32)
    expected = [[slow_box_iou(a, b, (30, 40)) for a in boxes] for b in boxes]
    np.testing.assert_allclose(box_iou_published(boxes, (30, 40)), expected, rtol=1e-6)
    assert box_iou_published(boxes, (30, 40))[0, 2] == pytest.approx(1 / 1200)  # clipped to one pixel, not to none


def test_ties_at_the_limit_stay():
    scores = np.array([[0.9], [0.5], [0.5], [0.5], [0.4]], np.float32)
    proposal, _ = greedy_nms(np.eye(5, dtype=bool), scores, scores > 0, limit=2)
    assert proposal.tolist() == [0, 1, 2, 3]


def test_long_ranking_crosses_blocks():
    rng = np.random.default_rng(0)
    scores = rng.random((900, 3)).astype(np.float32)
    suppresses = rng.random((900, 900)) < 0.004
    suppresses |= suppresses.T | np.eye(900, dtype=bool)
    proposal, class_ids = greedy_nms(suppresses, scores, scores > 0.1, None)
    expected = slow_select(suppresses.astype(float), scores, 0.1, 0.5, None)
    assert len(expected) > 600  # more than one block of the ranking
    assert set(zip(proposal.tolist(), class_ids.tolist())) == expected


def test_tags_restrict_classes():
    rng = np.random.default_rng(0)
    regions, scores = random_regions(rng, 20), rng.random((20, 5)).astype(np.float32)
    everything, some = (
        select(regions, scores, 1, max_per_image=None),
        select(regions, scores, 1, max_per_image=None, tags=(1, 3)),
    )
    assert set(some.class_ids.tolist()) == {1, 3}
    wanted = np.isin(everything.class_ids, (1, 3))
    assert np.array_equal(everything.proposal[wanted], some.proposal)
    assert len(select(regions, scores, 1, tags=())) == 0


@pytest.mark.parametrize("nms", ["box", "mask"])
def test_nothing(nms):
    empty = RegionSet.from_masks(np.zeros((0, 5, 6), bool))
    found = select(empty, np.zeros((0, 3), np.float32), "a", nms=nms)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.rles == []
    regions = random_regions(np.random.default_rng(0), 4)
    assert len(select(regions, np.zeros((4, 3), np.float32), "a", nms=nms)) == 0


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"scores must be \[4, C\]"):
        select(random_regions(np.random.default_rng(0), 4), np.zeros((5, 3), np.float32), 1)


def test_rles_are_the_masks():
    regions = random_regions(np.random.default_rng(3), 6)
    rles = compressed_rles(regions, np.array([4, 1, 4]))
    for rle, index in zip(rles, [4, 1, 4], strict=True):
        assert isinstance(rle["counts"], str)
        assert np.array_equal(coco_mask.decode(rle).astype(bool), regions.masks([index])[0])


@pytest.mark.parametrize("name", ["2007_000100", "2007_000104"])
def test_published_detections(reference, name):
    scores = np.load(reference / "expected" / "scores.npz")[name]
    published = json.loads((reference / "expected" / "predictions.json").read_text())
    path = reference / "VOC2012" / "COB_SBD_trainaug" / f"{name}.mat"
    regions = RegionSet.from_masks(np.stack(list(scipy.io.loadmat(path)["maskmat"][:, 0])))
    image_id = int(name.replace("_", ""))
    found = select(regions, scores, image_id)
    ours = {(int(k) + 1, float(s), r["counts"]) for k, s, r in zip(found.class_ids, found.score, found.rles)}
    theirs = {
        (p["category_id"], p["score"], p["segmentation"]["counts"]) for p in published if p["image_id"] == image_id
    }
    assert ours == theirs
