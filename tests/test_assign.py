"""First labels against the published program and against METHOD section 3 read out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.core.errors import CimError
from cim.core.photo import photo_size
from cim.core.regions import RegionSet
from cim.prm.assign import assign_from_peaks, assign_from_points, read_points
from cim.prm.network import Peaks
from cim.proposals.cob import read_cob
from cim.storage.published import mat_from_clusters


@pytest.mark.parametrize("name", ["2007_000100", "2007_000104"])
def test_points_equal_the_published_program(reference, name):
    tree = reference / "VOC2012"
    regions = read_cob(tree / "COB_SBD_trainaug" / f"{name}.mat", photo_size(tree / "JPEGImages" / f"{name}.jpg"))
    points = read_points(tree / "Center_points" / f"{name}.txt", 20)
    labels = assign_from_points(regions, points)
    with np.load(reference / "expected" / "label_assign_points.npz") as file:
        np.testing.assert_array_equal(mat_from_clusters(labels, 20), file[name])


def slow_assign(masks, places, threshold, iou):
    """Section 3, place by place and mask by mask; places are (class from 1, row, column)."""
    class_ids, cluster = [-1] * len(masks), [0] * len(masks)
    candidates = set()
    for number, (label, row, column) in enumerate(places, 1):
        covering = [mask for mask in masks if mask[row, column]]
        if not covering:
            continue
        stand_in = np.mean(covering, axis=0) > threshold
        for i, mask in enumerate(masks):
            overlap = (mask & stand_in).sum() / max((mask | stand_in).sum(), 1)
            if overlap > iou:
                class_ids[i], cluster[i] = label, number
            elif overlap > 0:
                candidates.add(i)
    for i in candidates:
        if class_ids[i] == -1:
            class_ids[i], cluster[i] = 0, len(places) + 1
    return class_ids, cluster


def nested_masks(rng, count, height, width):
    """Rectangles, some inside each other, so that places are covered by several."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(0, height) + 1, x : x + rng.integers(0, width) + 1] = rng.random() < 0.95
    return masks


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 6), st.sampled_from([0.3, 0.5, 0.7]), st.integers(2, 20)
)
def test_peaks_equal_the_slow_version(seed, count, peaks, threshold, side):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 30, 2)
    masks = nested_masks(rng, count, height, width)
    index = np.stack([rng.integers(0, 3, peaks), rng.integers(0, side, peaks), rng.integers(0, side, peaks)], 1)
    values = rng.integers(0, 4, peaks).astype(np.float32)  # with ties
    found = assign_from_peaks(
        RegionSet.from_masks(masks), Peaks(index, values, (side, side)), mean_mask_threshold=threshold
    )
    order = sorted(range(peaks), key=lambda j: values[j])
    places = [(index[j, 0] + 1, int(index[j, 1] * height / side), int(index[j, 2] * width / side)) for j in order]
    class_ids, cluster = slow_assign(masks, places, threshold, 0.5)
    assert found.class_ids.tolist() == class_ids
    assert found.cluster.tolist() == cluster


def regions_of(*boxes, size=(10, 20)) -> RegionSet:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return RegionSet.from_masks(masks)


def test_a_share_of_exactly_the_threshold_is_outside():
    regions = regions_of(*[(0, 0, 10, 10)] * 7, *[(0, 0, 10, 2)] * 3)  # 7 of 10 hold the right part
    labels = assign_from_points(regions, np.array([[0.0, 0.0, 0]]), mean_mask_threshold=0.7)
    assert labels.class_ids.tolist() == [0] * 7 + [1] * 3


def test_an_iou_of_exactly_one_half_is_background():
    regions = regions_of((0, 0, 10, 4), (0, 0, 10, 8))
    labels = assign_from_points(regions, np.array([[0.0, 0.0, 1]]), mean_mask_threshold=0.5)
    assert labels.class_ids.tolist() == [2, 0]
    assert labels.cluster.tolist() == [1, 2]


def test_the_stronger_peak_wins_and_the_weaker_keeps_its_number():
    regions = regions_of((0, 0, 10, 10), (0, 12, 10, 20))
    peaks = Peaks(np.array([[0, 5, 2], [1, 5, 4]]), np.float32([9, 30]), (10, 20))
    labels = assign_from_peaks(regions, peaks)
    assert labels.class_ids.tolist() == [2, -1]
    assert labels.cluster.tolist() == [2, 0]


def test_a_peak_that_no_proposal_covers_labels_nothing():
    regions = regions_of((0, 0, 10, 5), (0, 15, 10, 20))
    peaks = Peaks(np.array([[0, 5, 10], [0, 5, 16]]), np.float32([1, 2]), (10, 20))
    labels = assign_from_peaks(regions, peaks)
    assert labels.class_ids.tolist() == [-1, 1]
    assert labels.cluster.tolist() == [0, 2]


def test_no_peaks_and_no_proposals():
    none = Peaks(np.zeros((0, 3), np.int64), np.zeros(0, np.float32), (4, 4))
    labels = assign_from_peaks(regions_of((0, 0, 2, 2)), none)
    assert labels.class_ids.tolist() == [-1]
    assert labels.cluster.tolist() == [0]
    one = Peaks(np.array([[0, 1, 1]]), np.float32([1]), (4, 4))
    assert len(assign_from_peaks(RegionSet.from_masks(np.zeros((0, 4, 4), bool)), one)) == 0


def test_points_are_checked(tmp_path):
    regions = regions_of((0, 0, 2, 2))
    with pytest.raises(CimError, match="outside the photo"):
        assign_from_points(regions, np.array([[20.0, 1, 0]]))
    path = tmp_path / "p.txt"
    path.write_text("1.5 2 0 1.0\n\n3 4 2 0.5\n")
    np.testing.assert_array_equal(read_points(path, 3), [[1.5, 2, 0], [3, 4, 2]])
    with pytest.raises(CimError, match=r"line 3.*0\.\.1"):
        read_points(path, 2)
    path.write_text("1 2\n")
    with pytest.raises(CimError, match="not a point"):
        read_points(path, 2)
    path.write_text("")
    assert read_points(path, 2).shape == (0, 3)
    with pytest.raises(CimError, match="no points"):
        read_points(tmp_path / "q.txt", 2)
