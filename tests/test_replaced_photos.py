"""Photos replaced, tags edited, weights changed between runs: what depends on them is made again, nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_job import SMALL, finish, words

from cim.cli.main import main
from cim.core.errors import CimError
from cim.datasets.base import Dataset, Record
from cim.datasets.drawn import make_demo
from cim.engine.checkpoints import check_same_run
from cim.models.backbones import build_backbone, weights_named
from cim.proposals.options import ProposerOptions, provenance
from cim.storage.photos import PHOTOS, PhotoFile, PhotoTable, drop_replaced, refuse_replaced, tags_of, tell_replaced
from cim.storage.store import Store
from cim.training.feature_cache import FeatureCache

# ---------------------------------------------------------------------- the table


@pytest.fixture(params=[False, True], ids=["folder", "packed"])
def made(tmp_path, request) -> tuple[Store, list[Record]]:
    """A store of three photos, with its table."""
    store, records = Store.create(tmp_path / "store", "peaks", {}, packed=request.param), []
    for name in ("a", "b", "c"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(name.encode() * 10)
        records.append(Record(name, path, (1, 1), (0,)))
        store.save(name, x=np.zeros(1))
        PhotoTable(store.root).note(name, PhotoFile.of(path, "0"))
    return store, records


def change(path: Path, content: bytes) -> None:
    """Another content, surely at another time."""
    path.write_bytes(content)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def ids(records: list[Record]) -> list[int | str]:
    return [record.image_id for record in records]


@pytest.mark.parametrize("content", [b"x" * 10, b"longer than it was"])
def test_only_what_was_made_from_another_content_is_dropped(made, content):
    store, records = made
    assert drop_replaced(store, records) == 0
    change(records[1].path, content)
    assert drop_replaced(store, records) == 1
    assert [store.has(name) for name in "abc"] == [True, False, True]
    assert drop_replaced(store, records) == 0  # nothing there to be dropped


def test_a_touched_photo_is_read_once_and_is_no_other(made, monkeypatch):
    store, records = made
    change(records[0].path, records[0].path.read_bytes())
    read = []
    real = PhotoTable.replaced.__globals__["fingerprint"]
    monkeypatch.setitem(PhotoTable.replaced.__globals__, "fingerprint", lambda path: read.append(path) or real(path))
    assert drop_replaced(store, records) == 0 and read == [records[0].path]
    assert drop_replaced(store, records) == 0 and read == [records[0].path]


def test_edited_tags_matter_only_where_they_are_named(made):
    store, records = made
    records[2] = Record("c", records[2].path, (1, 1), (0, 1))
    table = PhotoTable(store.root)
    assert table.replaced(records) == [] and ids(table.replaced(records, tags_of)) == ["c"]


def test_what_has_no_row_is_taken_as_it_is_and_so_is_what_a_kill_cut_short(made):
    store, records = made
    table = store.root / PHOTOS
    table.write_text(table.read_text()[:-5])  # of c
    for record in records:
        change(record.path, b"other")
    assert ids(PhotoTable(store.root).replaced(records)) == ["a", "b"]
    PhotoTable(store.root).note("a", PhotoFile.of(records[0].path))  # not swallowed by the torn line
    assert ids(PhotoTable(store.root).replaced(records)) == ["b"]
    table.unlink()
    assert PhotoTable(store.root).replaced(records) == []


def test_a_missing_photo_is_left_to_whoever_reads_it(made):
    store, records = made
    records[0].path.unlink()
    assert PhotoTable(store.root).replaced(records) == []
    assert PhotoFile.of(records[0].path) is None


def test_what_depends_on_stale_artefacts_is_refused_in_one_line(made):
    store, records = made
    refuse_replaced(store, records, "cim peaks")
    change(records[1].path, b"other")
    with pytest.raises(CimError, match=r"photo replaced, b\.png; to fix: cim peaks") as caught:
        refuse_replaced(store, records, "cim peaks")
    assert "\n" not in str(caught.value)


def test_a_finished_network_that_has_seen_another_photo_is_told(made, caplog):
    store, records = made
    tell_replaced(store.root, records, "CIM", "start anew")
    assert caplog.text == ""
    change(records[1].path, b"other")
    tell_replaced(store.root, records, "CIM", "start anew")
    assert "CIM is kept, trained before this: photo replaced, b.png; to train it anew: start anew" in caplog.text


def test_overwriting_a_store_forgets_its_photos(made):
    store, _ = made
    Store.create(store.root, "peaks", {}, overwrite=True)
    assert PhotoTable(store.root).rows() == {}


@pytest.mark.parametrize("packed", [False, True])
def test_maps_of_a_replaced_photo_are_made_again_at_every_side(tmp_path, packed):
    records = [Record(name, tmp_path / name, (40, 40), (0,)) for name in ("a.png", "b.png")]
    for record in records:
        cv2.imwrite(str(record.path), np.full((40, 40, 3), 50, np.uint8))
    dataset, cache = Dataset("toy", ("a",), (1,), records), FeatureCache.create(tmp_path / "maps", "t", "w", packed)

    def fill(*sides: int) -> dict[tuple[str, int], float]:
        cache.fill(lambda image: image.mean().reshape(1, 1, 1, 1), dataset, sides, torch.device("cpu"))
        there = [(record.image_id, side) for record in records for side in (32, 64)]
        return {key: float(cache.load(*key)) for key in there if cache.store.has(key[0], f".{key[1]}.npy")}

    before = fill(32, 64)
    cv2.imwrite(str(records[1].path), np.full((40, 40, 3), 200, np.uint8))
    assert fill(32).keys() == before.keys() - {("b.png", 64)}  # not left as it was
    after = fill(32, 64)
    assert {key for key in before if before[key] != after[key]} == {("b.png", 32), ("b.png", 64)}


# ---------------------------------------------------------------------- a whole job


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "job"
    finish(folder)
    return folder


@pytest.fixture
def folder(finished) -> Path:
    """A finished job at the place where it was made, as it was then."""
    kept = finished.with_name("kept")
    if not kept.exists():
        shutil.copytree(finished, kept)
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)  # with the times of the files
    return finished


STORES = ("proposals/train", "proposals/val", "peaks/train", "first_labels", "detections/train", "detections/val")
NETWORKS = ("prm/final.pth", "train/final.pth", "mask_rcnn/final.pth")


def stamps(run: Path) -> dict[str, int]:
    """When each artefact and network was written."""
    files = [path for store in STORES for path in (run / store).glob("*.npz")] + [run / name for name in NETWORKS]
    return {path.relative_to(run).as_posix(): path.stat().st_mtime_ns for path in files}


def written(before: dict[str, int], after: dict[str, int]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def replace(photo: Path, grow: int) -> None:
    """Its mirror image, which is ``grow`` pixels wider."""
    pixels = cv2.imread(str(photo))[:, ::-1]
    cv2.imwrite(str(photo), cv2.copyMakeBorder(pixels, 0, 0, 0, grow, cv2.BORDER_REPLICATE))


def first(folder: Path) -> Path:
    return min((folder / "drawn" / "images" / "train").iterdir())


def check(folder: Path, shown) -> tuple[int, str]:
    shown.readouterr()
    code = main(["check", str(folder / "run" / "config.yaml"), "--workers", "1"])
    return code, shown.readouterr().out


@pytest.mark.parametrize("grow", [0, 16], ids=["same size", "other size"])
def test_a_replaced_photo_is_done_again_and_no_other(folder, capfd, grow):
    run, photo = folder / "run", first(folder)
    assert check(folder, capfd)[0] == 0
    before = stamps(run)
    replace(photo, grow)
    code, told = check(folder, capfd)
    assert code == 2 and told.count("STALE") == 3  # proposals, first labels, detections of the training photos
    assert f"1 of 8 photos replaced since, e.g. {photo.name}" in told and "training of CIM" in told
    assert main(["labels", str(run / "config.yaml")]) == 2  # not from proposals of the old one
    assert main(["score", str(run / "config.yaml"), "--split", "train"]) == 2
    assert written(before, stamps(run)) <= {f"peaks/train/{photo.name}.npz"}
    assert main(words(folder)) == 0
    again = written(before, stamps(run))
    assert again == {f"{store}/{photo.name}.npz" for store in STORES if not store.endswith("val")}
    code, told = check(folder, capfd)
    assert code == 0 and "STALE" not in told
    assert all(f"training of {network}" in told for network in ("response network", "CIM", "Mask R-CNN"))


def test_touched_photos_are_no_others(folder, capsys):
    before, config = stamps(folder / "run"), str(folder / "run" / "config.yaml")
    for photo in (folder / "drawn" / "images").rglob("*.*"):
        os.utime(photo)
    for stage in (
        ["proposals"],
        ["proposals", "--split", "val"],
        ["prm"],
        ["labels"],
        ["train"],
        ["score"],
        ["refine"],
    ):
        assert main([stage[0], config, *stage[1:]]) == 0
    assert written(before, stamps(folder / "run")) == set()
    assert check(folder, capsys)[0] == 0


def test_edited_tags(folder, capsys):
    """Peaks and first labels of that photo are made again; training says in one line what to do."""
    run, tags = folder / "run", folder / "drawn" / "train_tags.csv"
    before, rows = stamps(run), tags.read_text().splitlines()
    name, labels = rows[1].split(",", 1)
    others = {label for row in rows[1:] for label in row.split(",", 1)[1].split()} - set(labels.split())
    rows[1] = f"{name},{labels} {min(others)}"
    tags.write_text("\n".join(rows) + "\n")
    code, told = check(folder, capsys)
    assert code == 2 and told.count("STALE") == 1 and "1 of 8 photos replaced or tagged anew since" in told
    config = str(run / "config.yaml")
    assert main(["labels", config]) == 0
    photo = Path(name).stem
    assert {Path(file).parts[0] for file in written(before, stamps(run))} == {"peaks", "first_labels"}
    assert all(photo in file for file in written(before, stamps(run)))
    for stage in ("prm", "train"):
        capsys.readouterr()
        assert main([stage, config]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and "made with other settings" in lines[0] and "to fix: choose another" in lines[0]


# ---------------------------------------------------------------------- weights


def save_trunk(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(build_backbone("tiny", "none").body.state_dict(), path)
    return path


def test_weights_are_told_apart_by_their_content(tmp_path):
    one, moved, other = (save_trunk(tmp_path / f"{n}.pth", seed) for n, seed in (("a", 0), ("b", 0), ("c", 1)))
    shutil.copy(one, moved)
    assert weights_named(str(one)) == weights_named(str(moved)) != weights_named(str(other))
    assert [weights_named(word) for word in (None, "none", "prm")] == [None, "none", "prm"]
    with pytest.raises(CimError, match="no such weights file"):
        weights_named(str(tmp_path / "missing.pth"))


def test_proposals_of_changed_weights_are_refused(tmp_path):
    options = ProposerOptions(weights=str(save_trunk(tmp_path / "trunk.pth", 0)))
    made_from = provenance(options)
    root = Store.create(tmp_path / "new", "regions", made_from).root
    Store.create(root, "regions", provenance(options, root))
    save_trunk(tmp_path / "trunk.pth", 1)
    with pytest.raises(CimError, match=r"made with other settings \(weights\)"):
        Store.create(root, "regions", provenance(options, root))
    del made_from["weights"]  # as version 0.1 wrote it
    old = Store.create(tmp_path / "old", "regions", made_from).root
    assert Store.create(old, "regions", provenance(options, old)).provenance == made_from


def test_training_from_changed_weights_is_refused(tmp_path, capsys):
    make_demo(tmp_path / "drawn", train=4, val=1)
    data, weights = tmp_path / "drawn", save_trunk(tmp_path / "trunk.pth", 0)
    settings = [f"data.images={data / 'images' / 'train'}", f"data.tags={data / 'train_tags.csv'}"]
    settings += [f"prm.weights={weights}", f"work_dir={tmp_path / 'run'}", "device=cpu", *SMALL]
    assert main(["prm", "demo", "--set", *settings]) == 0
    assert main(["prm", "demo", "--set", *settings]) == 0
    save_trunk(weights, 1)
    capsys.readouterr()
    assert main(["prm", "demo", "--set", *settings]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "trunk_file" in told[0] and "to start over" in told[0]


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ({"photos_and_tags": "a", "tags": "t", "trunk_file": None}, True),
        ({"photos_and_tags": "b", "tags": "t", "trunk_file": None}, True),  # a photo of another size
        ({"photos_and_tags": "a", "tags": "u", "trunk_file": None}, False),
        ({"photos_and_tags": "a", "tags": "t", "trunk_file": "w"}, False),
        ({"photos_and_tags": "a"}, True),  # version 0.1
        ({"photos_and_tags": "b"}, False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_which_runs_are_the_same(tmp_path, found, same, nested):
    expected = {"photos_and_tags": "a", "tags": "t", "trunk_file": None}
    if nested:
        found, expected = {"settings": found}, {"settings": expected}
    if same:
        check_same_run(found, expected, tmp_path)
    else:
        with pytest.raises(CimError, match="other settings"):
            check_same_run(found, expected, tmp_path)
