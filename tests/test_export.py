"""Pseudo labels: equal to the published ones, the choices, the sweep, and files from elsewhere."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import small_run
from doors import TOOLS, run_tool
from pycocotools import mask as coco_mask

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import ExportConfig
from cim.core.errors import CimError
from cim.core.run_lengths import as_rle
from cim.datasets.voc import open_voc
from cim.evaluation.coco_results import as_results, load_ground_truth
from cim.inference.detections import Selection, select_dataset
from cim.labels.export import (
    annotation,
    choose,
    chosen_path,
    image_root,
    label_path,
    of_the_tags,
    uncompressed,
    write_labels,
)
from cim.labels.label_files import read_labels, sweep, validate_labels
from cim.proposals.cob import read_cob
from cim.storage.store import Store

SIZE = (20, 30)


def rle(y: int, x: int, h: int, w: int) -> dict:
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    coded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": coded["counts"].decode()}


def line(number: int, image: int, category: int, score: float, box: tuple[int, int, int, int]) -> dict:
    y, x, h, w = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": h * w,
        "bbox": [x, y, w, h],
        "segmentation": rle(*box),
        "width": SIZE[1],
        "height": SIZE[0],
        "score": score,
    }


@pytest.fixture
def content() -> dict:
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]} for k in (1, 2, 3)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            line(1, 1, 3, 0.9, (0, 0, 10, 10)),
            line(2, 1, 3, 0.8, (1, 0, 10, 10)),
            line(3, 1, 7, 0.2, (0, 0, 10, 10)),
            line(4, 2, 3, 0.3, (5, 5, 2, 2)),
            line(5, 2, 3, 0.1, (10, 10, 8, 8)),
        ],
    }


def scores_of(chosen: dict) -> list[float]:
    return [a["score"] for a in chosen["annotations"]]


class Stored:
    def __init__(self, load):
        self.load = load


def test_equals_published_labels(reference, tmp_path):
    dataset = open_voc(reference / "VOC2012", "trainaug")
    scores = np.load(reference / "expected" / "scores.npz")
    proposals = reference / "VOC2012" / "COB_SBD_trainaug"
    name = {record.image_id: record.path.stem for record in dataset}
    images = select_dataset(
        dataset,
        Stored(lambda i: read_cob(proposals / f"{name[i]}.mat")),
        Stored(lambda i: scores[name[i]]),
        Selection(),
    )
    images = of_the_tags(images, dataset)
    path = tmp_path / "labels.json"
    write_labels(path, dataset, images, dataset[0].path.parent, rle="uncompressed")
    ours, theirs = json.loads(path.read_text()), expected(reference, "msrcnn_pseudo_label.json")
    assert ours["annotations"] == theirs["annotations"]
    assert ours["categories"] == theirs["categories"]
    assert [i["file_name"] for i in ours["images"]] == [i["file_name"] for i in theirs["images"]]

    chosen = choose(read_labels(path), ExportConfig())
    for a in chosen["annotations"]:
        a["segmentation"] = uncompressed(a["segmentation"])
    assert chosen["annotations"] == expected(reference, "msrcnn_pseudo_label_0.3.json")["annotations"]


def expected(reference, name: str) -> dict:
    return json.loads((reference / "expected" / name).read_text())


@pytest.mark.parametrize("first", [0, 1])
def test_uncompressed_masks(first):
    mask = np.asfortranarray(np.random.default_rng(0).random((7, 5)) < 0.5, np.uint8)
    mask[0, 0] = first
    assert as_rle(uncompressed(coco_mask.encode(mask)), (7, 5))["counts"] == coco_mask.encode(mask)["counts"].decode()


def test_threshold_keeps_equal_scores_and_renumbers(content):
    before = copy.deepcopy(content)
    chosen = choose(content, ExportConfig(threshold=0.3))
    assert scores_of(chosen) == [0.9, 0.8, 0.3]
    assert [a["id"] for a in chosen["annotations"]] == [1, 2, 3]
    assert len(chosen["images"]) == 3
    assert content == before


def test_quantile_is_per_class(content):
    chosen = choose(content, ExportConfig(threshold_kind="quantile", threshold=0.5))
    assert scores_of(chosen) == [0.9, 0.8, 0.2]


def test_best_per_tag_small_ones_and_overlaps(content):
    assert scores_of(choose(content, ExportConfig(threshold=0.85, keep_best_per_tag=True))) == [0.9, 0.2, 0.3]
    assert scores_of(choose(content, ExportConfig(threshold=0, min_area=5))) == [0.9, 0.8, 0.2, 0.1]
    assert scores_of(choose(content, ExportConfig(threshold=0, mask_nms=0.5))) == [0.9, 0.2, 0.3, 0.1]
    assert scores_of(choose(content, ExportConfig(threshold=0, mask_nms=0.9))) == [0.9, 0.8, 0.2, 0.3, 0.1]


def test_instances_of_a_known_number_stay(content):
    content["annotations"][4]["known"] = True
    chosen = choose(content, ExportConfig(threshold=0.85, min_area=80, mask_nms=0.5))
    assert scores_of(chosen) == [0.9, 0.1]
    assert chosen["annotations"][1]["known"] is True


def test_empty_images_and_scores(content):
    chosen = choose(content, ExportConfig(threshold=0.5, empty_images="drop", scores="weight"))
    assert [i["id"] for i in chosen["images"]] == [1]
    assert [a["weight"] for a in chosen["annotations"]] == pytest.approx([1, 0.8 / 0.9])
    assert "score" not in choose(content, ExportConfig(scores="drop"))["annotations"][0]


def test_what_is_doubtful_becomes_a_crowd(content):
    content["annotations"][0]["members"] = 0.05
    content["annotations"][3]["members"] = 0.6  # two separate regions inside it
    chosen = choose(content, ExportConfig(threshold=0.25, doubtful=0.4))["annotations"]
    assert [(a["score"], a["iscrowd"]) for a in chosen] == [(0.9, 0), (0.8, 0), (0.2, 1), (0.3, 1)]
    assert choose(content, ExportConfig(threshold=0.25, doubtful=0.3))["annotations"][-1]["score"] == 0.1


def test_sweep_counts_precision_and_recall(content):
    truth = load_ground_truth(
        {
            "images": content["images"],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],  # matched by name
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 2, "segmentation": rle(0, 0, 10, 10)},
                {"id": 2, "image_id": 2, "category_id": 2, "segmentation": rle(10, 10, 8, 8)},
            ],
        }
    )
    rows = sweep(content, (0, 0.25, 0.85, 0.95), truth)
    assert [row["instances"] for row in rows] == [5, 3, 1, 0]
    assert [row["images"] for row in rows] == [2, 2, 1, 0]
    assert rows[0]["per_class"] == {"cat": 4, "dog": 1}
    assert [row["precision"] for row in rows] == pytest.approx([40, 100 / 3, 100, None])
    assert [row["recall"] for row in rows] == [100, 50, 50, 0]
    assert "precision" not in sweep(content, (0.5,))[0]


def test_text_ids_become_numbers(tmp_path):
    dataset = build_dataset(load_config(small_run.small_config(tmp_path)).data, "train")
    records = tuple(type(r)(f"{r.path.name}", r.path, r.size, r.tags) for r in dataset)
    dataset = type(dataset)(dataset.name, dataset.classes, dataset.category_ids, records)
    result = {"image_id": records[1].image_id, "category_id": 1, "score": 0.5}
    result["segmentation"] = coco_mask.encode(np.asfortranarray(np.ones(records[1].size, np.uint8)))
    result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
    write_labels(tmp_path / "labels.json", dataset, [[result]], tmp_path)
    labels = read_labels(tmp_path / "labels.json")
    assert labels["images"][1]["id"] == labels["annotations"][0]["image_id"] == 2
    assert labels["images"][1]["file_name"] == f"photos/{records[1].path.name}"
    assert as_results(labels)[0]["image_id"] == records[1].image_id


# ---------------------------------------------------------------------- files from elsewhere


def test_polygons_and_missing_keys(tmp_path, content):
    a = content["annotations"]
    a[0]["segmentation"] = [[2, 2, 12, 2, 12, 9, 2, 9]]
    a[1]["segmentation"] = uncompressed(a[1]["segmentation"])
    for key in ("area", "iscrowd", "score", "width"):
        del a[0][key]
    read = read_labels(save(tmp_path, content))["annotations"]
    assert (read[0]["area"], read[0]["score"], read[0]["iscrowd"]) == (70, 1.0, 0)
    assert read[1]["segmentation"] == rle(1, 0, 10, 10)


def save(tmp_path, content: object):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return path


def spoil(content: dict, how: str) -> object:
    first = content["annotations"][0]
    if how == "empty":
        content["annotations"] = []
    elif how == "list":
        return content["annotations"]
    elif how == "twice":
        content["annotations"][1]["id"] = 1
    elif how == "image":
        first["image_id"] = 99
    elif how == "category":
        first["category_id"] = 99
    elif how == "size":
        first["segmentation"] = {"size": [5, 5], "counts": [0, 25]}
    elif how == "runs":
        first["segmentation"]["counts"] = "zz?"
    elif how == "polygon":
        first["segmentation"] = [[1, 2]]
    elif how == "key":
        del first["segmentation"]
    elif how == "height":
        content["images"][0]["height"] = -3
    elif how == "score":
        first["score"] = "high"
    elif how == "name":
        content["images"][0]["file_name"] = 5
    return content


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("empty", "no annotations"),
        ("list", "not COCO"),
        ("twice", "twice in annotations"),
        ("image", "unknown image 99"),
        ("category", "unknown category 99"),
        ("size", "mask of"),
        ("runs", "damaged mask"),
        ("polygon", "damaged mask"),
        ("key", "segmentation"),
        ("height", "without height or width"),
        ("score", "score 'high'"),
        ("name", "file_name that is no text"),
    ],
)
def test_bad_labels(tmp_path, content, how, told):
    with pytest.raises(CimError, match=told):
        read_labels(save(tmp_path, spoil(content, how)))


def test_validation(tmp_path, content):
    path = save(tmp_path, content)
    assert validate_labels(path, {3: "cat", 7: "dog"}) == {"images": 3, "annotations": 5, "classes": 2}
    with pytest.raises(CimError, match="other categories"):
        validate_labels(path, {1: "cat"})
    content["annotations"][0]["bbox"] = [25, 0, 10, 10]
    with pytest.raises(CimError, match="leaves its image"):
        validate_labels(save(tmp_path, content))


# ---------------------------------------------------------------------- tools


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run folder with pseudo labels of its training split: (config file, labels)."""
    folder = tmp_path_factory.mktemp("labelled")
    path = small_run.small_config(folder)
    config = load_config(path)
    paths = RunPaths(config)
    store = Store.create(paths.proposals("train"), "regions", {})
    for record in build_dataset(config.data, "train"):
        store.save_regions(record.image_id, small_run.proposals(folder / "truth.json", int(record.image_id)))
    assert run_tool("test", path, "--split", "train", "--workers", 1) == 0
    assert run_tool("generate_mask_for_MaskRCNN", path, "--workers", 1) == 0
    return path, label_path(config, "train")


def test_tools_write_labels_of_the_tags(labelled):
    path, labels = labelled
    dataset = build_dataset(load_config(path).data, "train")
    content = read_labels(labels)
    tags = {record.image_id: {dataset.category_ids[k] for k in record.tags} for record in dataset}
    assert all(a["category_id"] in tags[a["image_id"]] for a in content["annotations"])
    assert content["images"][0]["file_name"] == "000.png"
    assert content["info"]["image_root"] == str(image_root(load_config(path).data, dataset).resolve())


def test_doubts_are_told_when_asked_for(labelled):
    path, labels = labelled
    assert "members" not in read_labels(labels)["annotations"][0]
    output = path.parent / "doubts.json"
    assert (
        run_tool("generate_mask_for_MaskRCNN", path, "--output", output, "--workers", 1, "--set", "export.doubtful=0.1")
        == 0
    )
    lines = read_labels(output)["annotations"]
    assert all(0 <= a["members"] <= 1 and isinstance(a["certain"], bool) for a in lines)
    single = [a["image_id"] for a in lines if a["certain"]]
    assert len(single) == len(set(single))


def test_change_threshold_and_sweep(labelled, capsys):
    path, labels = labelled
    scores = sorted(a["score"] for a in read_labels(labels)["annotations"])
    middle = scores[len(scores) // 2]
    assert run_tool("change_mask_thr", path, "--threshold", middle, "--rle", "uncompressed") == 0
    copy_path = labels.with_name(f"{labels.stem}_{middle:g}.json")
    kept = json.loads(copy_path.read_text())["annotations"]
    assert len(kept) == sum(s >= middle for s in scores)
    assert isinstance(kept[0]["segmentation"]["counts"], list)
    capsys.readouterr()
    truth = load_config(path).data.val_annotations
    assert run_tool("change_mask_thr", path, "--sweep", "--annotations", truth) == 0
    assert "| precision | recall |" in capsys.readouterr().out


def test_nothing_left_is_an_error(labelled, capsys):
    path, _ = labelled
    assert run_tool("change_mask_thr", path, "--threshold", 1) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no instance is left" in error and "best score" in error


@pytest.mark.parametrize("options", [["--threshold", "nan"], ["--kind", "quantile", "--threshold", "1.5"]])
def test_choices_out_of_range(labelled, options, capsys):
    assert run_tool("change_mask_thr", labelled[0], *options) == 2
    assert "error: bad --threshold" in capsys.readouterr().err


def test_a_mask_of_another_size_is_no_label():
    line = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [4, 5], "counts": "d0"}}
    with pytest.raises(CimError, match="another size"):
        annotation(line, 1, 1, (40, 50), "compressed")


def test_labels_not_made_yet(tmp_path, capsys):
    path = small_run.small_config(tmp_path)
    assert run_tool("change_mask_thr", path) == 2
    assert "cim export" in capsys.readouterr().err
    assert run_tool("generate_mask_for_MaskRCNN", path) == 2
    assert "cim score" in capsys.readouterr().err


def test_mmdetection_configs_name_the_classes_and_files():
    import runpy

    from cim.datasets.voc import CLASSES

    folder = TOOLS.parent / "configs"
    for kind, base in (("voc", "resnet50_voc"), ("coco", "resnet50_coco2017")):
        values = runpy.run_path(str(folder / "mmdet" / f"mask_rcnn_r50_fpn_cim_{kind}.py"))
        config = load_config(base)
        labels = label_path(config, config.data.train_split)
        assert values["labels"] == str(chosen_path(labels, config.export))
        assert values["truth"].startswith(config.data.root)
        if kind == "voc":
            assert values["metainfo"]["classes"] == CLASSES
            assert values["model"]["roi_head"]["mask_head"]["num_classes"] == len(CLASSES)


def test_photo_set_reads_labels_with_text_ids(labelled):
    from cim.pictures.photo_set import PhotoSet

    path, labels = labelled
    content = json.loads(labels.read_text())
    dataset = build_dataset(load_config(path).data, "train")
    for image in content["images"]:
        image["source_id"], image["id"] = image["id"], image["id"] + 100
    for a in content["annotations"]:
        a["image_id"] += 100
    renumbered = labels.parent / "other" / "labels.json"
    renumbered.parent.mkdir()
    renumbered.write_text(json.dumps(content))
    truth = load_ground_truth(load_config(path).data.val_annotations)
    photo_set = PhotoSet({record.image_id: record.path for record in dataset}, truth, True)
    assert set(photo_set.results(renumbered)) <= set(photo_set.photos)
