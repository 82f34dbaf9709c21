"""Stores: one file per image, a manifest, and no silent mixing."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.storage.store import Store

MADE = {"maker": "test", "threshold": 0.5, "trained_on_masks": None}


def test_what_is_saved_is_loaded(tmp_path):
    store = Store.create(tmp_path / "s", "peaks", MADE)
    assert len(store) == 0 and not store.has(3)
    store.save(3, values=np.arange(4.0), empty=np.zeros((0, 2)))
    assert store.has(3) and store.has("3") and len(store) == 1
    loaded = Store.open(tmp_path / "s", "peaks").load(3)
    assert sorted(loaded) == ["empty", "values"] and loaded["empty"].shape == (0, 2)
    np.testing.assert_array_equal(loaded["values"], np.arange(4.0))
    assert Store.open(tmp_path / "s", "peaks").provenance == MADE
    assert pickle.loads(pickle.dumps(store)) == store  # workers get it


def test_regions(tmp_path):
    masks = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    store = Store.create(tmp_path, "regions", MADE)
    store.save_regions(1, RegionSet.from_masks(masks))
    np.testing.assert_array_equal(store.load_regions(1).masks(), masks)
    with pytest.raises(CimError, match="no proposals for this image"):
        store.load_regions(2)


NAMES = ["dog/a b.jpg", "../../x", "é%", "a/b", "a%2fb", ".hidden", "..", "A", "a", "й" * 100, "й" * 99 + "к"]


@pytest.mark.parametrize("name", NAMES)
def test_any_id_is_a_file_of_its_own(tmp_path, name):
    store = Store.create(tmp_path / "s", "peaks", {})
    for number, other in enumerate(NAMES):
        store.save(other, n=np.array(number))
    assert store.path(name).parent == store.root
    assert int(store.load(name)["n"]) == NAMES.index(name)
    assert len(store) == len(NAMES)


def test_continued_replaced_or_refused(tmp_path):
    store = Store.create(tmp_path / "s", "peaks", MADE)
    store.save(1, a=np.zeros(1))
    assert Store.create(tmp_path / "s", "peaks", MADE).has(1)
    with pytest.raises(CimError, match=r"made with other settings \(threshold\).*expected.*0\.7.*found.*0\.5.*--over"):
        Store.create(tmp_path / "s", "peaks", {**MADE, "threshold": 0.7})
    assert store.has(1)
    fresh = Store.create(tmp_path / "s", "peaks", {**MADE, "threshold": 0.7}, overwrite=True)
    assert len(fresh) == 0 and Store.open(tmp_path / "s", "peaks").provenance["threshold"] == 0.7


def test_settings_survive_json(tmp_path):
    """Tuples, paths and NumPy numbers come back as json's types and still count as the same settings."""
    made = {"sides": (480, 576), "path": tmp_path, "n": np.float64(0.25)}
    Store.create(tmp_path / "s", "peaks", made).save(1, a=np.zeros(1))
    assert Store.create(tmp_path / "s", "peaks", made).has(1)


def test_another_kind_is_never_deleted(tmp_path):
    store = Store.create(tmp_path / "s", "regions", MADE)
    store.save(1, a=np.zeros(1))
    for overwrite in (False, True):
        with pytest.raises(CimError, match=r"another kind of artefact.*expected peaks; found regions"):
            Store.create(tmp_path / "s", "peaks", MADE, overwrite)
    assert store.has(1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    Store.create(tmp_path / "photos", "peaks", MADE, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(CimError, match=r"no peaks here: .*; to fix: make them"):
        Store.open(tmp_path, "peaks", fix="make them")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CimError, match="output is not a folder"):
        Store.create(tmp_path / "file", "peaks", {})
    for text, message in (("{", "not a json file"), ("[1]", "another kind"), (json.dumps({}), "another kind")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(CimError, match=message):
            Store.open(tmp_path, "peaks")


def test_damaged_and_missing_artefacts(tmp_path):
    store = Store.create(tmp_path, "peaks", {})
    with pytest.raises(CimError, match="no peaks for image 7"):
        store.load(7)
    store.save(7, a=np.arange(1000))
    whole = store.path(7).read_bytes()
    for damaged in (b"", b"text", whole[:100], whole[:-30]):
        store.path(7).write_bytes(damaged)
        with pytest.raises(CimError, match="damaged peaks file") as caught:
            store.load(7)
        assert "\n" not in str(caught.value)


def test_arrays_with_python_objects_are_refused(tmp_path):
    store = Store.create(tmp_path, "peaks", {})
    np.savez(store.path(1), a=np.array([{}], object))
    with pytest.raises(CimError, match="damaged peaks file"):
        store.load(1)
