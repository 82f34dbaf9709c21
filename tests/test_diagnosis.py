"""Diagnosis on drawn cases, one per kind."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.diagnosis import DETECTION_KINDS, TRUTH_KINDS, diagnose, diagnose_image, plot_diagnosis

SIZE = (100, 200)


def rle(*boxes: tuple[int, int, int, int]) -> dict:
    """Union of boxes y1, x1, y2, x2."""
    mask = np.zeros(SIZE, np.uint8)
    for y1, x1, y2, x2 in boxes:
        mask[y1:y2, x1:x2] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


LEFT, RIGHT = (10, 10, 50, 50), (10, 60, 50, 100)  # two instances of 1,600 pixels


def instance(box, category=1) -> dict:
    return {"rle": rle(box), "category_id": category, "area": 1600.0, "iscrowd": 0}


def detection(*boxes, category=1) -> dict:
    return {"segmentation": rle(*boxes), "category_id": category, "score": 0.5}


@pytest.mark.parametrize(
    ("found", "kinds", "fates"),
    [
        ([detection(LEFT)], ["complete"], ["complete", "missed"]),
        ([detection(LEFT), detection((10, 10, 50, 48))], ["complete", "duplicate"], ["complete", "missed"]),
        ([detection((10, 10, 25, 50))], ["partial"], ["partial", "missed"]),
        ([detection((10, 10, 12, 12))], ["partial"], ["partial", "missed"]),
        ([detection((0, 0, 90, 190))], ["merged"], ["merged", "merged"]),
        ([detection(LEFT, RIGHT)], ["complete"], ["complete", "merged"]),  # IoU exactly 0.5 with the first
        ([detection(LEFT, (40, 10, 100, 58))], ["spill"], ["spill", "missed"]),
        ([detection(LEFT, category=2)], ["wrong class"], ["wrong class", "missed"]),
        ([detection((10, 10, 25, 50), category=2)], ["wrong class"], ["missed", "missed"]),
        ([detection((60, 120, 90, 150))], ["background"], ["missed", "missed"]),
        ([], [], ["missed", "missed"]),
        ([detection(RIGHT), detection(LEFT)], ["complete", "complete"], ["complete", "complete"]),
    ],
)
def test_kinds(found, kinds, fates):
    got = diagnose_image(found, [instance(LEFT), instance(RIGHT)])
    assert (got[0], got[1]) == (kinds, fates)
    assert got[2].tolist() == [coco_mask.area(d["segmentation"]) for d in found]


def test_no_instances():
    assert diagnose_image([detection(LEFT)], [])[:2] == (["background"], [])


@pytest.fixture
def case():
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in ("one", "two", "none")],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": "one", "category_id": 1, "segmentation": rle(LEFT)},
            {"id": 2, "image_id": "two", "category_id": 1, "segmentation": rle(LEFT)},
            {"id": 3, "image_id": "two", "category_id": 2, "segmentation": rle((60, 60, 80, 80))},
            {"id": 4, "image_id": "two", "category_id": 2, "segmentation": rle(RIGHT), "iscrowd": 1},
        ],
    }
    results = [
        {"image_id": "one", "category_id": 1, "segmentation": rle(LEFT), "score": 0.9},
        {"image_id": "one", "category_id": 1, "segmentation": rle((10, 10, 20, 20)), "score": 0.8},
        {"image_id": "two", "category_id": 1, "segmentation": rle((10, 10, 20, 20)), "score": 0.3},
        {"image_id": "two", "category_id": 2, "segmentation": rle((60, 60, 80, 80)), "score": 0.4},
        {"image_id": "none", "category_id": 2, "segmentation": rle(RIGHT), "score": 0.7},
    ]
    loaded = load_ground_truth(truth)
    return loaded, read_results(results, loaded)


def test_operating_points_and_strata(case):
    summary = diagnose(*case)
    assert summary["detections"]["count"] == 3  # as many as instances: the second of "one" and "none" do not count
    assert summary["detections"]["shares"]["complete"] == pytest.approx(200 / 3)
    assert summary["ground_truth"]["shares"]["partial"] == pytest.approx(100 / 3)
    assert summary["by_instances"]["1"]["ground_truth"] == {
        "count": 1,
        "shares": {k: 100.0 * (k == "complete") for k in TRUTH_KINDS},
    }
    assert summary["by_instances"]["2"]["detections"]["shares"]["partial"] == 50
    assert summary["by_size"]["small"]["ground_truth"]["count"] == 1
    assert summary["by_size"]["large"]["detections"]["count"] == 0
    above = diagnose(*case, score_threshold=0.5)
    assert above["detections"]["count"] == 3 and above["detections"]["shares"]["background"] == pytest.approx(100 / 3)
    assert above["ground_truth"]["shares"]["missed"] == pytest.approx(200 / 3)
    assert diagnose(*case, image_ids=["one"])["ground_truth"]["count"] == 1


def test_shares_add_up(case):
    for part, kinds in (("detections", DETECTION_KINDS), ("ground_truth", TRUTH_KINDS)):
        shares = diagnose(*case)[part]["shares"]
        assert set(shares) == set(kinds) and sum(shares.values()) == pytest.approx(100)


def test_nothing_and_plot(case, tmp_path):
    nothing = diagnose(case[0], [])
    assert nothing["detections"]["count"] == 0 and nothing["ground_truth"]["shares"]["missed"] == 100
    path = tmp_path / "diagnosis.png"
    plot_diagnosis({"CIM": diagnose(*case), "nothing": nothing}, path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
