"""Box measures against slow, obvious loops; every rule on a drawn case."""

from __future__ import annotations

import numpy as np
import pytest
import small_run
from doors import run_tool
from hypothesis import given, settings
from hypothesis import strategies as st

import cim.evaluation.ranked as ranked_module
from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.evaluation.box_files import as_result_list, guesses_of, has_masks, matched, objects_of
from cim.evaluation.boxes import BoxRules, Guesses, Objects, box_fates, box_row, localised, rank_class, relate
from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.metrics_file import FATES, fates_markdown, metric_row
from cim.evaluation.ranked import COCO_RECALLS, VOC2007_RECALLS, draw_photos, every_photo_once

CLASSES = ("cat", "dog")


def make_objects(rows, photos=3) -> Objects:
    """Rows of (photo, class, x1, y1, x2, y2, difficult)."""
    values = np.array(rows, float).reshape(-1, 7)
    numbers = values[:, :2].astype(np.int64)
    ids = tuple(range(10, 10 + photos))
    return Objects(ids, CLASSES, numbers[:, 0], numbers[:, 1], values[:, 2:6], values[:, 6] > 0)


def make_guesses(rows) -> Guesses:
    """Rows of (photo, class, score, x1, y1, x2, y2)."""
    values = np.array(rows, float).reshape(-1, 7)
    numbers = values[:, :2].astype(np.int64)
    return Guesses(numbers[:, 0], numbers[:, 1], values[:, 2], values[:, 3:])


# ---------------------------------------------------------------------- slow and obvious


def slow_iou(a, b, more=0):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + more)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + more)
    areas = [(box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (a, b)]
    joint = sum(areas) - width * height
    return width * height / joint if joint else 0.0


def slow_average_precision(objects, guesses, class_id, rules, photos=None):
    """VOCdevkit's VOCevaldet, one detection at a time; ``photos``: a list of rows, in which copies are other photos."""
    photos = list(range(len(objects.image_ids))) if photos is None else photos
    found = sorted(
        (k for k in range(len(guesses.score)) if guesses.class_ids[k] == class_id), key=lambda k: -guesses.score[k]
    )
    mine = [m for m in range(len(objects.photo)) if objects.class_ids[m] == class_id]
    total = sum(1 for photo in photos for m in mine if objects.photo[m] == photo and not objects.difficult[m])
    taken, tp, fp, curve = set(), 0, 0, []
    for k in found:
        for copy, photo in enumerate(photos):
            if photo != guesses.photo[k]:
                continue
            best, owner = -1.0, None
            for m in mine:
                if objects.photo[m] == photo:
                    overlap = slow_iou(guesses.boxes[k], objects.boxes[m], rules.plus_one)
                    if overlap > best:
                        best, owner = overlap, m
            if owner is not None and (best > rules.iou if rules.strict else best >= rules.iou):
                if objects.difficult[owner]:
                    continue
                if (copy, owner) in taken:
                    fp += 1
                else:
                    taken.add((copy, owner))
                    tp += 1
            else:
                fp += 1
            curve.append((tp, fp))
    if not total:
        return None
    value = 0.0
    for tenth in range(11):
        at = [t / (t + f) for t, f in curve if 10 * t >= tenth * total]
        value += max(at, default=0.0) / 11
    return value


def slow_corloc(objects, guesses, class_id, rules):
    hits = []
    for photo in range(len(objects.image_ids)):
        mine = [m for m in range(len(objects.photo)) if objects.photo[m] == photo and objects.class_ids[m] == class_id]
        if not mine:
            continue
        best = None
        for k in range(len(guesses.score)):
            if guesses.photo[k] == photo and guesses.class_ids[k] == class_id:
                best = k if best is None or guesses.score[k] > guesses.score[best] else best
        overlaps = (
            [slow_iou(guesses.boxes[best], objects.boxes[m], rules.plus_one) for m in mine] if best is not None else []
        )
        hits.append(any(o > rules.iou if rules.strict else o >= rules.iou for o in overlaps))
    return hits


# few places, sizes and scores, so that ties, duplicates and exact thresholds are common
corner, side = st.integers(0, 3).map(lambda k: 2 * k), st.integers(1, 3).map(lambda k: 2 * k)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
place = st.tuples(st.integers(0, 2), st.integers(0, 1))
object_rows = st.lists(st.tuples(place, box, st.booleans()).map(lambda t: (*t[0], *t[1], t[2])), max_size=9)
guess_rows = st.lists(st.tuples(place, st.integers(0, 3), box).map(lambda t: (*t[0], t[1] / 4, *t[2])), max_size=14)
all_rules = st.builds(BoxRules, st.sampled_from([0.5, 0.25]), st.booleans(), st.booleans())


@settings(max_examples=150, deadline=None)
@given(object_rows, guess_rows, all_rules)
def test_equals_the_slow_loops(object_rows, guess_rows, rules):
    objects, guesses = make_objects(object_rows), make_guesses(guess_rows)
    row = box_row(objects, guesses, rules)
    for k, name in enumerate(CLASSES):
        slow = slow_average_precision(objects, guesses, k, rules)
        assert row["per_class"][name]["box_AP"] == (None if slow is None else pytest.approx(100 * slow, abs=1e-9))
        assert localised(objects, guesses, k, rules).tolist() == slow_corloc(objects, guesses, k, rules)


@settings(max_examples=60, deadline=None)
@given(object_rows, guess_rows, st.lists(st.integers(0, 2), max_size=5))
def test_a_draw_equals_a_data_set_with_copies(object_rows, guess_rows, photos):
    objects, guesses, rules = make_objects(object_rows), make_guesses(guess_rows), BoxRules()
    draw = np.bincount(np.array(photos, int), minlength=3)[None]
    for k in range(2):
        fast = rank_class(objects, guesses, k, rules).average_precision(draw, VOC2007_RECALLS)[0]
        slow = slow_average_precision(objects, guesses, k, rules, photos)
        assert np.isnan(fast) if slow is None else fast == pytest.approx(slow, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(object_rows, guess_rows, st.integers(0, 9))
def test_tables_too_large_to_keep_give_the_same(object_rows, guess_rows, seed):
    objects, guesses, draws = make_objects(object_rows), make_guesses(guess_rows), draw_photos(3, 6, seed)
    kept = rank_class(objects, guesses, 0, BoxRules()).average_precision(draws, COCO_RECALLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranked_module, "_SLAB", 0)
        counted = rank_class(objects, guesses, 0, BoxRules()).average_precision(draws, COCO_RECALLS)
    assert np.allclose(kept, counted, equal_nan=True, atol=1e-12)


def test_draws_are_many_at_once_and_reproducible():
    rng = np.random.default_rng(0)
    objects = make_objects([(p, 0, *(10 * rng.integers(0, 3, 2)), 40, 40, 0) for p in range(3) for _ in range(2)])
    guesses = make_guesses([(p, 0, rng.random(), *rng.integers(0, 20, 2), 40, 40) for p in range(3) for _ in range(6)])
    ranked, draws = rank_class(objects, guesses, 0, BoxRules()), draw_photos(3, 50, 1)
    together = ranked.average_precision(draws, COCO_RECALLS)
    assert np.allclose(together, [ranked.average_precision(draw[None], COCO_RECALLS)[0] for draw in draws])
    assert (draws == draw_photos(3, 50, 1)).all() and (draws.sum(1) == 3).all() and draws.std() > 0


# ---------------------------------------------------------------------- one rule each

ONE = (0, 0, 10, 10, 20, 20, 0)  # a cat in photo 0
HIT = (10, 10, 20, 20)


@pytest.mark.parametrize(
    ("objects", "guesses", "expected"),
    [
        ([ONE], [(0, 0, 0.9, *HIT)], 100),
        ([ONE], [(0, 0, 0.9, *HIT), (0, 0, 0.8, *HIT)], 100),  # the second hit comes after full recall
        ([ONE], [(0, 0, 0.9, 50, 50, 60, 60), (0, 0, 0.8, *HIT)], 50),
        ([ONE], [(1, 0, 0.9, *HIT), (0, 0, 0.8, *HIT)], 50),  # a photo without objects can only be wrong
        ([ONE, (1, 0, 10, 10, 20, 20, 0)], [(0, 0, 0.9, *HIT), (0, 0, 0.8, *HIT)], 600 / 11),  # recall one half
        ([ONE, (0, 0, 10, 10, 20, 20, 1)], [(0, 0, 0.9, *HIT)], 100),  # the first of equal overlaps
        ([ONE, (1, 0, 10, 10, 20, 20, 1)], [(1, 0, 0.9, *HIT), (1, 0, 0.9, *HIT), (0, 0, 0.8, *HIT)], 100),
        ([(0, 0, 10, 10, 20, 20, 1)], [(0, 0, 0.9, *HIT)], None),  # difficult objects alone
        ([], [(0, 0, 0.9, *HIT)], None),
        ([ONE], [], 0),
        ([ONE], [(0, 1, 0.9, *HIT)], 0),  # another class
        ([ONE], [(0, 0, 0.9, 10, 10, 20, 15)], 100),  # IoU exactly one half
    ],
)
def test_average_precision(objects, guesses, expected):
    row = box_row(make_objects(objects), make_guesses(guesses))
    value = row["per_class"]["cat"]["box_AP"]
    assert value == (None if expected is None else pytest.approx(expected))
    assert row["box_mAP"] == pytest.approx(expected or 0)  # dogs have no objects and are left out of the mean


def test_rules_by_name():
    objects, half = make_objects([ONE]), make_guesses([(0, 0, 0.9, 10, 10, 20, 15)])
    assert box_row(objects, half, BoxRules(strict=True))["box_mAP"] == 0
    assert box_row(objects, half, BoxRules(plus_one=True, strict=True))["box_mAP"] == 100  # 11 x 6 of 11 x 11
    assert relate(np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 6, 4]])).iou[0, 0] == pytest.approx(8 / 24)
    inclusive = relate(np.array([[0.0, 0, 3, 3]]), np.array([[2.0, 0, 5, 3]]), plus_one=True)
    assert inclusive.iou[0, 0] == pytest.approx(8 / 24)  # the kit's corners of the same boxes


def test_corloc_takes_the_best_box_and_counts_difficult_objects_and_photos_without_detections():
    objects = make_objects([ONE, (1, 0, 10, 10, 20, 20, 1), (2, 0, 10, 10, 20, 20, 0)])
    guesses = make_guesses([(0, 0, 0.9, 50, 50, 60, 60), (0, 0, 0.8, *HIT), (1, 0, 0.7, *HIT)])
    assert localised(objects, guesses, 0, BoxRules()).tolist() == [False, True, False]
    assert box_row(objects, guesses)["box_CorLoc"] == pytest.approx(100 / 3)


def test_fates_of_boxes():
    pair = [(0, 0, 0, 0, 10, 10, 0), (0, 0, 12, 0, 22, 10, 0)]
    over_both = make_guesses([(0, 0, 0.9, 0, 0, 22, 10)])
    objects = make_objects([*pair, (1, 1, 0, 0, 10, 10, 0), (2, 0, 0, 0, 10, 10, 0), (2, 0, 40, 0, 50, 10, 1)])
    more = make_guesses(
        [(0, 0, 0.9, 0, 0, 22, 10), (1, 1, 0.2, 0, 0, 4, 10), (2, 0, 0.9, 40, 0, 50, 10), (2, 0, 0.1, 0, 0, 10, 9)]
    )
    assert box_fates(objects, over_both)[:2].tolist() == ["merged", "merged"]
    assert box_fates(objects, more)[:4].tolist() == ["merged", "merged", "partial", "complete"]  # difficult: left out
    assert box_fates(objects, more, score_threshold=0.5)[:4].tolist() == ["merged", "merged", "missed", "missed"]
    row = box_row(objects, more)
    assert (row["box_found"], row["box_merged"], row["box_partial"], row["box_missed"]) == (25, 50, 25, 0)
    assert row["box_beside"] == {"instances": 2, "found": 0, "merged": 100, "partial": 0, "missed": 0}
    assert row["per_class"]["dog"]["box_partial"] == 100
    assert (row["box_objects"], row["box_difficult"]) == (4, 1)


def test_nothing_at_all():
    row = box_row(make_objects([], 0), make_guesses([]))
    assert (row["box_mAP"], row["box_CorLoc"], row["box_beside"]) == (0, 0, {"instances": 0})
    assert every_photo_once(0).shape == (1, 0)


# ---------------------------------------------------------------------- files


@pytest.fixture
def content() -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "height": 50, "width": 60} for i in (5, 9)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 10, 20], "difficult": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [5, 5, 10, 10], "difficult": 1},
        ],
    }


def test_annotations_with_boxes_only_and_with_masks(content):
    objects = objects_of(content, "truth.json")
    assert objects.classes == ("cat", "dog") and objects.image_ids == (5, 9)
    assert objects.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 15, 15]]
    assert (objects.photo.tolist(), objects.class_ids.tolist()) == ([1, 1], [1, 0])
    assert objects.difficult.tolist() == [False, True] and not has_masks(content)
    mask = {"size": [50, 60], "counts": [50 * 3 + 4, 6, 44, 6, 50 * 60 - 210]}
    content["annotations"][0] |= {"segmentation": mask, "bbox": [0, 0, 60, 50]}
    assert objects_of(content, "truth.json").boxes[0].tolist() == [3, 4, 5, 10] and has_masks(content)


def test_results_of_any_file(content):
    objects = objects_of(content, "truth.json")
    labels = {
        "images": [{"id": 1, "file_name": "000009.jpg"}, {"id": 2, "file_name": "000010.jpg"}],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 20], "score": 0.5},
            {"image_id": 2, "category_id": 7, "bbox": [1, 2, 10, 20]},
        ],
    }
    lines, classes = as_result_list(labels, "labels.json")
    assert classes == {7: "dog"}
    kept, strangers = matched(lines, content, "labels.json")
    assert strangers == ["000010.jpg"] and [line["image_id"] for line in kept] == [9]
    guesses = guesses_of(kept, objects, classes, "labels.json")
    assert (guesses.photo.tolist(), guesses.class_ids.tolist(), guesses.score.tolist()) == ([1], [1], [0.5])
    assert box_row(objects, guesses)["box_mAP"] == 100
    plain, unknown = as_result_list([{"image_id": 9, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 1}], "r.json")
    assert unknown is None and matched(plain, content, "r.json")[1] == []
    mask = {"size": [50, 60], "counts": [50 * 3 + 4, 6, 44, 6, 50 * 60 - 210]}
    line = {"image_id": 9, "category_id": 3, "segmentation": mask, "score": 1}
    assert guesses_of([line], objects, {3: "dog"}, "r.json").boxes.tolist() == [[3, 4, 5, 10]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].pop("bbox"), "not COCO annotations with boxes: truth.json"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "not COCO annotations"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "not COCO annotations"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "not COCO annotations"),
        (lambda c: c["annotations"][0].update(image_id=1), "not COCO annotations"),
        (lambda c: c["annotations"][0].update(category_id=1), "not COCO annotations"),
        (lambda c: c.pop("images"), "not COCO annotations"),
    ],
)
def test_bad_annotations(content, change, message):
    change(content)
    with pytest.raises(CimError, match=message):
        objects_of(content, "truth.json")


@pytest.mark.parametrize(
    "change",
    [{"score": "x"}, {"score": float("nan")}, {"category_id": 9}, {"bbox": [1, 2, 3]}, {"bbox": None}],
)
def test_bad_results(content, change):
    line = {"image_id": 9, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 1} | change
    with pytest.raises(CimError, match="bad result number 0"):
        guesses_of([line], objects_of(content, "t"), {3: "dog", 2: "cat"}, "r.json")


def test_files_of_other_kinds_and_of_other_photos(content):
    with pytest.raises(CimError, match="not a result file"):
        as_result_list({"images": []}, "r.json")
    with pytest.raises(CimError, match="no result is of a photo"):
        matched([{"image_id": 77}], content, "r.json")
    assert matched([], content, "r.json") == ([], [])


# ---------------------------------------------------------------------- the command


def test_evaluate_on_boxes_alone(content, tmp_path, capsys):
    write_json(tmp_path / "truth.json", content)
    labels = {
        "images": [{"id": 1, "file_name": "000009.jpg"}, {"id": 2, "file_name": "000010.jpg"}],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 20], "score": 0.5},
            {"image_id": 2, "category_id": 7, "bbox": [1, 2, 10, 20], "score": 0.9},
        ],
    }
    write_json(tmp_path / "labels.json", labels)
    files = ["--results", tmp_path / "labels.json", "--annotations", tmp_path / "truth.json"]
    assert run_tool("evaluation", *files, "--output", tmp_path / "out", "--name", "labels") == 0
    told = capsys.readouterr().out
    assert "| labels | 100.0 | 50.0 |" in told  # the cat, though difficult, is to be located
    assert "results of 1 photos that the annotations do not list, e.g. 000010.jpg" in told
    assert "| labels (boxes) | 100.0 | 0.0 | 0.0 | 0.0 |" in told and "1 difficult" in told
    file = read_json(tmp_path / "out" / "metrics.json")
    assert file["rows"]["labels"]["per_class"]["dog"]["box_found"] == 100
    assert file["settings"]["labels"]["boxes"] == {"iou": 0.5, "plus_one": False, "strict": False}
    assert file["settings"]["labels"]["files"]["annotations"] == str((tmp_path / "truth.json").resolve())
    assert run_tool("compare", tmp_path / "out") == 0
    assert "box_mAP" in capsys.readouterr().out


def test_pseudo_labels_against_masks(tmp_path, capsys):
    truth = read_json(small_run.draw(tmp_path, 4))
    ids = {image["id"]: k for k, image in enumerate(truth["images"], 70)}
    labels = {
        "images": [{**image, "id": ids[image["id"]]} for image in truth["images"]],
        "categories": [{"id": c["id"] + 5, "name": c["name"]} for c in truth["categories"]],
        "annotations": [
            {**a, "image_id": ids[a["image_id"]], "category_id": a["category_id"] + 5, "score": 0.5}
            for a in truth["annotations"]
        ],
    }
    write_json(tmp_path / "labels.json", labels)
    truth["images"], truth["annotations"] = truth["images"][:3], truth["annotations"][:3]
    write_json(tmp_path / "truth.json", truth)
    files = ["--results", tmp_path / "labels.json", "--annotations", tmp_path / "truth.json"]
    assert run_tool("evaluation", *files, "--output", tmp_path / "out", "--name", "labels") == 0
    assert "| labels | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |" in capsys.readouterr().out
    lines = [{**a, "score": 0.5} for a in read_json(tmp_path / "labels.json")["annotations"]]
    own = [{**line, "image_id": line["image_id"] - 69, "category_id": line["category_id"] - 5} for line in lines]
    write_json(tmp_path / "results.json", own)
    files[1] = tmp_path / "results.json"
    assert run_tool("evaluation", *files, "--output", tmp_path / "out") == 2  # the fourth photo is not annotated
    assert "unknown image" in capsys.readouterr().err
    assert run_tool("evaluation", *files, "--output", tmp_path / "out", "--listed-only") == 0


def test_fates_of_masks_by_class_and_beside_others():
    def mask(x: int, width: int) -> dict:
        return {"size": [10, 60], "counts": [10 * x, 10 * width, 10 * (60 - x - width)]}

    boxes = [(1, 1, 0, 10), (1, 1, 12, 10), (1, 2, 40, 10), (2, 1, 0, 10)]  # photo, class, x, width
    truth = load_ground_truth(
        {
            "images": [{"id": i, "height": 10, "width": 60} for i in (1, 2)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [{"image_id": p, "category_id": c, "segmentation": mask(x, w)} for p, c, x, w in boxes],
        }
    )
    found = [(1, 1, 0, 22, 0.9), (1, 2, 40, 10, 0.8), (2, 1, 0, 4, 0.7)]
    results = [{"image_id": p, "category_id": c, "segmentation": mask(x, w), "score": s} for p, c, x, w, s in found]
    row = metric_row(truth, read_results(results, truth), "voc")
    assert [row[fate] for fate in FATES] == [25, 50, 25, 0]
    assert [row["subset_multi"][fate] for fate in FATES] == pytest.approx([100 / 3, 200 / 3, 0, 0])
    assert row["subset_beside"]["instances"] == 2 and row["subset_beside"]["merged"] == 100
    assert row["subset_beside"]["per_class"]["cat"]["merged"] == 100 and "dog" not in row["subset_beside"]["per_class"]
    assert row["per_class"]["dog"]["found"] == 100
    assert [row[f"box_{fate}"] for fate in FATES] == [25, 50, 25, 0]
    lines = fates_markdown({"CIM": row, "none": {"AP": 1.0}}).splitlines()
    assert lines[0].startswith("| | found | merged | partial | missed | beside: found |") and len(lines) == 3
    assert lines[2] == "| CIM | 25.0 | 50.0 | 25.0 | 0.0 | 0.0 | 100.0 | 0.0 | 0.0 |"
    assert fates_markdown({"old": {"AP": 1.0}}) == ""
