"""The person that benchmarks/review_round.py plays: decisions about masks whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from small_review import CAT, LEFT, RIGHT, WHOLE, as_runs, mask, small_review, text

from cim.review.decisions import Decision, Shape
from cim.review.desk import Desk, open_desk

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import review_round

TAGGED_CAT, DOG = 0, 1


@pytest.fixture
def desk(tmp_path) -> Desk:
    config, run = small_review(tmp_path)
    return open_desk(config, run / "corrections.json")


def decided(desk: Desk, *truth: Shape, drawn: bool = False) -> Decision:
    sheet = desk.sheets[0]
    assert sheet.record.path.name == "doubt.png"
    return review_round.corrected(sheet, desk.regions(sheet), truth, drawn)


def test_a_good_mask_is_accepted_and_a_merged_one_replaced_by_clicks(desk):
    cat, left, right = Shape(TAGGED_CAT, text(CAT)), Shape(DOG, text(LEFT)), Shape(DOG, text(RIGHT))
    found = decided(desk, left, right, cat)
    assert found == Decision((cat, left, right), (Shape(DOG, text(WHOLE)),), {TAGGED_CAT: 1, DOG: 2})


def test_an_instance_that_no_proposal_shows_is_only_counted_or_drawn(desk):
    odd = np.zeros_like(mask(LEFT))
    odd[34:38, 2:50] = True
    dog = Shape(DOG, as_runs(odd))
    found = decided(desk, dog)
    assert found.numbers == {TAGGED_CAT: 0, DOG: 1}  # the cat is not there
    assert found.accepted == ()
    assert decided(desk, dog, drawn=True).accepted == (dog,)


def test_folders_are_copied_whole_or_not_at_all(tmp_path):
    (tmp_path / "a" / "prm").mkdir(parents=True)
    (tmp_path / "a" / "prm" / "final.pth").write_text("1")
    (tmp_path / "a" / "config.yaml").write_text("2")
    (tmp_path / "b.part").mkdir()  # of a call that was killed
    (tmp_path / "b.part" / "old").touch()
    review_round.copied(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.yaml", "prm"]
    review_round.copied(tmp_path / "a", tmp_path / "c", ("prm", "peaks"))
    assert [path.name for path in (tmp_path / "c").rglob("*")] == ["prm", "final.pth"]
    (tmp_path / "b" / "config.yaml").write_text("3")
    review_round.copied(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "config.yaml").read_text() == "3"
