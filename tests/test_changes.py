"""A finished run and a command that does not go with it: refused before anything in the folder has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_job import everything, finish, words

from cim.cli.jobs.changes import refuse_changes
from cim.cli.jobs.run import resolve
from cim.cli.main import main, parse
from cim.core.errors import CimError
from cim.core.files import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a finished run, which no test here may change, and its photos."""
    folder = tmp_path_factory.mktemp("job")
    finish(folder)
    return folder


def told(folder: Path, setting: str) -> str:
    """What the job says of a changed setting; its folder is as it was."""
    before = everything(folder / "run")
    assert main(words(folder, setting)) == 2
    with pytest.raises(CimError) as caught:
        refuse_changes(resolve(parse(words(folder, setting))), val=True, refined=True)
    assert everything(folder / "run") == before
    return str(caught.value)


REFUSED = {  # a setting, and the stage that would refuse it
    "proposals.max_proposals=21": "proposals",
    "prm.epochs=2": "prm",
    "prm.lr=0.5": "prm",
    "prm.score=peaks": "prm",
    "assign.iou=0.4": "labels",
    "assign.peak_threshold=1": "labels",
    "model.hidden=64": "train",
    "mining.method=mist": "train",
    "train.lr=0.5": "train",
    "train.updates=5": "train",
    "train.images_per_update=3": "train",
    "infer.sides=[72]": "score",
    "refine.lr=0.5": "refine",
    "refine.updates=3": "refine",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_changed_settings_are_refused_in_the_words_of_the_stage_and_nothing_has_changed(folder, capsys, setting):
    message = told(folder, setting)
    capsys.readouterr()
    assert main([REFUSED[setting], str(folder / "run" / "config.yaml"), "--set", setting]) == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("setting", ["export.threshold=0.1", "infer.nms_iou=0.5"])
def test_labels_that_a_finished_mask_r_cnn_has_not_seen(folder, setting):
    message = told(folder, setting)
    assert message.startswith("Mask R-CNN was trained on labels of other settings") and "--no-refine" in message


def test_changed_tags_and_a_new_photo(folder):
    tags = folder / "drawn" / "train_tags.csv"
    kept = tags.read_text()
    try:
        tags.write_text("\n".join(kept.splitlines()[:-1]) + "\n")
        assert "photos_and_tags" in told(folder, "device=cpu")
    finally:
        tags.write_text(kept)


def test_a_tag_taken_back_is_no_reason_to_refuse(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    run, tags = tmp_path / "copy" / "run", tmp_path / "copy" / "drawn" / "train_tags.csv"
    before = {path.name for path in run.iterdir()}
    head, *rows = tags.read_text().splitlines()
    name, labels = rows[0].split(",")
    kept = [label for label in labels.split() if label != labels.split()[0]]
    tags.write_text("\n".join([head, f"{name},{' '.join([f'!{labels.split()[0]}', *kept])}", *rows[1:]]) + "\n")
    assert main(words(tmp_path / "copy", "device=cpu")) == 0
    assert {"prm", "peaks", "train", "first_labels"} <= {path.name for path in (run / "round_1").iterdir()}
    assert {path.name for path in run.iterdir()} == before | {"round_1", "known.json"}
    assert read_json(run / "known.json")["absent"] is not None
    refuse_changes(resolve(parse(words(tmp_path / "copy"))), val=True, refined=True)


def test_what_no_stage_minds_goes_on(folder):
    refuse_changes(resolve(parse(words(folder, "train.workers=1", "name=other"))), val=True, refined=True)


def test_a_demo_of_other_pictures(tmp_path, capsys):
    (tmp_path / "pictures_8_3_0").mkdir()
    (tmp_path / "stages.json").write_text('{"pictures": "another mark"}')
    before = everything(tmp_path)
    assert main(["demo", "--output", str(tmp_path), "--train", "8", "--val", "3", "--seed", "1"]) == 2
    message = capsys.readouterr().err.strip()
    assert "expected pictures_8_3_1; found pictures_8_3_0" in message and "\n" not in message
    assert everything(tmp_path) == before
