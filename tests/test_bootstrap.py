"""Intervals of differences: the matching is the official one, and a draw is the evaluation of a drawn data set."""

from __future__ import annotations

import time

import numpy as np
import pytest
from doors import run_tool
from test_evaluation import synthetic

from cim.core.files import read_json, write_json
from cim.evaluation.bootstrap import MULTI, differences, judge_boxes, judge_masks
from cim.evaluation.box_files import boxes_of_masks, guesses_of
from cim.evaluation.boxes import BoxRules
from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.metrics import evaluate_coco, evaluate_voc
from cim.evaluation.metrics_file import metric_row
from cim.evaluation.ranked import draw_photos


def case(seed: int, **more):
    truth, results = synthetic(seed, **more)
    loaded = load_ground_truth(truth)
    return loaded, read_results(results, loaded)


@pytest.mark.parametrize("seed", range(3))
def test_every_photo_once_is_the_official_evaluation(seed):
    truth, found = case(seed)
    row, own = metric_row(truth, found, "voc"), judge_masks(truth, found, "voc").itself()
    for iou in ("0.25", "0.50", "0.70", "0.75"):
        assert own[f"mAP@{iou}"] == pytest.approx(row[f"mAP@{iou}"], abs=1e-9)
        assert own[f"{MULTI}mAP@{iou}"] == pytest.approx(row["subset_multi"][f"mAP@{iou}"], abs=1e-9)
    for fate in ("found", "merged", "partial", "missed"):
        assert own[fate] == pytest.approx(row[fate]) and 0 <= own[f"beside: {fate}"] <= 100
        assert own[f"beside: {fate}"] == pytest.approx(row["subset_beside"][fate])
    coco, official = judge_masks(truth, found, "coco").itself(), evaluate_coco(truth, found)
    assert [coco[n] for n in ("AP", "AP50", "AP75")] == pytest.approx([official[n] for n in ("AP", "AP50", "AP75")])
    objects = boxes_of_masks(truth)
    boxes = judge_boxes(objects, guesses_of(found, objects, truth.categories, "r"), BoxRules(), True).itself()
    assert [boxes[n] for n in ("box_mAP", "box_CorLoc", "found")] == pytest.approx(
        [row[n] for n in ("box_mAP", "box_CorLoc", "box_found")]
    )


def drawn_data_set(content, results, draw):
    """The slow way: a data set in which a photo stands as often as it was drawn, scores in a fixed order."""
    images, annotations, found = [], [], []
    for image, times in zip(content["images"], draw, strict=True):
        for copy in range(times):
            name = f"{image['id']} copy {copy}"
            images.append({**image, "id": name})
            annotations += [{**a, "image_id": name} for a in content["annotations"] if a["image_id"] == image["id"]]
            found += [{**r, "image_id": name} for r in results if r["image_id"] == image["id"]]
    return {**content, "images": images, "annotations": annotations}, found


def test_a_draw_is_the_evaluation_of_a_drawn_data_set():
    content, results = synthetic(7)
    for k, result in enumerate(results):
        result["score"] = float(np.random.default_rng(k).random())  # no ties: copies then stand beside each other
    truth = load_ground_truth(content)
    judged, draws = judge_masks(truth, read_results(results, truth), "voc"), draw_photos(len(truth.sizes), 8, 0)
    fast = judged.values(draws)
    annotated = {a["category_id"] for a in content["annotations"] if not a.get("iscrowd")}
    share = len(annotated) / len(truth.categories)
    for n, draw in enumerate(draws):
        slow = evaluate_voc(*drawn_data_set(content, results, draw))
        for iou in ("0.25", "0.50", "0.75"):
            assert fast[f"mAP@{iou}"][n] == pytest.approx(slow[f"mAP_present@{iou}"] * share, abs=1e-9)


def test_a_run_against_itself_and_against_a_worse_one():
    truth, found = case(1)
    good = judge_masks(truth, found, "voc")
    perfect = read_results(
        [
            {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["rle"], "score": 1.0}
            for a in truth.annotations
            if not a["iscrowd"]
        ],
        truth,
    )
    best = judge_masks(truth, perfect, "voc")
    for one in differences([good], [good], 200).values():
        assert (one.low, one.high, one.certain) == (0, 0, False) and one.first == one.second
    better = differences([good], [best], 200)["mAP@0.50"]
    assert better.certain and better.low < better.second - better.first < better.high
    assert differences([good], [best], 200) == differences([good], [best], 200)
    assert differences([good], [best], 200) != differences([good], [best], 200, seed=1)
    turned = differences([best], [good], 200)["mAP@0.50"]
    assert (turned.low, turned.high) == pytest.approx((-better.high, -better.low))


def test_seeds_widen_the_interval():
    truth, found = case(2)
    runs = [judge_masks(truth, read_results(list(found)[: len(found) // k], truth), "voc") for k in (1, 2, 4)]
    alone, many = differences(runs[:1], runs[1:2], 300), differences(runs[:1], runs[1:], 300)
    assert set(many) == set(alone)
    name = "mAP@0.50"
    assert many[name].second == pytest.approx(np.mean([run.itself()[name] for run in runs[1:]]))
    same = differences(runs, runs, 100)
    assert all((one.low, one.high) == (0, 0) for one in same.values())  # as many seeds: drawn together


def test_other_photos_and_nothing_at_all():
    truth, found = case(3)
    run = judge_masks(truth, found, "voc")
    with pytest.raises(ValueError, match="same photos"):
        differences([run], [judge_masks(*case(3, images=5), "voc")])
    with pytest.raises(ValueError, match="same photos"):
        differences([], [run])
    nothing = judge_masks(truth, read_results([], truth), "voc")
    assert differences([nothing], [run], 20)["mAP@0.25"].first == 0
    empty = load_ground_truth({"images": [], "annotations": [], "categories": []})
    assert differences([judge_masks(empty, [], "voc")], [judge_masks(empty, [], "voc")], 20)["mAP@0.25"].high == 0


def test_a_thousand_draws_take_seconds():
    truth, found = case(4, images=138, classes=7, found=300)
    run = judge_masks(truth, found, "voc")
    begin = time.process_time()
    differences([run], [run], 1000)
    assert time.process_time() - begin < 30


# ---------------------------------------------------------------------- the command


@pytest.fixture
def runs(tmp_path, capsys):
    """a, b: two results of the same photos; b better."""
    content, results = synthetic(5)
    write_json(tmp_path / "truth.json", content)
    for name, kept in (("a", results[::2]), ("b", results)):
        write_json(tmp_path / name / "results.json", kept)
        files = ["--results", tmp_path / name / "results.json", "--annotations", tmp_path / "truth.json"]
        assert run_tool("evaluation", *files, "--name", "CIM") == 0
    capsys.readouterr()
    return tmp_path


def test_compare_prints_intervals(runs, capsys):
    assert run_tool("compare", runs / "a", runs / "b", "--resamples", 50) == 0
    told = capsys.readouterr().out
    assert "b: CIM less a: CIM: points, and the 95 % interval of 50 paired draws (12 photos)" in told
    for name in ("mAP@0.50", "several: mAP@0.75", "found", "beside: merged", "box_mAP", "box_CorLoc"):
        assert f"\n| {name} | " in told
    assert run_tool("compare", runs / "a", runs / "b", "--resamples", 50) == 0
    assert capsys.readouterr().out == told
    assert run_tool("compare", runs / "a", runs / "b", "--resamples", 0) == 0
    assert "interval" not in capsys.readouterr().out


def test_compare_takes_seeds_and_rows_of_one_run(runs, capsys):
    a, b = runs / "a", runs / "b"
    assert run_tool("compare", f"both={a},{b}", b, "--resamples", 20) == 0
    assert "b: CIM less both: CIM" in (told := capsys.readouterr().out) and "(12 photos, 2 and 1 seeds)" in told
    files = ["--results", a / "results.json", "--annotations", runs / "truth.json"]
    assert run_tool("evaluation", *files, "--output", b, "--name", "half") == 0
    assert run_tool("compare", b, "--resamples", 20) == 0
    assert "half less CIM" in capsys.readouterr().out
    assert run_tool("compare", f"x={a},", b) == 2
    assert "bad run" in capsys.readouterr().err


def test_compare_says_why_there_is_no_interval(runs, capsys):
    a, b = runs / "a", runs / "b"
    (runs / "moved").mkdir()
    a.rename(runs / "moved" / "a")  # a folder may move: its results are known from where it is
    assert run_tool("compare", runs / "moved" / "a", b, "--resamples", 20) == 0
    assert "b: CIM less a: CIM" in capsys.readouterr().out
    write_json(b / "results.json", [])
    assert run_tool("compare", runs / "moved" / "a", b) == 0
    assert "it was written anew" in capsys.readouterr().out
    (b / "results.json").unlink()
    assert run_tool("compare", runs / "moved" / "a", b) == 0
    assert "no intervals for b: CIM against a: CIM: the file is not there any more" in capsys.readouterr().out
    content = read_json(b / "metrics.json")
    write_json(b / "metrics.json", {"rows": content["rows"]})
    assert run_tool("compare", runs / "moved" / "a", b) == 0
    assert "the row does not say its result file" in capsys.readouterr().out
