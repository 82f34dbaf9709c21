"""Files from anywhere: damaged ones end in one line, none leads outside its folder, and no name runs in the report."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small_run
from doors import run_tool
from scipy.io import savemat

from cim.config.loading import load_config
from cim.core.errors import CimError
from cim.core.run_lengths import as_rle
from cim.core.safe_mat import checked_mat
from cim.datasets.folder import open_folder
from cim.datasets.tags.coco_json import open_tag_file
from cim.pictures.photo_set import PhotoSet
from cim.proposals.cob import read_cob
from cim.storage.published import read_pickle
from cim.storage.store import Store

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import fuzz
import fuzz_readers

READERS = {reader.name: reader for reader in fuzz_readers.readers()}


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, tmp_path):
    reader = READERS[name]
    fuzz_readers.lay_out(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reader.seed)
    reader.read(path)


def test_damaged_files_are_told_in_one_line():
    """A short, always equal part of benchmarks/fuzz.py, in a process that may die."""
    tried, faults = fuzz.fuzz([], seconds=None, files=12, seed=0)
    assert tried == dict.fromkeys(READERS, 12) and not faults


def test_the_fuzzer_would_notice():
    def crash(path: Path) -> None:
        if path.read_bytes() != b"good file":
            raise ValueError("no")

    def fault(path: Path) -> None:
        raise CimError("a\nb")

    assert fuzz.attempt(fuzz_readers.Reader("x", b"", crash), Path(__file__)).startswith("ValueError at")
    assert fuzz.attempt(fuzz_readers.Reader("x", b"", fault), Path(__file__)) is None  # CimError makes one line of it


def test_the_same_seed_makes_the_same_files():
    """But for torch's old format, which has addresses of memory in it."""
    kinds = [[r for r in fuzz_readers.readers() if r.name != "old.pth"] for _ in range(2)]
    files = [[fuzz.mutated(r, fuzz.random.Random(f"3 {r.name}")) for r in readers] for readers in kinds]
    assert files[0] == files[1] != [reader.seed for reader in kinds[0]]


# ---------------------------------------------------------------------- what the fuzzer found; each ended the process


def test_an_object_array_that_says_twice_what_it_holds(tmp_path):
    """NumPy's own reader freed what was in use."""
    array = pickle.dumps(np.array([["a", "b"]], object), 2)
    state = array[array.index(b"(K\x01") : array.rindex(b"b.")]
    (tmp_path / "x.pkl").write_bytes(array[:-1] + state + b"b.")
    assert read_pickle(tmp_path / "x.pkl").tolist() == [["a", "b"]]
    (tmp_path / "x.pkl").write_bytes(array.replace(b"K\x01K\x02\x86", b"K\x09K\x09\x86"))
    with pytest.raises(CimError, match="does not fit"):
        read_pickle(tmp_path / "x.pkl")


def test_a_pickle_that_asks_for_sixteen_gigabytes(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    assert read_pickle(tmp_path / "x.pkl") == []
    assert fuzz._peak() < 4 * 2**30


def test_a_matlab_file_with_an_unknown_type(tmp_path):
    savemat(tmp_path / "x.mat", {"maskmat": np.ones((2, 4, 5), np.uint8)})
    data = bytearray((tmp_path / "x.mat").read_bytes())
    kind = struct.pack("<II", 2, 40)  # of uint8, 40 bytes
    data[data.index(kind)] = 0
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(CimError, match="an element of type 0"):
        read_cob(tmp_path / "x.mat")


def test_an_unpacked_matlab_file_is_the_same_file(tmp_path):
    for compressed in (False, True):
        savemat(tmp_path / f"{compressed}.mat", {"a": np.arange(600.0), "b": "text"}, do_compression=compressed)
    plain, packed = (checked_mat((tmp_path / f"{c}.mat").read_bytes())[128:] for c in (False, True))
    assert plain == packed == (tmp_path / "False.mat").read_bytes()[128:]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e18, -1e6, "nan"])
def test_a_polygon_that_leaves_its_image_far_behind(value):
    with pytest.raises(ValueError, match="far outside"):
        as_rle([[1, 1, 9, 1, value, 8]], (24, 32))


def test_a_polygon_may_touch_the_border_and_pass_it_a_little():
    assert as_rle([[-2, -2, 34, -2, 34, 26, -2, 26]], (24, 32))["size"] == [24, 32]


@pytest.mark.parametrize("mask", [{"size": [10**6] * 2, "counts": [10**12]}, {"size": [float("inf"), 1], "counts": []}])
def test_a_mask_of_a_size_that_the_c_code_cannot_count(mask):
    with pytest.raises(ValueError):
        as_rle(mask, (24, 32))


# ---------------------------------------------------------------------- names that lead elsewhere


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "../photos/../secret.png"])
def test_paths_in_a_json_stay_below_their_folder(tmp_path, name):
    small_run.draw(tmp_path, 1)
    (tmp_path / "photos" / "000.png").rename(tmp_path / "secret.png")
    truth = json.loads((tmp_path / "truth.json").read_text())
    truth["images"][0]["file_name"] = name
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(truth))
    for read in (
        lambda: open_folder(tmp_path / "photos", path),
        lambda: list(open_tag_file("evil", path, tmp_path / "photos", "fix")),
        lambda: PhotoSet.read(path, tmp_path / "photos"),
    ):
        with pytest.raises(CimError, match="outside"):
            read()


def test_names_in_an_archive_are_no_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../outside.npy", b"x")
    with pytest.raises(CimError, match="damaged"):
        Store(tmp_path, "peaks").load("a")
    assert not (tmp_path.parent / "outside.npy").exists()


@pytest.mark.parametrize("image_id", ["../../x", "/etc/passwd", "..", ".hidden", "a\0b", "x" * 500])
def test_ids_stay_inside_their_store(tmp_path, image_id):
    store = Store(tmp_path / "store", "peaks")
    store.save(image_id, a=np.zeros(1))
    assert store.path(image_id).parent == tmp_path / "store" and store.has(image_id)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_report_spells_out_every_name(tmp_path):
    """Classes, files, ids and settings called <script>."""
    evil = "<script>alert(1)</script>"
    path = small_run.small_config(tmp_path)
    for file in (tmp_path / "truth.json", path):
        file.write_text(file.read_text().replace('"disc"', json.dumps(evil)).replace("name: small", f"name: '{evil}'"))
    config = load_config(path)
    (tmp_path / "photos" / "000.png").rename(tmp_path / "photos" / "<script>.png")
    truth = json.loads((tmp_path / "truth.json").read_text())
    truth["images"][0]["file_name"] = "<script>.png"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = [{k: a[k] for k in ("image_id", "category_id", "segmentation", "bbox")} for a in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps([{**r, "score": 0.9} for r in results]))
    run = Path(config.work_dir)
    run.mkdir(exist_ok=True)
    verdict = {
        "level": "failed",
        "reason": evil,
        "advice": evil,
        "classes": {evil: {"level": "failed", "reason": evil}},
    }
    (run / "verdicts.json").write_text(json.dumps({"prm": verdict, evil: verdict}))
    (run / "timings.json").write_text(json.dumps({evil: 1.0}))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    assert run_tool("evaluation", str(path), "--results", tmp_path / "results.json", "--name", evil) == 0
    run_tool("report", str(run), "--config", path, "--results", tmp_path / "results.json")
    page = (run / "report.html").read_text()
    assert page.count("&lt;script&gt;") > 5
    assert "<script>alert" not in page and "<script>.png" not in page
