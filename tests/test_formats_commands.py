"""`cim export --format` and `cim import --from` on a drawn run folder: what others get, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_run
from pycocotools import mask as coco_mask

from cim.cli.common import run
from cim.cli.main import call
from cim.cli.options.share import FORMATS
from cim.config.loading import load_config
from cim.datasets.folder import open_folder
from cim.labels.export import chosen_path, label_path
from cim.mask_rcnn.source import open_labels


def cim(*words: object) -> int:
    return run(lambda: call([str(word) for word in words]))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, Path]:
    """A config and its thresholded labels: the drawn objects themselves."""
    folder = tmp_path_factory.mktemp("labelled")
    config = small_run.small_config(folder, 8)
    loaded = load_config(config)
    labels = chosen_path(label_path(loaded, "train"), loaded.export)
    labels.parent.mkdir(parents=True)
    content = json.loads((folder / "truth.json").read_text())
    labels.write_text(json.dumps({**content, "info": {"image_root": str(folder / "photos")}}))
    return config, labels


def test_several_formats_at_once_and_back(labelled, tmp_path, capsys):
    config, labels = labelled
    assert cim("export", config, "--format", *FORMATS, "--output", tmp_path, "--val", 0.25) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(FORMATS) and all("8 instances on 8 photos" in line for line in told)
    assert ["IoU" in line for line in told] == [name in ("yolo", "voc") for name in FORMATS]
    wanted = {photo.path.name: photo for photo in open_labels(labels)[0]}
    for name in FORMATS:
        output = tmp_path / f"{name}.json"
        assert cim("import", "--from", name, "--input", tmp_path / name, "--output", output) == 0
        assert "8 masks of 2 classes on 8 photos" in capsys.readouterr().out
        photos, classes = open_labels(output)
        assert classes == small_run.CLASSES
        for photo in photos:
            truth = wanted[photo.path.name]
            assert photo.labels == truth.labels
            assert coco_mask.iou(list(photo.rles), list(truth.rles), [0])[0, 0] == 1
        assert cim("import", "--from", name, "--input", tmp_path / name, "--output", output) == 2
        assert "--overwrite" in capsys.readouterr().err
        again = ("import", "--from", name, "--input", tmp_path / name, "--output", output, "--overwrite")
        assert cim(*again, "--split", "val") == 0
        assert "2 masks of 2 classes on 2 photos" in capsys.readouterr().out


def test_imported_labels_are_a_data_set(labelled, tmp_path):
    """Tags, and masks for evaluation, as in any other COCO json."""
    config, labels = labelled
    output = tmp_path / "labels.json"
    assert cim("export", config, "--format", "labelme", "--output", tmp_path) == 0
    assert cim("import", "--from", "labelme", "--input", tmp_path / "labelme", "--output", output) == 0
    root = json.loads(output.read_text())["info"]["image_root"]
    dataset = open_folder(root, output, annotations=output)
    assert [record.tags for record in dataset] == [(k % 2,) for k in range(8)]
    assert cim("evaluate", "--results", labels, "--annotations", output, "--output", tmp_path / "judged") == 0


def test_labels_without_a_config(labelled, tmp_path, capsys):
    _, labels = labelled
    words = ("export", "--labels", labels, "--format", "coco", "--output", tmp_path)
    assert cim(*words, "--photos", "copy", "--val-labels", labels) == 0
    assert "16 instances on 16 photos" in capsys.readouterr().out
    assert cim(*words) == 2 and "--overwrite" in capsys.readouterr().err
    assert cim(*words, "--overwrite", "--empty-images", "keep") == 0
    assert not (tmp_path / "coco" / "annotations" / "val.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export",), "no config"),
        (("export", "--format", "yolo"), "which labels"),
        (("export", "--format", "yolo", "--labels", "LABELS"), "--output"),
        (("export", "--format", "yolo", "--labels", "LABELS", "--output", "NEW", "--images", "NONE"), "no such folder"),
        (("export", "--format", "yolo", "--labels", "LABELS", "--output", "NEW", "--val", "2"), "no such share"),
        (("export", "--labels", "LABELS"), "--labels without --format"),
        (("export", "--format", "yolo", "--scores", "NONE"), "--scores beside --format"),
        (("import", "--from", "yolo"), "--input"),
        (("import", "--from", "yolo", "--input", "ZIP", "--output", "NEW"), "unpack it"),
        (("import", "--from", "yolo", "--input", "NONE", "--output", "NEW"), "nothing to import"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(labelled, tmp_path, capsys, words, told):
    paths = {"LABELS": labelled[1], "NEW": tmp_path / "new", "NONE": tmp_path / "none", "ZIP": tmp_path / "a.zip"}
    paths["ZIP"].write_bytes(b"PK")
    assert cim(*(paths.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and told in error[0]
    assert not (tmp_path / "new" / "yolo").exists()


def test_labels_that_are_not_there_yet(tmp_path, capsys):
    config = small_run.small_config(tmp_path)
    assert cim("export", config, "--format", "yolo") == 2
    assert "cim threshold" in capsys.readouterr().err


def test_boxes_are_no_labels_for_mask_rcnn(labelled, tmp_path, capsys):
    config, labels = labelled
    content = json.loads(labels.read_text())
    for line in content["annotations"]:
        del line["segmentation"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(content))
    assert cim("refine", config, "--labels", boxes, "--run", tmp_path / "run") == 2
    assert "a box or a tag is no mask" in capsys.readouterr().err
    output = tmp_path / "out.json"
    assert cim("import", "--from", "coco", "--input", boxes, "--output", output) == 0
    assert "8 boxes of 2 classes on 8 photos" in capsys.readouterr().out
