"""Stores in one file: read and written as those of many, turned into each other, safe against kills and damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_run import small_config

from cim.cli.main import main
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.core.regions import RegionSet
from cim.storage.entries import PACK, Folder, Pack
from cim.storage.packing import pack, unpack
from cim.storage.store import Store
from cim.training.feature_cache import FeatureCache

IDS = ("dog/a b.jpg", "../../x", "é%", ".hidden", "A", "a", "й" * 100, 3)


def filled(root: Path, count: int = 30, packed: bool = False) -> Store:
    store = Store.create(root, "peaks", {"made": 1}, packed=packed)
    for number in range(count):
        store.save(number, a=np.arange(number * 100), b=np.array(number))
    return store


def contents(root: Path) -> dict[str, bytes | None]:
    entries = Store.open(root, "peaks").entries
    return {name: entries.read(name) for name in entries.names()}


def files(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


# ---------------------------------------------------------------------- one store, two forms


@pytest.mark.parametrize("packed", [False, True])
def test_a_store_does_the_same_in_both_forms(tmp_path, packed):
    store = Store.create(tmp_path / "s", "regions", {"made": 1}, packed=packed)
    assert len(store) == 0 and not store.has("a") and not store.seen()("a")
    masks = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    for name in IDS:
        store.save_regions(name, RegionSet.from_masks(masks))
    store.save("later", n=np.zeros((0, 2)))
    again = pickle.loads(pickle.dumps(Store.open(tmp_path / "s", "regions")))
    assert again == store and len(again) == len(IDS) + 1
    seen = again.seen()
    for name in IDS:
        assert again.has(name) and seen(name)
        np.testing.assert_array_equal(again.load_regions(name).masks(), masks)
    assert not seen("b") and again.load("later")["n"].shape == (0, 2)
    with pytest.raises(CimError, match=r"no regions for image b: .*b\.npz"):
        again.load("b")
    with pytest.raises(CimError, match="no proposals for this image"):
        again.load_regions("b")
    assert (files(store.root) == {"manifest.json", PACK}) == packed


def test_what_is_there_keeps_its_form(tmp_path):
    for packed in (False, True):
        root = tmp_path / str(packed)
        filled(root, 2, packed)
        assert len(Store.create(root, "peaks", {"made": 1}, packed=not packed)) == 2
        assert (root / PACK).exists() == packed
    new = Store.create(tmp_path / "True", "peaks", {"made": 2}, overwrite=True)
    assert len(new) == 0 and files(new.root) == {"manifest.json", PACK}


def test_an_entry_can_be_written_again(tmp_path):
    store = filled(tmp_path, 3, packed=True)
    store.save(1, a=np.arange(3))
    assert len(store) == 3 and store.load(1)["a"].tolist() == [0, 1, 2]


def test_feature_maps(tmp_path):
    cache = FeatureCache.create(tmp_path, "tiny", "none", packed=True)
    for side in (64, 96):
        cache.store.write("a", _npy(np.full((2, 3), side, np.float16)), f".{side}.npy")
    assert cache.load("a", 96).tolist() == [[96.0] * 3] * 2
    assert unpack(tmp_path) == 2 and files(tmp_path) == {"manifest.json", "a.64.npy", "a.96.npy"}
    assert cache.load("a", 64).tolist() == [[64.0] * 3] * 2
    assert pack(tmp_path) == 2 and len(cache.store) == 2
    with pytest.raises(CimError, match="cannot read features"):
        cache.load("b", 64)


def _npy(values: np.ndarray) -> bytes:
    with tempfile.TemporaryFile() as file:
        np.save(file, values)
        file.seek(0)
        return file.read()


def test_workers_write_and_read_at_once(tmp_path):
    store = filled(tmp_path, 0, packed=True)
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        read = list(pool.map(_save_and_load, [(store, number) for number in range(60)]))
    assert read == list(range(60)) and len(store) == 60


def _save_and_load(task: tuple[Store, int]) -> int:
    store, number = task
    store.save(number, n=np.array(number))
    return int(store.load(number)["n"])


# ---------------------------------------------------------------------- from one into the other


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=60, alphabet=st.characters(blacklist_categories=("Cs",))),
        arrays.arrays(st.sampled_from([np.float32, np.uint8, np.int64, bool]), arrays.array_shapes(min_side=0)),
        max_size=6,
    )
)
def test_there_and_back_is_the_same_byte_for_byte(images):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "s")
        store = Store.create(root, "peaks", {})
        for name, values in images.items():
            store.save(name, values=values)
        before, newest = {path.name: path.read_bytes() for path in root.iterdir()}, store.entries.newest()
        assert pack(root) == len(images)
        assert files(root) == ({"manifest.json", PACK} if images else {"manifest.json"})
        for name, values in images.items():
            found = store.load(name)["values"]
            assert found.dtype == values.dtype and found.tobytes() == values.tobytes() and found.shape == values.shape
        assert store.entries.newest() == newest  # what was made from it is not made again
        assert unpack(root) == len(images)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == before
        assert store.entries.newest() == newest


def test_other_files_of_a_store_stay(tmp_path):
    filled(tmp_path, 2)
    (tmp_path / "results.json").write_text("[]")
    pack(tmp_path)
    assert files(tmp_path) == {"manifest.json", PACK, "results.json"}
    unpack(tmp_path)
    assert files(tmp_path) == {"manifest.json", "0.npz", "1.npz", "results.json"}


def test_what_something_else_added_beside_a_pack_is_taken_up(tmp_path):
    store = filled(tmp_path, 2, packed=True)
    Folder(tmp_path).write("7.npz", b"added")
    Folder(tmp_path).write("1.npz", b"older")
    assert not store.has(7)  # the pack counts
    one = store.load(1)["b"]
    assert pack(tmp_path) == 3 and files(tmp_path) == {"manifest.json", PACK}
    assert store.read(7) == b"added" and store.load(1)["b"] == one


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    filled(tmp_path)
    before = contents(tmp_path)

    def full(self, entries):
        next(iter(entries))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Pack, "fill", full)
    with pytest.raises(CimError, match=r"cannot write: .*pack\.sqlite; found No space left"):
        pack(tmp_path)
    assert contents(tmp_path) == before and PACK not in files(tmp_path) and len(files(tmp_path)) == 31


def test_what_reads_back_differently_replaces_nothing(tmp_path, monkeypatch):
    filled(tmp_path)
    before, fill = contents(tmp_path), Pack.fill
    monkeypatch.setattr(Pack, "fill", lambda self, entries: fill(self, ((name, b"x") for name, _ in entries)))
    with pytest.raises(CimError, match="read back differently"):
        pack(tmp_path)
    assert contents(tmp_path) == before and PACK not in files(tmp_path)


# ---------------------------------------------------------------------- kills

CONVERT = "import sys; from pathlib import Path; from cim.storage.packing import {0}; {0}(Path(sys.argv[1]))"
SAVE = (
    "import sys; import numpy as np; from cim.storage.store import Store\n"
    "store = Store.create(sys.argv[1], 'peaks', {{'made': 1}}, packed=True)\n"
    "for number in range({count}):\n"
    "    if not store.has(number):\n"
    "        store.save(number, a=np.random.default_rng(number).random(5000))\n"
)


def killed(code: str, root: Path, when) -> None:
    """Run code in a process that is killed as soon as ``when`` says so; it must not have ended by itself."""
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stderr=subprocess.DEVNULL)
    while not when():
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _has(root: Path, count: int) -> bool:
    return (root / "manifest.json").exists() and len(Store.open(root, "peaks")) >= count


def test_a_killed_stage_goes_on_with_the_same_content(tmp_path):
    count, code = 400, SAVE.format(count=400)
    root, whole = tmp_path / "s", tmp_path / "whole"
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True)
    for done in (1, 60, 130):
        killed(code, root, partial(_has, root, done))
        left = contents(root)
        assert done <= len(left) < count
        assert left.items() <= contents(whole).items()  # of what is there nothing is torn
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)
    assert contents(root) == contents(whole) and len(contents(root)) == count
    assert files(root) == {"manifest.json", PACK}


def test_an_entry_torn_by_a_kill_is_lost_alone(tmp_path):
    """Killed with pages written and the transaction open: the file is torn until somebody opens it."""
    store = filled(tmp_path, 5, packed=True)
    whole, before = (tmp_path / PACK).read_bytes(), contents(tmp_path)
    code = (
        "import os, sqlite3, sys\n"
        "base = sqlite3.connect(sys.argv[1] + '/pack.sqlite', isolation_level=None)\n"
        "base.execute('PRAGMA cache_size = 1'); base.execute('PRAGMA cache_spill = 1')\n"
        "base.execute('BEGIN IMMEDIATE')\n"
        "for n in range(50): base.execute('INSERT INTO entries VALUES (?, zeroblob(100000))', (f't{n}',))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert (tmp_path / PACK).read_bytes() != whole and (tmp_path / f"{PACK}-journal").exists()
    assert contents(tmp_path) == before
    store.save("next", a=np.zeros(1))
    assert len(store) == 6 and files(tmp_path) == {"manifest.json", PACK}


@pytest.mark.parametrize("convert", ["pack", "unpack"])
def test_a_killed_conversion_is_read_right_and_completed(tmp_path, convert):
    whole = tmp_path / "whole"
    filled(whole, 300, packed=convert == "unpack")
    before = contents(whole)
    seen = set()
    moments = {  # while the other form is being written, and while the old one goes
        "pack": (lambda root: any(root.glob(f".{PACK}.*")), lambda root: (root / PACK).exists()),
        "unpack": (lambda root: (root / "0.npz").exists(), lambda root: len(Folder(root).names()) > 200),
    }
    for number, moment in enumerate(moments[convert]):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        killed(CONVERT.format(convert), root, partial(moment, root))
        assert contents(root) == before
        seen.add((root / PACK).exists())
        {"pack": pack, "unpack": unpack}[convert](root)
        assert contents(root) == before
        assert files(root) == {"manifest.json", PACK} if convert == "pack" else PACK not in files(root)
        assert not [name for name in files(root) if name.startswith(".")]
    assert seen == ({False, True} if convert == "pack" else {True})


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "other", "middle"])
def test_a_damaged_pack_is_told_in_one_line(tmp_path, damage):
    store = filled(tmp_path, 200, packed=True)
    path = tmp_path / PACK
    whole = path.read_bytes()
    if damage == "other":
        path.unlink()
        with sqlite3.connect(path) as base:
            base.execute("CREATE TABLE other (x)")
        base.close()
    else:
        middle = whole[:4096] + b"\xff" * 4096 * 3 + whole[4 * 4096 :]
        path.write_bytes(
            {"text": b"no database" * 99, "empty": b"", "cut": whole[: len(whole) // 3], "middle": middle}[damage]
        )
    with pytest.raises(CimError) as caught:
        for number in range(200):
            store.load(number)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "to fix: " in str(caught.value)
    with pytest.raises(CimError, match=r"pack\.sqlite"):
        unpack(tmp_path)
    assert path.exists()
    assert len(Store.create(tmp_path, "peaks", {"made": 1}, overwrite=True)) == 0
    assert filled(tmp_path, 3).has(2)


def test_a_damaged_entry_harms_no_other_and_can_be_made_again(tmp_path, capsys):
    store = filled(tmp_path, 3, packed=True)
    store.write(1, b"PK no more")
    with pytest.raises(CimError, match=r"damaged peaks file: .*pack\.sqlite/1\.npz.*cim pack --undo .*, delete it and"):
        store.load(1)
    assert store.load(2)["b"] == 2
    assert main(["pack", "--undo", str(tmp_path)]) == 0
    store.path(1).unlink()
    assert len(filled(tmp_path, 3)) == 3 and store.load(1)["b"] == 1


@pytest.mark.parametrize("name", ["../out.npz", "/tmp/out.npz", ".hidden.npz", "a/b.npz", "run.sh", "manifest.json"])
def test_a_name_that_leads_out_of_the_store_is_refused(tmp_path, name):
    root = tmp_path / "s"
    filled(root, 1, packed=True).entries.write(name, b"x")
    with pytest.raises(CimError, match=r"not a pack of ours: .*pack\.sqlite"):
        unpack(root)
    assert files(root) == {"manifest.json", PACK} and files(tmp_path) == {"s"}


def test_an_entry_that_is_no_file_is_told(tmp_path):
    store = filled(tmp_path, 1, packed=True)
    for value in ("text", 7):
        store.entries.write("0.npz", value)
        for load in (store.load, store.load_regions):
            with pytest.raises(CimError, match=r"damaged entry: .*0\.npz"):
                load(0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_pack_that_may_only_be_read(tmp_path):
    store = filled(tmp_path / "s", 3, packed=True)
    (tmp_path / "s" / PACK).chmod(0o444)
    (tmp_path / "s").chmod(0o555)
    try:
        assert store.load(2)["b"] == 2
        with pytest.raises(CimError, match="cannot write"):
            store.save(4, a=np.zeros(1))
    finally:
        (tmp_path / "s").chmod(0o755)


# ---------------------------------------------------------------------- the command


def test_the_command_packs_and_unpacks(tmp_path, capsys):
    roots = [tmp_path / "first", tmp_path / "second"]
    before = [contents(filled(root, 4).root) for root in roots]
    assert main(["pack", *map(str, roots)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"4 entries, one file: {root}" for root in roots]
    assert [contents(root) for root in roots] == before and all((root / PACK).exists() for root in roots)
    for _ in range(2):  # what is done already is left
        assert main(["pack", "--undo", *map(str, roots)]) == 0
        assert capsys.readouterr().out.splitlines() == [f"4 entries, a file each: {root}" for root in roots]
    assert [contents(root) for root in roots] == before and not any((root / PACK).exists() for root in roots)


def test_the_command_refuses_what_is_no_store(tmp_path, capsys):
    filled(tmp_path / "s", 1)
    assert main(["pack", str(tmp_path / "s"), str(tmp_path)]) == 2
    assert "no store here" in capsys.readouterr().err and PACK not in files(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", "pictures", {})
    assert main(["pack", str(tmp_path / "empty")]) == 0 and files(tmp_path / "empty") == {"manifest.json"}


def test_the_command_waits_for_nobody_who_is_at_work(tmp_path, capsys):
    """A command holds its run's folder, above the store."""
    root = tmp_path / "run" / "proposals" / "train"
    filled(root, 2)
    code = "import sys; from cim.cli.main import main; sys.exit(main(['pack', sys.argv[1]]))"
    alone = {key: value for key, value in os.environ.items() if not key.startswith("CIM_")}
    with hold(tmp_path / "run"):
        done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, env=alone)
    assert done.returncode == 2 and "another command is at work in this folder" in done.stderr
    assert json.loads((root / "manifest.json").read_text())["kind"] == "peaks" and PACK not in files(root)


# ---------------------------------------------------------------------- a run


def test_a_run_gives_the_same_in_both_forms(tmp_path):
    config = small_config(tmp_path)
    run, words = tmp_path / "run", ["score", str(config), "--split", "val", "--workers", "2"]
    assert main(words) == 0
    results, scores = run / "detections" / "val" / "results.json", run / "detections" / "val"
    wanted, entries = json.loads(results.read_text()), _arrays(scores)
    shutil.rmtree(scores)
    assert main(["pack", str(run / "proposals" / "val")]) == 0
    assert main([*words, "--set", "data.packed=true"]) == 0
    assert json.loads(results.read_text()) == wanted and wanted
    assert (scores / PACK).exists() and not list(scores.glob("*.npz")) and _arrays(scores).keys() == entries.keys()
    for image, arrays_of in _arrays(scores).items():
        assert all(np.array_equal(arrays_of[name], entries[image][name]) for name in entries[image])
    made = results.stat().st_mtime_ns
    assert main(["pack", "--undo", str(scores), str(run / "proposals" / "val")]) == 0
    assert main(words) == 0
    assert results.stat().st_mtime_ns == made  # nothing is made again for another form


def _arrays(root: Path) -> dict[int, dict[str, np.ndarray]]:
    store = Store.open(root, "detections")
    return {number: store.load(number) for number in range(1, 5)}


def test_new_stores_are_packed_where_the_settings_say_so(tmp_path):
    config, output = small_config(tmp_path), tmp_path / "new"
    words = ["proposals", str(config), "--split", "val", "--output", str(output), "--workers", "2"]
    assert main([*words, "--set", "data.packed=true"]) == 0
    assert (output / PACK).exists() and not list(output.glob("*.npz"))
    assert len(Store.open(output, "regions")) == 4
    made = (output / PACK).read_bytes()
    assert main(words) == 0  # all is there
    assert (output / PACK).read_bytes() == made and not list(output.glob("*.npz"))
