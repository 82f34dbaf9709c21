"""Verdicts: against simulation and slow loops, and at their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.evaluation.verdicts import (
    SKILL,
    BestMasks,
    Verdict,
    chance_precision,
    judge_first_labels,
    judge_masks,
    judge_response,
    keep_verdict,
    load_verdicts,
    mean_overlap,
    save_verdict,
    worst,
)
from cim.inference.best_masks import SIDE, best_masks
from cim.storage.published import open_regions
from cim.storage.store import Store


def average_precision(truth: np.ndarray) -> float:
    """Of photos in the order given."""
    ranks = np.flatnonzero(truth)
    return float(np.mean([truth[: k + 1].mean() for k in ranks]))


@pytest.mark.parametrize(("positives", "count"), [(1, 2), (3, 12), (5, 9), (30, 60), (7, 7)])
def test_chance_is_what_random_orders_give(positives, count):
    rng = np.random.default_rng(0)
    truth = np.arange(count) < positives
    mean = np.mean([average_precision(rng.permutation(truth)) for _ in range(4000)])
    assert chance_precision(positives, count) == pytest.approx(mean, abs=0.015)


def test_nothing_to_expect():
    assert np.isnan(chance_precision(0, 5)) and chance_precision(1, 1) == 1.0


def judged(skill: float, photos: int = 50, count: int = 200, classes: int = 4) -> Verdict:
    chance = chance_precision(photos, count)
    precision = np.full(classes, chance + skill * (1 - chance))
    return judge_response(precision, np.full(classes, photos), count, [f"c{k}" for k in range(classes)])


@pytest.mark.parametrize(
    ("skill", "level"), [(0.9, "fine"), (SKILL[0] - 0.01, "doubtful"), (SKILL[1] - 0.01, "failed"), (0.0, "failed")]
)
def test_the_response_network(skill, level):
    verdict = judged(skill)
    assert verdict.level == level and bool(verdict.advice) == (level != "fine")
    assert {one.level for one in verdict.classes.values()} == {level}


def test_few_photos_are_never_fine():
    verdict = judged(1.0, photos=3, count=12)
    assert verdict.level == "doubtful" and "too few photos" in verdict.reason and "c0" in verdict.advice


def test_one_class_without_negatives_cannot_be_known():
    verdict = judge_response(np.array([np.nan]), np.array([30]), 30, ["cat"])
    assert verdict.level == "doubtful" and "without any of the tags" in verdict.advice


def test_a_class_that_is_not_told_is_named():
    precision, photos = np.array([0.95, 0.95, chance_precision(50, 200)]), np.full(3, 50)
    verdict = judge_response(precision, photos, 200, ["a", "b", "c"])
    assert (
        verdict.level == "doubtful" and "not told at all: c" in verdict.reason and verdict.classes["a"].level == "fine"
    )


def test_shuffled_tags_fail():
    """Scores that know nothing of the tags, as a network trained on shuffled ones gives for photos it has not seen."""
    rng = np.random.default_rng(1)
    truth = rng.random((300, 5)) < 0.2
    precision = np.array([average_precision(rng.permutation(truth[:, k])) for k in range(5)])
    assert judge_response(precision, truth.sum(0), 300, list("abcde")).level == "failed"


@pytest.mark.parametrize(("missing", "level"), [(0, "fine"), (1, "fine"), (10, "doubtful"), (40, "failed")])
def test_first_labels(missing, level):
    verdict = judge_first_labels({"dog": 100, "cat": 20}, {"dog": [f"{k}.jpg" for k in range(missing)]})
    assert verdict.level == level and f"{120 - missing} of 120" in verdict.reason
    assert ("dog on 0.jpg" in verdict.reason) == (missing > 0)


def masks(agreement: float = 0.8, area: float = 0.2, alike: bool = False, n: int = 40, holds: float = 0.9) -> BestMasks:
    rng = np.random.default_rng(0)
    small = np.zeros((n, SIDE, SIDE), bool)
    for mask in small:
        y, x = (3, 3) if alike else rng.integers(0, 12, 2)
        mask[y : y + 4, x : x + 4] = True
    return BestMasks(np.arange(n) % 2, np.full(n, agreement), np.full(n, area), small, np.full(n, holds))


@pytest.mark.parametrize(
    ("given_", "level"),
    [
        (masks(), "fine"),
        (masks(agreement=0.3), "doubtful"),
        (masks(agreement=0.1), "failed"),
        (masks(area=0.95), "failed"),
        (masks(alike=True), "failed"),
        (masks(holds=0.5), "doubtful"),
        (masks(holds=0.1), "failed"),
        (masks(holds=np.nan), "fine"),
        (masks(n=0), "failed"),
    ],
)
def test_masks(given_, level):
    verdict = judge_masks(given_, ["dog", "cat"])
    assert verdict.level == level and bool(verdict.advice) == (level != "fine")


def test_masks_of_one_class_can_fail_alone():
    found = masks()
    found = replace(found, agreement=np.where(found.class_ids == 1, 0.05, 0.95))
    verdict = judge_masks(found, ["dog", "cat"])
    assert verdict.classes["cat"].level == "failed" and verdict.classes["dog"].level == "fine"
    assert verdict.level == "doubtful"


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_mean_overlap_is_that_of_a_loop(n, seed):
    small = np.random.default_rng(seed).random((n, 4, 4)) < 0.5
    pairs = [(a, b) for i, a in enumerate(small) for j, b in enumerate(small) if i != j]
    slow = np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs]) if pairs else 0.0
    assert mean_overlap(small) == pytest.approx(slow, abs=1e-6)


def test_best_masks_out_of_stored_scores(tmp_path):
    """Two photos, two tags on one; a third without proposals, a fourth without tags."""
    rng = np.random.default_rng(0)
    regions, scores = Store.create(tmp_path / "r", "regions", {}), Store.create(tmp_path / "s", "detections", {})
    records, slow = [], []
    for name, tags in (("a", (0, 1)), ("b", (1,)), ("c", (0,)), ("d", ())):
        records.append(Record(name, tmp_path / name, (30, 40), tags))
        if name == "c":
            continue
        stack = rng.random((5, 30, 40)) < 0.4
        arrays = {key: rng.random((5, 2)).astype(np.float32) for key in ("scores", "mil")}
        regions.save_regions(name, RegionSet.from_masks(stack))
        scores.save(name, **arrays)
        for tag in tags:
            one, other = (stack[arrays[key][:, tag].argmax()] for key in ("scores", "mil"))
            slow.append((tag, (one & other).sum() / (one | other).sum(), one.mean()))
    dataset = Dataset("train", ("x", "y"), (1, 2), tuple(records))
    places = Store.create(tmp_path / "p", "peaks", {})
    tops = np.array([[0, 1, 2], [0, 3, 1], [1, 0, 0]], np.int32)  # class, row, column on a grid of 6 x 8
    places.save("a", peaks=tops, values=np.array([1, 2, 3], np.float32), grid=np.array([6, 8], np.int32))
    found = best_masks(dataset, open_regions(tmp_path / "r"), scores, places)
    first = open_regions(tmp_path / "r").load("a").masks()[scores.load("a")["scores"].argmax(0)]
    assert found.holds[:2].tolist() == [first[0, 15, 5], first[1, 0, 0]] and np.isnan(found.holds[2])
    assert found.class_ids.tolist() == [tag for tag, _, _ in slow]
    np.testing.assert_allclose(found.agreement, [value for _, value, _ in slow])
    np.testing.assert_allclose(found.area, [value for _, _, value in slow])
    assert found.small.shape == (3, SIDE, SIDE)


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "verdicts.json"
    assert load_verdicts(path) == {}
    first, second = judged(0.3), judge_first_labels({"dog": 2}, {"dog": ["a.jpg"]})
    save_verdict(path, "response network", judged(0.9))
    save_verdict(path, "first labels", second)
    save_verdict(path, "response network", first)
    assert load_verdicts(path) == {"response network": first, "first labels": second}
    assert first.line("response network").startswith("response network: doubtful - tags of photos not seen: 30 of 100")


def test_worst():
    assert worst(["fine", "failed", "doubtful"]) == "failed" and worst([]) == "fine"


def test_what_was_judged_is_judged_again_only_when_it_changed(tmp_path):
    path, asked = tmp_path / "verdicts.json", []

    def judge() -> Verdict:
        asked.append(1)
        return Verdict("fine", f"judged {len(asked)} times")

    assert keep_verdict(path, "CIM", "first", judge) == keep_verdict(path, "CIM", "first", judge)
    assert keep_verdict(path, "CIM", "second", judge).reason == "judged 2 times"
    save_verdict(path, "CIM", Verdict("failed", "of version 0.1"))
    assert keep_verdict(path, "CIM", "second", judge) == load_verdicts(path)["CIM"] == Verdict("fine", "judged 3 times")
