"""Metrics: the published numbers, both backends, bad result files, CorLoc, oracle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.run_lengths import mask_areas, valid_rles
from cim.datasets.base import Dataset
from cim.evaluation.coco_results import load_ground_truth, read_results, to_coco
from cim.evaluation.metrics import corloc, evaluate_coco, evaluate_voc
from cim.evaluation.metrics_file import metric_row
from cim.inference.oracle import oracle_results, truth_overlaps
from cim.inference.selection import select

SIZE = (60, 80)


def rle_of(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def box_mask(y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def random_mask(rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(0, 50), rng.integers(0, 70)
    return box_mask(y, x, y + rng.integers(4, 30), x + rng.integers(4, 40))


def synthetic(seed: int, images: int = 12, classes: int = 4, per_image: int = 3, found: int = 20) -> tuple[dict, list]:
    """Ground truth and detections; ids are text and start at 0, the last class has no instances, some are crowds."""
    rng = np.random.default_rng(seed)
    ids = [f"photo {i}" for i in range(images)]
    annotations, results = [], []
    for image_id in ids:
        masks = [random_mask(rng) for _ in range(rng.integers(0, per_image + 1))]
        for mask in masks:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": 10 + int(rng.integers(0, classes - 1)),
                    "segmentation": rle_of(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
        for _ in range(found):
            near = masks and rng.random() < 0.6
            mask = np.roll(masks[rng.integers(len(masks))], rng.integers(-4, 5), 1) if near else random_mask(rng)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 10 + int(rng.integers(0, classes)),
                    "segmentation": rle_of(mask),
                    "score": float(rng.integers(0, 50)) / 50,
                }
            )
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in ids],
        "categories": [{"id": 10 + k, "name": f"class {k}"} for k in range(classes)],
        "annotations": annotations,
    }
    return truth, results


def without_counts(metrics: dict) -> dict:
    flat = {k: v for k, v in metrics.items() if isinstance(v, float)}
    return flat | {f"{n} {k}": v for n, row in metrics["per_class"].items() for k, v in row.items() if v is not None}


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_published_metrics(reference, backend):
    published = json.loads((reference / "expected" / "metrics.json").read_text())
    truth = reference / "VOC2012" / "annotations" / "voc_2012_val.json"
    metrics = evaluate_voc(truth, reference / "expected" / "predictions.json", backend)
    assert {k: round(metrics[k], 1) for k in published} == published
    assert metrics["mAP_present@0.50"] == pytest.approx(metrics["mAP@0.50"] * 10)  # 2 of 20 classes are there
    assert metrics["per_class"]["aeroplane"] == {
        "AP@0.25": None,
        "AP@0.50": None,
        "AP@0.70": None,
        "AP@0.75": None,
        "instances": 0,
    }


@pytest.mark.parametrize("evaluate", [evaluate_voc, evaluate_coco])
@pytest.mark.parametrize("seed", range(4))
def test_backends_agree(evaluate, seed):
    truth, results = synthetic(seed)
    fast, judge = without_counts(evaluate(truth, results)), without_counts(evaluate(truth, results, "pycocotools"))
    assert fast.keys() == judge.keys() and len(fast) > 8
    assert fast == pytest.approx(judge, abs=1e-9)
    assert any(0 < value < 100 for value in fast.values())


def test_subset_is_the_evaluation_of_that_subset():
    truth, results = synthetic(5)
    chosen = load_ground_truth(truth).images_with(2)
    assert 0 < len(chosen) < 12
    small = {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in chosen],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in chosen],
    }
    kept = [r for r in results if r["image_id"] in chosen]
    assert evaluate_voc(truth, results, image_ids=chosen) == evaluate_voc(small, kept)
    assert evaluate_voc(truth, results, image_ids=[])["mAP@0.50"] == 0


def test_class_without_ground_truth_counts_zero_or_not_at_all():
    truth, _ = synthetic(1)
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"], "score": 1.0}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    metrics = evaluate_voc(truth, perfect)
    assert metrics["classes_without_ground_truth"] == ["class 3"]
    assert metrics["mAP_present@0.75"] == pytest.approx(100) and metrics["mAP@0.75"] == pytest.approx(75)


def test_pictures_with_several_instances_average_over_their_own_classes():
    """Perfect detections are perfect on the subset too, although a class is missing there."""
    truth, _ = synthetic(1)
    keys = ("image_id", "category_id", "segmentation")
    perfect = [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth["annotations"] if not a["iscrowd"]]
    row = metric_row(load_ground_truth(truth), perfect, "voc")
    assert row["mAP@0.75"] == pytest.approx(75) and row["subset_multi"]["mAP@0.75"] == pytest.approx(100)
    assert "mAP_present@0.75" not in row["subset_multi"]


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_no_detections(backend):
    truth, _ = synthetic(1)
    assert evaluate_voc(truth, [], backend)["mAP_present@0.25"] == 0
    assert evaluate_coco(truth, [], backend)["AP"] == 0
    assert corloc(truth, [])["CorLoc"] == 0
    nothing = {**truth, "annotations": []}
    metrics = evaluate_voc(nothing, [], backend)
    assert metrics["mAP@0.50"] == 0 and len(metrics["classes_without_ground_truth"]) == 4


def test_mask_formats_of_ground_truth_agree():
    mask = box_mask(10, 20, 30, 60)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.ravel(order="F"), [2]])))).tolist()
    forms = [rle_of(mask), {"size": list(SIZE), "counts": runs}, [[20, 10, 60, 10, 60, 30, 20, 30]]]
    truth, _ = synthetic(0)
    for form in forms:
        annotation = {"id": 1, "image_id": "photo 0", "category_id": 10, "segmentation": form}
        loaded = load_ground_truth({**truth, "annotations": [annotation]})
        assert np.array_equal(coco_mask.decode(loaded.annotations[0]["rle"]).astype(bool), mask)
        assert loaded.annotations[0]["area"] == mask.sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "elsewhere"}, "1 with unknown image"),
        ({"image_id": [1]}, "1 with unknown image"),
        ({"category_id": {}}, "1 with unknown category"),
        ({"category_id": 99}, "1 with unknown category"),
        ({"score": float("nan")}, "1 with a score that is no number"),
        ({"score": None}, "1 with a score that is no number"),
        ({"segmentation": rle_of(np.ones((5, 6), bool))}, "1 with mask of another size"),
        ({"segmentation": {"size": list(SIZE), "counts": "zzz"}}, "1 with damaged mask"),
        ({"segmentation": {"size": list(SIZE), "counts": "ü"}}, "1 with damaged mask"),
        ({"segmentation": {"size": list(SIZE), "counts": [5, 5]}}, "1 with damaged mask"),
        ({"segmentation": None}, "1 with damaged mask"),
        ({"segmentation": [[1, 2]]}, "1 with damaged mask"),
    ],
)
def test_bad_result_lines(change, message):
    truth, results = synthetic(0)
    results[17] = {**results[17], **change}
    with pytest.raises(CimError, match=message) as error:
        evaluate_voc(truth, results)
    assert "number 17" in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    truth, results = synthetic(0)
    path = tmp_path / "truth.json"
    with pytest.raises(CimError, match="missing file"):
        evaluate_voc(path, results)
    path.write_text("[]")
    with pytest.raises(CimError, match="not COCO instance annotations"):
        evaluate_voc(path, results)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(CimError, match="not a COCO result file"):
        evaluate_voc(truth, path)
    damaged = {**truth, "annotations": [{**truth["annotations"][0], "image_id": "no"}]}
    with pytest.raises(CimError, match="unknown image no"):
        evaluate_voc(damaged, [])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0, 1))
def test_valid_rles_accepts_masks_and_finds_damage(seed, density):
    rng = np.random.default_rng(seed)
    masks = [rng.random(rng.integers(1, 40, 2)) < density for _ in range(4)] + [rng.random((3, 500)) < 0.01]
    rles = [rle_of(m) for m in masks]
    assert valid_rles(rles).all()
    broken = int(rng.integers(len(rles)))
    text = rles[broken]["counts"]
    cut = {**rles[broken], "counts": text[: rng.integers(len(text))]}
    longer = {**rles[broken], "counts": text + "1"}
    other_size = {**rles[broken], "size": [rles[broken]["size"][0] + 1, rles[broken]["size"][1]]}
    for wrong in (cut, longer, other_size, {**cut, "counts": text[:-1] + "o"}, {**cut, "counts": text + "~"}):
        verdict = valid_rles([*rles[:broken], wrong, *rles[broken + 1 :]])
        assert not verdict[broken] and verdict.sum() == len(rles) - 1


def test_valid_rles_decodes_exactly():
    """Any text that passes must decode to runs that the original code draws as a full image."""
    rng = np.random.default_rng(0)
    alphabet = [chr(c) for c in range(48, 112)]
    texts = ["".join(rng.choice(alphabet, rng.integers(1, 5))) for _ in range(3000)]
    size = [4, 3]
    verdict = valid_rles([{"size": size, "counts": t} for t in texts])
    assert 0 < verdict.sum() < 300
    for text, good in zip(texts, verdict, strict=True):
        assert good == (_slow_runs(text) is not None and sum(_slow_runs(text)) == 12)


def _slow_runs(text: str) -> list[int] | None:
    runs, position = [], 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position == len(text):
                return None
            code = ord(text[position]) - 48
            value |= (code & 31) << (5 * shift)
            more, position, shift = bool(code & 32), position + 1, shift + 1
            if not more and code & 16:
                value -= 1 << (5 * shift)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs if min(runs) >= 0 else None


@pytest.mark.parametrize("count", [0, 1, 255, 256, 700])
def test_areas_of_many_masks(count):
    masks = [np.arange(4800).reshape(SIZE) < n for n in range(count)]
    assert mask_areas([rle_of(m) for m in masks]).tolist() == list(range(count))


def test_many_detections():
    truth, results = synthetic(2, found=40)
    assert len(results) > 255
    judge = without_counts(evaluate_voc(truth, results, "pycocotools"))
    assert without_counts(evaluate_voc(truth, results)) == pytest.approx(judge)


def test_corloc_counts_the_best_detection_of_every_pair():
    truth, _ = synthetic(0, images=3)
    left, right = box_mask(0, 0, 20, 20), box_mask(30, 30, 50, 60)
    truth["annotations"] = [
        {"id": 1, "image_id": "photo 0", "category_id": 10, "segmentation": rle_of(left)},
        {"id": 2, "image_id": "photo 1", "category_id": 10, "segmentation": rle_of(left)},
        {"id": 3, "image_id": "photo 2", "category_id": 11, "segmentation": rle_of(left)},
    ]
    results = [
        {"image_id": "photo 0", "category_id": 10, "segmentation": rle_of(left), "score": 0.5},
        {"image_id": "photo 0", "category_id": 10, "segmentation": rle_of(right), "score": 0.4},
        {"image_id": "photo 1", "category_id": 10, "segmentation": rle_of(left), "score": 0.4},
        {"image_id": "photo 1", "category_id": 10, "segmentation": rle_of(right), "score": 0.5},
    ]
    found = corloc(truth, results)
    assert found["per_class"] == {"class 0": 50.0, "class 1": 0.0, "class 2": None, "class 3": None}
    assert found["CorLoc"] == 25.0


def test_oracle_is_a_ceiling():
    truth, results = synthetic(3, per_image=3)
    masks = {r["image_id"]: [] for r in results}
    for result in results:
        masks[result["image_id"]].append(coco_mask.decode(result["segmentation"]))
    regions = {image_id: RegionSet.from_masks(np.array(found)) for image_id, found in masks.items()}
    loaded = load_ground_truth(truth)
    best = {
        name: evaluate_voc(truth, oracle_results(loaded, regions.__getitem__, name))["mAP_present@0.50"]
        for name in ("equal", "iou")
    }
    assert best["iou"] >= best["equal"] > evaluate_voc(truth, results)["mAP_present@0.50"]
    for image_id, found in list(loaded.by_image.items())[:4]:
        rles = [a["rle"] for a in found]
        proposals = [rle_of(m) for m in regions[image_id].masks()]
        slow = np.array(coco_mask.iou(rles, proposals, [0] * len(proposals))).reshape(len(rles), len(proposals))
        np.testing.assert_allclose(truth_overlaps(regions[image_id], rles), slow)
    with pytest.raises(ValueError, match="equal or iou"):
        oracle_results(loaded, regions.__getitem__, "best")
    empty = RegionSet.from_masks(np.zeros((0, *SIZE), bool))
    assert oracle_results(loaded, lambda _: empty) == []


def test_to_coco_round_trip():
    rng = np.random.default_rng(0)
    regions = RegionSet.from_masks(np.array([random_mask(rng) for _ in range(9)]))
    scores = rng.random((9, 2)).astype(np.float32)
    dataset = Dataset("test", ("cat", "dog"), (17, 18), ())
    found = select(regions, scores, "photo 0")
    lines = json.loads(json.dumps(to_coco(found, dataset)))
    assert {line["category_id"] for line in lines} == {17, 18}
    for line, proposal in zip(lines, found.proposal, strict=True):
        mask = coco_mask.decode(line["segmentation"]).astype(bool)
        assert np.array_equal(mask, regions.masks([proposal])[0]) and line["proposal"] == proposal
        rows, columns = np.nonzero(mask)
        assert line["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert to_coco(select(regions, scores * 0, 1), dataset) == []
    truth, _ = synthetic(0)
    truth["categories"] += [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert len(read_results(lines, load_ground_truth(truth))) == len(lines)
