"""Rounds of one run: other knowledge sets aside what was learnt without it."""

from __future__ import annotations

from pathlib import Path

from cim.cli.jobs.rounds import begin_round, has_other_tags
from cim.core.files import read_json, write_json


def learn(run: Path, text: str) -> None:
    for name in ("proposals", "prm", "first_labels", "train"):
        (run / name).mkdir(exist_ok=True)
        (run / name / "file").write_text(text)
    (run / "metrics.json").write_text(text)


def texts(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*/file"), *folder.glob("metrics.json")]
    return {path.relative_to(folder).parts[0]: path.read_text() for path in files}


def test_the_same_knowledge_leaves_everything(tmp_path):
    begin_round(tmp_path, None)
    learn(tmp_path, "a")
    begin_round(tmp_path, None)
    assert len(texts(tmp_path)) == 5
    assert not list(tmp_path.glob("round_*"))


def test_other_knowledge_sets_aside_what_depends_on_it(tmp_path):
    learn(tmp_path, "a")
    begin_round(tmp_path, "more")
    assert texts(tmp_path) == {"proposals": "a", "prm": "a"}
    assert texts(tmp_path / "round_1") == {"first_labels": "a", "train": "a", "metrics.json": "a"}
    learn(tmp_path, "b")
    begin_round(tmp_path, "more")
    assert texts(tmp_path)["train"] == "b"
    begin_round(tmp_path, None)
    assert texts(tmp_path / "round_2")["train"] == "b"
    assert texts(tmp_path / "round_1")["train"] == "a"
    assert read_json(tmp_path / "known.json") == {"digest": None, "round": 2, "absent": None}


def test_a_call_that_was_killed_half_way_is_finished_by_the_next(tmp_path):
    learn(tmp_path, "a")
    (tmp_path / "round_1").mkdir()
    (tmp_path / "first_labels").rename(tmp_path / "round_1" / "first_labels")
    begin_round(tmp_path, "more")
    assert set(texts(tmp_path / "round_1")) == {"first_labels", "train", "metrics.json"}
    begin_round(tmp_path, "other")
    assert not (tmp_path / "round_2").exists()  # nothing was learnt from "more"


def test_a_new_run_notes_what_is_known(tmp_path):
    begin_round(tmp_path / "run", "some")
    assert read_json(tmp_path / "run" / "known.json") == {"digest": "some", "round": 0, "absent": None}


def test_tags_that_are_taken_back_set_the_response_network_aside_too(tmp_path):
    learn(tmp_path, "a")
    begin_round(tmp_path, "more", "no dog")
    assert texts(tmp_path) == {"proposals": "a"}
    assert texts(tmp_path / "round_1") == dict.fromkeys(("prm", "first_labels", "train", "metrics.json"), "a")
    learn(tmp_path, "b")
    assert not has_other_tags(tmp_path, "no dog")
    begin_round(tmp_path, "still more", "no dog")
    assert texts(tmp_path) == {"proposals": "b", "prm": "b"}
    begin_round(tmp_path, "yet more", "no cat", prompted=True)  # the network said where to look for proposals
    assert texts(tmp_path) == {}


def test_a_note_from_before_there_were_absent_classes(tmp_path):
    write_json(tmp_path / "known.json", {"digest": "some", "round": 1})
    assert not has_other_tags(tmp_path, None)
    assert has_other_tags(tmp_path, "no dog")
