"""The best disjoint set against all sets; what is known of a photo in its proposals, in mining and in selection."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cim.core.regions import RegionSet, overlaps
from cim.core.types import PseudoLabels, RoiScores
from cim.datasets.base import Dataset, Record
from cim.datasets.known import NOTHING, Known, Mark
from cim.inference.detections import Selection, select_dataset
from cim.inference.selection import select
from cim.mining.disjoint import best_disjoint
from cim.mining.groups import APART
from cim.mining.losses import Criterion
from cim.mining.miners import CIMMiner
from cim.mining.told import OTHERS, Told, shares_of, told_of
from cim.mining.told_labels import mine_told
from cim.prm.assign import assign_from_peaks
from cim.prm.network import Peaks
from cim.prm.told_places import assign_told, told_evidence, told_places

SIZE = (20, 60)


def boxes_set(*boxes: tuple[int, int, int, int]) -> RegionSet:
    """Regions that are rectangles x1, y1, x2, y2."""
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return RegionSet.from_masks(masks)


A, B, C, GROUP, PART = (2, 5, 12, 15), (14, 5, 24, 15), (40, 5, 50, 15), (2, 5, 24, 15), (2, 5, 12, 9)
REGIONS = boxes_set(A, B, C, GROUP, PART)
SCORES = np.array([[0.5, 0.0], [0.4, 0.0], [0.05, 0.6], [0.9, 0.0], [0.45, 0.0]], np.float32)


def rle(box: tuple[int, int, int, int]) -> str:
    mask = np.zeros(SIZE, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


def told(*marks: Mark, counts: tuple[tuple[int, int], ...] = (), deleted: tuple[Mark, ...] = ()) -> Told:
    numbers: dict[int, int] = {}
    for mark in marks:
        numbers[mark.class_id] = numbers.get(mark.class_id, 0) + 1
    known = Known(tuple(sorted((numbers | dict(counts)).items())), marks, rejected=deleted)
    found = told_of(known, REGIONS, 2)
    assert found is not None
    return found


# ---------------------------------------------------------------------- the search


def all_sets(values: np.ndarray, apart: np.ndarray) -> tuple[int, float]:
    """Slots filled and sum of values of the best set, out of every way to fill the slots."""
    best = (0, 0.0)
    for chosen in itertools.product(range(-1, values.shape[1]), repeat=len(values)):
        used = [k for k in chosen if k >= 0]
        worth = [values[slot, k] for slot, k in enumerate(chosen) if k >= 0]
        fits = all(a != b and apart[a, b] for a, b in itertools.combinations(used, 2))
        if fits and all(value > 0 for value in worth):
            best = max(best, (len(used), float(sum(worth))))
    return best


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), slots=st.integers(0, 4), same=st.integers(0, 3), count=st.integers(0, 6))
def test_no_set_is_better(seed, slots, same, count):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-0.3, 1, (slots, count)).round(2)
    values[slots - min(same, slots) :] = values[-1:]
    apart = rng.random((count, count)) < 0.6
    apart &= apart.T
    chosen = best_disjoint(values, apart)
    used = [int(k) for k in chosen if k >= 0]
    assert len(set(used)) == len(used)
    assert all(apart[a, b] for a, b in itertools.combinations(used, 2))
    assert all(values[slot, k] > 0 for slot, k in enumerate(chosen) if k >= 0)
    worth = sum(float(values[slot, k]) for slot, k in enumerate(chosen) if k >= 0)
    filled, most = all_sets(values, apart)
    assert (len(used), pytest.approx(worth)) == (filled, most)


def test_a_search_that_is_cut_short_still_answers():
    rng = np.random.default_rng(0)
    values, apart = np.tile(rng.uniform(0.1, 1, 100), (12, 1)), rng.random((100, 100)) < 0.3
    apart &= apart.T
    chosen = best_disjoint(values, apart, steps=50)
    used = [k for k in chosen if k >= 0]
    assert len(used) > 2
    assert all(apart[a, b] for a, b in itertools.combinations(used, 2))
    assert (best_disjoint(values, apart, steps=0) == -1).all()


# ---------------------------------------------------------------------- what proposals fit


def test_nothing_known_is_nothing():
    assert told_of(NOTHING, REGIONS, 2) is None


def test_a_count_takes_members_before_their_group():
    found = told(counts=((0, 2),))
    assert found.numbers.tolist() == [2, -1]
    assert sorted(found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist()) == [0, 1]  # 0.5 * 0.4
    better = np.array([0.5, 0.4, 0.3, 0.9, 0.45])
    assert sorted(found.choose(0, better, shares_of(REGIONS)).tolist()) == [2, 3]  # 0.3 * 0.9


def test_one_of_a_class_is_its_best_region():
    assert told(counts=((0, 1),)).choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [3]


def test_more_than_there_is_leaves_slots_empty():
    chosen = told(counts=((0, 5),)).choose(0, SCORES[:, 0], shares_of(REGIONS))
    assert sorted(chosen.tolist()) == [-1, -1, 0, 1, 2]


def test_a_point_lies_in_one_region_and_in_no_other_instance():
    found = told(Mark(0, ((7, 7),)), Mark(0, ((20, 7),)), Mark(1, ((45, 7),)))
    assert found.fit[0].tolist() == pytest.approx([1, 0, 0, OTHERS, 1])  # the group holds both
    assert found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [0, 1]
    assert found.choose(1, SCORES[:, 1], shares_of(REGIONS)).tolist() == [2]
    assert found.merged.tolist() == [False, False, False, True, False]


def test_a_region_with_two_points_is_taken_where_there_is_no_other():
    regions = REGIONS.select(np.array([2, 3]))
    known = Known(((0, 2),), (Mark(0, ((7, 7),)), Mark(0, ((20, 7),))))
    found = told_of(known, regions, 1)
    assert found is not None
    assert sorted(found.choose(0, np.array([0.1, 0.9]), shares_of(regions)).tolist()) == [-1, 1]


def test_an_instance_without_a_point_avoids_the_points_of_others():
    found = told(Mark(0, ((7, 7),)), counts=((0, 2),))
    assert found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [0, 1]


def test_a_box_bounds_its_region():
    found = told(Mark(0, box=(2, 5, 12, 10)))
    assert found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [4]
    assert found.fit[0, 3] == 0  # IoU of less than BOUND


def test_a_mask_is_certain_and_keeps_its_place():
    found = told(Mark(0, mask=rle(B)), counts=((0, 2),))
    assert found.fit[0].tolist() == pytest.approx([0, 1, 0, 100 / 220, 0])
    assert found.in_way[0].tolist() == [False, True, False, True, False]
    assert found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [0]


NO_GROUP = (Mark(0, mask=rle(GROUP)),)


def test_what_is_like_a_deleted_mask_is_no_instance():
    found = told(counts=((0, 1),), deleted=NO_GROUP)
    assert found.barred.tolist() == [[False, False, False, True, False], [False] * 5]
    assert found.choose(0, SCORES[:, 0], shares_of(REGIONS)).tolist() == [0]  # the group would be better
    assert found.select(np.array([3, 0])).barred.tolist() == [[True, False], [False, False]]


def test_what_is_still_more_like_an_accepted_mask_may_be_one():
    nearly = Mark(0, mask=rle((2, 5, 12, 14)))
    assert told(deleted=(nearly,)).barred[0].tolist() == [True, False, False, False, False]
    assert not told(Mark(0, mask=rle(A)), deleted=(nearly,)).barred.any()
    assert told(Mark(1, mask=rle(A)), deleted=(nearly,)).barred[0, 0]  # of another class


def test_a_class_that_is_not_there_says_nothing_of_proposals():
    assert told_of(Known(absent=(1,)), REGIONS, 2) is None


def test_no_proposals():
    empty = RegionSet.from_masks(np.zeros((0, *SIZE), bool))
    found = told_of(Known(((0, 2),), (Mark(0, ((7, 7),)), Mark(0, mask=rle(B)))), empty, 1)
    assert found is not None
    assert found.choose(0, np.zeros(0), shares_of(empty)).tolist() == [-1]
    detections = select(empty, np.zeros((0, 1), np.float32), 1, told=found)
    assert detections.score.tolist() == [1]


# ---------------------------------------------------------------------- selection


def test_selection_has_exactly_so_many_and_the_rest_as_before():
    plain = select(REGIONS, SCORES, 1, nms="mask")
    assert plain.known is None
    found = select(REGIONS, SCORES, 1, nms="mask", told=told(Mark(0, mask=rle(A)), counts=((0, 2),)))
    assert list(zip(found.class_ids.tolist(), found.proposal.tolist())) == [(0, -1), (1, 2), (0, 1)]
    assert found.score.tolist() == pytest.approx([1, 0.6, 0.4])
    assert found.known is not None
    assert found.known.tolist() == [True, False, True]
    assert found.boxes[0].tolist() == list(A)
    assert (coco_mask.decode(found.rles[0]) == REGIONS.masks([0])[0]).all()


def test_selection_of_what_is_told_does_not_lower_groups():
    found = select(REGIONS, SCORES, 1, nms="mask", group_ratio=0.4, told=told(counts=((0, 1),)), tags=[0])
    assert found.proposal.tolist() == [3]
    assert found.score.tolist() == pytest.approx([0.9])


def test_selection_takes_nothing_like_a_deleted_mask():
    plain = select(REGIONS, SCORES, 1, nms="mask", tags=[0])
    assert plain.proposal.tolist()[:2] == [3, 4]
    found = select(REGIONS, SCORES, 1, nms="mask", tags=[0], told=told(deleted=NO_GROUP))
    assert 3 not in found.proposal
    assert found.proposal.tolist()[0] == 0  # which the group had suppressed
    other = select(REGIONS, SCORES, 1, nms="mask", told=told(deleted=(Mark(1, mask=rle(GROUP)),)))
    assert other.proposal.tolist()[0] == 2 or 3 in other.proposal  # deleted as a cat: it may be a dog


class Given:
    """Regions and scores by image."""

    def __init__(self, value: object) -> None:
        self.load = lambda image_id: value


@pytest.mark.parametrize("known", [True, False])
def test_a_data_set_is_selected_as_it_is_known(known):
    told_record = Record(1, Path("a.jpg"), SIZE, (0,), Known(((0, 2),), (Mark(0, mask=rle(A)),)))
    records = (told_record, Record(2, Path("b.jpg"), SIZE, (0,)))
    dataset = Dataset("two", ("dog", "cat"), (1, 2), records)
    options = {"known": known, "doubts": True}
    first, second = select_dataset(dataset, Given(REGIONS), Given(SCORES), Selection(nms="mask"), **options)
    assert len(second) == 4
    assert not any("known" in line for line in second)
    if not known:
        assert first == [{**line, "image_id": 1} for line in second]
        return
    assert [(line["category_id"], line["proposal"], line["certain"], line["members"]) for line in first] == [
        (1, -1, True, 0.0),  # what somebody drew is certain, and not several
        (1, 1, False, 0.0),
    ]
    assert all(line["known"] for line in first)


# ---------------------------------------------------------------------- mining


def mined(told: Told, tags: list[float], branch: int = 0) -> PseudoLabels | None:
    over = overlaps(torch.from_numpy(REGIONS.members).float(), torch.from_numpy(REGIONS.atom_areas).float())
    scores, ones = torch.from_numpy(SCORES), torch.ones(SCORES.shape)
    miner = CIMMiner(anti_noise=False, containment=False, seed_fraction=0.2)

    def mine(of: torch.Tensor) -> PseudoLabels | None:
        return miner(scores, ones, of, over, branch, None)

    return mine_told(mine, scores, torch.tensor(tags), over, branch, told)


def test_a_count_makes_its_members_the_truths_and_their_group_incomplete():
    labels = mined(told(Mark(0, ((7, 7),)), Mark(0, ((20, 7),))), [1, 0])
    assert labels is not None
    assert labels.mined.tolist() == [True, True, False, False, False]
    assert labels.class_ids.tolist() == [1, 1, -1, 1, 1]
    assert labels.integrity.tolist() == [1, 1, 0, 0, 0]
    assert labels.weight.tolist() == pytest.approx([0.5, 0.4, 0, 0.5, 0.5])
    assert int(labels.seeds) == 2


def test_the_group_would_be_complete_without():
    labels = mined(told(counts=((0, 1),)), [1, 0])
    assert labels is not None
    assert labels.mined.tolist() == [False, False, False, True, False]
    assert labels.integrity[3] == 1


def test_a_mask_weighs_as_much_as_the_best_proposal_of_its_class():
    labels = mined(told(Mark(0, mask=rle(B))), [1, 0])
    assert labels is not None
    assert not labels.mined.any()
    assert labels.class_ids.tolist() == [-1, 1, -1, 1, -1]
    assert labels.weight.tolist() == pytest.approx([0, 0.9, 0, 0.9, 0])


def test_classes_without_a_number_are_mined_as_ever():
    alone = mined(told(counts=((0, 1),)), [1, 0])
    both = mined(told(counts=((0, 1),)), [1, 1])
    assert alone is not None
    assert both is not None
    assert both.class_ids.tolist() == [*alone.class_ids[:2].tolist(), 2, *alone.class_ids[3:].tolist()]
    assert both.mined.tolist() == [False, False, True, True, False]
    assert both.weight[2] == pytest.approx(0.6)


def test_nothing_that_fits_leaves_what_the_miner_finds():
    nowhere = told(Mark(0, ((55, 2),)))
    assert mined(nowhere, [1, 0]) is None
    labels = mined(nowhere, [1, 1])
    assert labels is not None
    assert labels.mined.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("counts", [(), ((0, 1),)])
def test_mining_ignores_what_is_like_a_deleted_mask(counts):
    over = overlaps(torch.from_numpy(REGIONS.members).float(), torch.from_numpy(REGIONS.atom_areas).float())
    s = torch.cat([torch.zeros(5, 1), torch.from_numpy(SCORES)], 1)
    scores = RoiScores(s, torch.ones_like(s), s[None], torch.ones_like(s)[None])
    criterion = Criterion(CIMMiner(anti_noise=False, containment=False, seed_fraction=0.2))
    tags = torch.tensor([1.0, 0.0])
    (before,) = criterion.mine(scores, tags, over, None, told(counts=counts) if counts else None)
    assert before is not None
    assert before.mined.tolist() == [False, False, False, True, False]
    (after,) = criterion.mine(scores, tags, over, None, told(counts=counts, deleted=NO_GROUP))
    assert after is not None
    assert after.mined.tolist() == [True, False, False, False, False]
    assert after.class_ids[0] == 1
    assert (after.class_ids[3], after.weight[3], after.integrity[3]) == (-1, 0, 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), number=st.integers(1, 4))
def test_truths_are_apart(seed, number):
    rng = np.random.default_rng(seed)
    masks = np.zeros((20, *SIZE), bool)
    for mask in masks:
        y, x = rng.integers(0, 15), rng.integers(0, 50)
        mask[y : y + rng.integers(2, 12), x : x + rng.integers(2, 20)] = True
    regions = RegionSet.from_masks(masks)
    found = told_of(Known(((0, number),)), regions, 1)
    assert found is not None
    rows = [row for row in found.choose(0, rng.uniform(0.1, 1, 20), shares_of(regions)) if row >= 0]
    for a, b in itertools.combinations(rows, 2):
        assert (masks[a] & masks[b]).sum() < APART * min(masks[a].sum(), masks[b].sum())


# ---------------------------------------------------------------------- first labels


OPTIONS = {"mean_mask_threshold": 0.3, "iou": 0.5, "background": "touching"}


def peaks_at(*places: tuple[int, int, int, float]) -> Peaks:
    """Peaks (class, x, y, value) on a map of the photo's size."""
    index = np.array([(class_id, y, x) for class_id, x, y, _ in places], np.int64).reshape(-1, 3)
    return Peaks(index, np.array([value for *_, value in places], np.float32), SIZE)


def test_points_claim_what_holds_them_alone_and_groups_are_background():
    found = told(Mark(0, ((7, 7),)), Mark(0, ((20, 7),)))
    labels = assign_told(REGIONS, peaks_at((0, 45, 7, 9.0)), found, [0], None, **OPTIONS)
    assert labels.class_ids.tolist() == [1, 1, -1, 0, 0]
    assert labels.cluster.tolist() == [1, 2, 0, 3, 3]


def test_peaks_of_classes_of_which_no_more_is_known_stay():
    peaks = peaks_at((0, 45, 7, 9.0), (1, 45, 7, 5.0))
    labels = assign_told(REGIONS, peaks, told(Mark(0, ((7, 7),))), [0, 1], None, **OPTIONS)
    assert labels.class_ids[2] == 2
    assert labels.cluster[2] == 1
    assert labels.class_ids[3] == 1


def test_a_number_takes_as_many_disjoint_regions_as_the_maps_speak_for():
    evidence = np.array([[0.5], [0.4], [0.01], [1.0], [0.3]], np.float32)
    labels = assign_told(REGIONS, peaks_at((0, 7, 7, 9.0)), told(counts=((0, 2),)), [0], evidence, **OPTIONS)
    assert labels.class_ids.tolist() == [1, 1, -1, 0, 0]
    assert len(set(labels.cluster[:2].tolist())) == 2
    alone = assign_told(REGIONS, peaks_at((0, 7, 7, 9.0)), told(counts=((0, 2),)), [0], None, **OPTIONS)
    plain = assign_from_peaks(REGIONS, peaks_at((0, 7, 7, 9.0)), **OPTIONS)
    assert alone.class_ids.tolist() == plain.class_ids.tolist()  # without evidence a number says no more than a tag


def test_a_mask_labels_by_its_pixels_and_overwrites():
    marks = (Mark(0, ((7, 7),)), Mark(1, mask=rle(A)))
    labels = assign_told(REGIONS, peaks_at(), told(*marks), [0, 1], None, **OPTIONS)
    assert labels.class_ids.tolist() == [2, -1, -1, 0, 1]


def test_marks_and_a_larger_number():
    evidence = np.array([[0.5], [0.4], [0.01], [1.0], [0.3]], np.float32)
    found = told(Mark(0, ((20, 7),)), counts=((0, 2),))
    places = told_places(REGIONS, found, [0], evidence, 0.3)
    assert places.class_ids.tolist() == [1, 1]
    assert places.overlap.argmax(1).tolist() == [1, 0]  # the marked one, then the other


def test_evidence_falls_where_no_mark_is():
    evidence = np.array([[0.5], [0.4], [0.2], [1.0], [0.3]], np.float32)
    found = told_evidence(evidence, told(Mark(0, ((7, 7),)), Mark(0, ((20, 7),))), [0])
    assert found[:, 0].tolist() == pytest.approx([1, 0.8, 0.01, 0.02, 0.6])
    open_end = told_evidence(evidence, told(Mark(0, ((7, 7),)), counts=((0, 3),)), [0])
    assert (open_end == evidence).all()


def test_no_first_label_for_what_is_like_a_deleted_mask():
    peaks = peaks_at((0, 7, 7, 9.0))
    assert assign_from_peaks(REGIONS, peaks, **OPTIONS).class_ids.tolist() == [0, 0, -1, 1, 0]
    labels = assign_told(REGIONS, peaks, told(deleted=NO_GROUP), [0], None, **OPTIONS)
    assert labels.class_ids.tolist() == [0, 0, -1, -1, 0]
    evidence = np.array([[0.5], [0.4], [0.2], [1.0], [0.3]], np.float32)
    found = told_evidence(evidence, told(deleted=NO_GROUP), [0])
    assert found[:, 0].tolist() == pytest.approx([1, 0.8, 0.4, 0.02, 0.6])
    counted = told(counts=((0, 1),), deleted=NO_GROUP)
    assert told_places(REGIONS, counted, [0], evidence, 0.3).overlap.argmax(1).tolist() == [0]


def test_nothing_to_label():
    labels = assign_told(REGIONS, peaks_at(), told(Mark(0, ((55, 2),))), [0], None, **OPTIONS)
    assert (labels.class_ids == -1).all()
    empty = RegionSet.from_masks(np.zeros((0, *SIZE), bool))
    found = told_of(Known(((0, 1),), (Mark(0, ((7, 7),)),)), empty, 1)
    assert found is not None
    assert len(assign_told(empty, peaks_at(), found, [0], np.zeros((0, 1), np.float32), **OPTIONS)) == 0
