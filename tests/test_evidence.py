"""Peaks in units of their own map, evidence for whole proposals, and a label for every tag."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.prm.assign import assign_from_peaks
from cim.prm.evidence import (
    LEAST,
    class_evidence,
    complete,
    relative_peaks,
    speaks_against,
    with_background,
)
from cim.prm.network import Peaks


def bump(at: tuple[int, int], height: float, side: int = 9) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return height - (rows - at[0]).abs() - (columns - at[1]).abs()


@given(scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_relative_peaks_have_no_unit(scale):
    maps = torch.maximum(bump((2, 2), 10.0), bump((6, 6), 8.0))[None]
    assert relative_peaks(scale * maps, [0], 0.7).index[:, 1:].tolist() == [[2, 2], [6, 6]]
    assert relative_peaks(scale * maps, [0], 0.9).index[:, 1:].tolist() == [[2, 2]]
    assert len(relative_peaks(scale * maps, [0], 1.0)) == 1


def test_a_map_without_a_positive_peak_gives_its_highest():
    maps = torch.maximum(bump((2, 2), -1.0), bump((6, 6), -1.5))[None]
    assert relative_peaks(maps, [0], 0.1).index.tolist() == [[0, 2, 2]]
    assert len(relative_peaks(maps, [], 0.5)) == 0


def squares() -> RegionSet:
    """Left half, right half, everything, a corner of the left half: 8 x 8 pixels."""
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :, :4] = masks[1, :, 4:] = masks[2] = masks[3, :2, :2] = True
    return RegionSet.from_masks(masks)


def test_the_proposal_that_covers_the_map_has_most_evidence():
    maps = np.full((2, 4, 4), -1.0)
    maps[0, :, :2] = 5  # left
    maps[1, :, 2:] = 0.01  # right: small, but all there is
    evidence = class_evidence(squares(), maps, np.ones((4, 4)))
    assert evidence.shape == (4, 2) and evidence.dtype == np.float32
    assert evidence[0].tolist() == pytest.approx([1, LEAST])
    assert evidence[1].tolist() == pytest.approx([LEAST, 1])
    assert evidence[2].tolist() == pytest.approx([0.5, 0.5])
    np.testing.assert_allclose(evidence, class_evidence(squares(), 7 * maps, np.ones((4, 4))), rtol=1e-5)


def test_the_trunk_has_a_say_where_a_map_is_everywhere():
    strength = np.zeros((4, 4))
    strength[:, 2:] = 1
    evidence = class_evidence(squares(), np.ones((1, 4, 4)), strength)
    assert evidence[:, 0].argmax() == 1


def test_no_evidence_at_all_is_no_preference():
    assert class_evidence(squares(), -np.ones((1, 4, 4)), np.ones((4, 4))).tolist() == [[1], [1], [1], [1]]
    empty = RegionSet.from_masks(np.zeros((0, 8, 8), bool))
    assert class_evidence(empty, np.ones((2, 4, 4)), np.ones((4, 4))).shape == (0, 2)


def test_every_tag_gets_a_label():
    clusters = Clusters(np.array([1, 1, 0, -1]), np.array([1, 1, 2, 0]))
    evidence = np.array([[1, 0.9], [0.5, 0.2], [0.1, 1.0], [0.1, 0.3]], np.float32)
    done = complete(clusters, evidence, [0, 2])
    assert done.class_ids.tolist() == [1, 1, 3, -1]
    assert done.cluster.tolist() == [1, 1, 3, 0]
    assert complete(done, evidence, [0, 2]).class_ids.tolist() == done.class_ids.tolist()


def test_the_only_proposal_of_a_tag_is_left_to_it():
    clusters = Clusters(np.array([1]), np.array([1]))
    assert complete(clusters, np.ones((1, 2), np.float32), [0, 1]).class_ids.tolist() == [1]
    two = Clusters(np.array([1, 0]), np.array([1, 2]))
    evidence = np.array([[1, 1], [0.2, 0.1]], np.float32)
    assert complete(two, evidence, [0, 1]).class_ids.tolist() == [1, 2]


def test_what_every_map_speaks_against_is_background():
    maps = np.full((2, 4, 4), -1.0)
    maps[0, :, :2] = 3  # left
    against = speaks_against(squares(), maps)
    assert against.tolist() == [False, True, False, False]
    maps[1] = 0.5
    assert not speaks_against(squares(), maps).any()
    clusters = Clusters(np.array([1, -1, 0, -1]), np.array([1, 0, 2, 0]))
    done = with_background(clusters, np.array([True, True, True, False]))
    assert done.class_ids.tolist() == [1, 0, 0, -1]
    assert done.cluster.tolist() == [1, 2, 2, 0]
    fresh = with_background(Clusters(np.array([1, -1]), np.array([4, 0])), np.array([False, True]))
    assert fresh.cluster.tolist() == [4, 5]
    assert len(speaks_against(RegionSet.from_masks(np.zeros((0, 8, 8), bool)), maps)) == 0


def test_what_is_far_from_every_peak_is_background_when_asked_for():
    peaks = Peaks(np.array([[0, 1, 6]]), np.array([5.0], np.float32), (8, 8))  # in the right half
    touching = assign_from_peaks(squares(), peaks, mean_mask_threshold=0.6)
    rest = assign_from_peaks(squares(), peaks, mean_mask_threshold=0.6, background="rest")
    assert touching.class_ids[[0, 3]].tolist() == [-1, -1] or touching.class_ids[3] == 0
    assert (rest.class_ids >= 0).all()
    np.testing.assert_array_equal(rest.class_ids > 0, touching.class_ids > 0)
