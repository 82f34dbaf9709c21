"""How long training lasts and what it sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cim.training.lengths import Length, balanced_order, repeats

tag_lists = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True), min_size=1, max_size=80)


@pytest.mark.parametrize(
    ("photos", "classes", "updates"),
    [(700, 7, 700), (60, 2, 400), (450, 18, 1800), (4000, 7, 4000), (100_000, 80, 20_000), (3, 1, 400)],
)
def test_updates_of_balanced_single_tags(photos, classes, updates):
    tags = [(n % classes,) for n in range(photos)]
    assert Length(4).updates(tags, 4) == updates


def test_photos_with_many_tags_show_more_classes_at_once():
    assert Length(4).updates([(n % 20, (n + 1) % 20) for n in range(200)], 4) == 1000
    assert Length(4).updates([(n % 20,) for n in range(200)], 4) == 2000


def test_photos_without_tags_do_not_count():
    tags = [(n % 7,) for n in range(700)]
    assert Length(4).updates(tags + [()] * 500, 4) == Length(4).updates(tags, 4)
    assert Length(4).updates([], 4) == Length(4).least


def test_a_budget_stretches_the_rule():
    tags = [(n % 7,) for n in range(700)]
    assert Length(4, stretch=0.5).updates(tags, 4) == 350
    assert Length(4, stretch=3).updates(tags, 4) == 2100


def test_a_number_given_by_hand_is_kept(tmp_path):
    from cim.config.loading import load_config

    assert load_config("folder_mobilenet").train.epochs == 4
    assert load_config("folder_mobilenet", ["train.updates=50"]).train.epochs is None
    assert load_config("folder_mobilenet", ["train.updates=50", "train.epochs=2"]).train.epochs == 2
    base = load_config.__globals__["CONFIG_DIR"] / "folder_mobilenet.yaml"
    (tmp_path / "mine.yaml").write_text(f"base: {base}\ntrain:\n  updates: 9\n")
    assert load_config(tmp_path / "mine.yaml").train.epochs is None


def test_step_lies_inside():
    assert Length(4).steps(700) == (490,)
    assert Length(4).steps(1) == (1,)


def test_balanced_classes_come_once():
    tags = [(n % 5,) for n in range(50)]
    assert balanced_order(tags) == tuple(range(50))


def test_a_rare_class_comes_more_often():
    tags = [(0,)] * 90 + [(1,)] * 10
    order = np.array(balanced_order(tags, 0.5))
    assert (order < 90).sum() == 90
    assert (order >= 90).sum() == pytest.approx(10 * 5**0.5, abs=1)
    assert (np.array(balanced_order(tags, 1.0)) >= 90).sum() == 50


@given(tags=tag_lists, power=st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_every_photo_comes_and_fractions_are_not_lost(tags, power):
    order, wanted = np.array(balanced_order(tags, power)), repeats(tags, power)
    counts = np.bincount(order, minlength=len(tags))
    assert counts.min() >= 1
    assert (wanted >= 1).all()
    assert abs(counts.sum() - wanted.sum()) <= 1
    assert (np.abs(counts - wanted) < 2).all()
