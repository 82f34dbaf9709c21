"""Groups taken for one instance: against the obvious search over all pairs, and what selection makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.core.regions import RegionSet
from cim.inference.selection import select
from cim.mining.groups import APART, INSIDE, LOWERED, SMALLER, lower_groups, member_strength


def two_animals() -> RegionSet:
    """Two squares side by side, both together, and a part of the first."""
    masks = np.zeros((4, 20, 40), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 5:15, 15:25] = True
    masks[2] = masks[0] | masks[1]
    masks[3, 5:10, 5:15] = True
    return RegionSet.from_masks(masks)


def slow_strength(masks: np.ndarray, score: np.ndarray) -> list[float]:
    areas = masks.sum((1, 2))
    found = []
    for group, value in enumerate(score):
        best = 0.0
        for a in range(len(masks)):
            for b in range(a):
                fits = all(
                    (masks[group] & masks[m]).sum() > INSIDE * areas[m] and areas[m] < SMALLER * areas[group]
                    for m in (a, b)
                )
                if fits and (masks[a] & masks[b]).sum() < APART * min(areas[a], areas[b]):
                    best = max(best, min(score[a], score[b]) / value)
        found.append(best)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 14))
def test_equals_the_search_over_all_pairs(seed: int, count: int):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 24, 32), bool)
    for mask in masks:
        y, x = rng.integers(0, 20), rng.integers(0, 28)
        mask[y : y + rng.integers(2, 24), x : x + rng.integers(2, 32)] = True
    score = rng.uniform(0.05, 1, count)  # nothing is faint
    regions = RegionSet.from_masks(masks)
    found = member_strength(score, regions.intersections(regions.members))
    np.testing.assert_allclose(found, slow_strength(masks, score), rtol=1e-6)


def test_members_come_before_their_group():
    regions = two_animals()
    scores = np.array([[0.5], [0.45], [0.9], [0.1]], np.float32)
    assert select(regions, scores, 1, nms="mask").proposal.tolist() == [2, 3]
    found = select(regions, scores, 1, nms="mask", group_ratio=0.4)
    assert found.proposal.tolist() == [0, 1]
    np.testing.assert_array_equal(found.score, scores[:2, 0])


@pytest.mark.parametrize(("ratio", "factor"), [(0.49, LOWERED), (0.51, 1.0)])
def test_from_the_ratio_on(ratio: float, factor: float):
    scores = np.array([[0.5], [0.45], [0.9], [0.1]], np.float32)
    lowered = lower_groups(two_animals(), scores, ratio)
    assert lowered.dtype == np.float32
    np.testing.assert_allclose(lowered[:, 0], [0.5, 0.45, 0.9 * factor, 0.1], rtol=1e-6)
    assert scores[2, 0] == np.float32(0.9)


def test_parts_of_one_are_no_group():
    masks = np.zeros((3, 20, 40), bool)
    masks[0, 5:15, 5:25] = True
    masks[1, 5:15, 5:10] = masks[2, 5:15, 10:25] = True
    scores = np.array([[0.9], [0.1], [0.6]], np.float32)
    np.testing.assert_array_equal(lower_groups(RegionSet.from_masks(masks), scores, 0.4), scores)


def test_classes_do_not_meet():
    scores = np.array([[0.5, 0.0], [0.0, 0.45], [0.9, 0.9], [0.1, 0.1]], np.float32)
    np.testing.assert_array_equal(lower_groups(two_animals(), scores, 0.4), scores)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_regions(count: int):
    masks = np.ones((count, 4, 4), bool)
    scores = np.full((count, 2), 0.5, np.float32)
    np.testing.assert_array_equal(lower_groups(RegionSet.from_masks(masks), scores, 0.4), scores)
