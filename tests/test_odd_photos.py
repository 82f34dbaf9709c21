"""Odd entries in a photo folder, through every command that takes photos: read right or named, and nothing waits."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_photos
import pytest
import small_run
import yaml
from odd_photos import BAD_PIXELS, READ, REFUSED, SIZE
from PIL import Image

from cim.config.loading import load_config
from cim.core.errors import CimError
from cim.core.photo import photo_size, read_photo
from cim.datasets.folder import open_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """One class of drawn boxes, one folder of everything else."""
    root = tmp_path_factory.mktemp("odd")
    odd_photos.fill(root / "photos" / "disc")
    small_run.draw(root / "drawn", 6)
    (root / "photos" / "box").mkdir()
    for number, path in enumerate(sorted((root / "drawn" / "photos").glob("*.png"))[1::2]):
        path.rename(root / "photos" / "box" / f"box_{number}.png")
    return root


def cim(*words: object, seconds: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which must end in time and never with a traceback."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cim", *map(str, words)]
    done = subprocess.run(
        command, env=environment, timeout=seconds, capture_output=True, text=True, errors="replace", **options
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lines_about(name: str, text: str) -> list[str]:
    """The lines that say what is wrong with an entry."""
    return [line for line in text.splitlines() if f"/{name};" in line and REFUSED[name] in line]


@pytest.mark.parametrize("name", READ)
def test_read_right(odd, name):
    path = odd / "photos" / "disc" / name
    photo = read_photo(path)
    assert photo.shape == (*SIZE, 3) and photo_size(path) == SIZE
    seed = {"Case.png": 1, "case.png": 2}.get(name, READ.index(name) - 6 if name in READ[-3:] else 0)
    expected = odd_photos.photo(seed).astype(int)
    if name == "sixteen.png":
        expected = np.repeat(expected[:, :, :1], 3, axis=2)
    assert np.abs(photo - expected).mean() < (4 if name.endswith((".jpg", ".gif")) else 1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_named_in_one_line(odd, name):
    with pytest.raises(CimError) as caught:
        read_photo(odd / "photos" / "disc" / name)
    assert REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)
    if name not in BAD_PIXELS:
        with pytest.raises(CimError):
            photo_size(odd / "photos" / "disc" / name)


def test_a_data_set_names_all_that_it_cannot_use(odd, caplog):
    with pytest.raises(CimError, match=f"{len(REFUSED) - len(BAD_PIXELS)} photos cannot be used"):
        open_folder(odd / "photos")
    for name in REFUSED:
        assert len(lines_about(name, caplog.text)) == (name not in BAD_PIXELS), name


def test_check(odd, tmp_path):
    config = tmp_path / "odd.yaml"
    config.write_text(yaml.safe_dump({"work_dir": str(tmp_path / "run"), "data": {"images": str(odd / "photos")}}))
    done = cim("check", config, "--for", "training", "--set", "data.train_split=train", "--workers", 1)
    assert done.returncode == 2
    for name in REFUSED:
        assert bool(lines_about(name, done.stderr)) == (name not in BAD_PIXELS), name


def test_proposals(odd, tmp_path):
    words = ("--images", odd / "photos" / "disc", "--output", tmp_path / "store", "--no-deep-features")
    done = cim("proposals", *words, "--max-proposals", 5, "--workers", 1)
    assert done.returncode == 2
    for name in REFUSED:
        assert len(lines_about(name, done.stderr)) == 1, name
    assert f"{len(READ)} of {len(READ) + len(REFUSED)} photos have proposals" in done.stdout
    assert len(list((tmp_path / "store").glob("*.npz"))) == len(READ)


def test_predict_and_visualize(odd, tmp_path):
    config = load_config(small_run.small_config(tmp_path / "net"))
    checkpoint = Path(config.work_dir) / "train" / "final.pth"
    words = ("--checkpoint", checkpoint, "--device", "cpu", "--output", tmp_path / "out")
    done = cim("predict", odd / "photos" / "disc", *words)
    assert done.returncode == 2
    for name in REFUSED:
        assert len(lines_about(name, done.stderr)) == 1, name
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {Path(image["file_name"]).name for image in content["images"]} == set(READ)

    listed = [
        *content["images"],
        *(
            {"id": 100 + k, "file_name": str(odd / "photos" / "disc" / name), "height": 48, "width": 64}
            for k, name in enumerate(REFUSED)
        ),
    ]
    (tmp_path / "all.json").write_text(json.dumps({**content, "images": listed, "annotations": []}))
    results = tmp_path / "out" / "predictions.json"
    words = ("--results", results, "--annotations", tmp_path / "all.json", "--images", "/", "--mode", "predictions")
    done = cim("visualize", *words, "--output", tmp_path / "pictures", "--workers", 1)
    assert done.returncode == 2
    for name in REFUSED:
        assert len(lines_about(name, done.stderr)) == 1, name
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == len(READ)


TOY = [
    *("device=cpu", "prm.epochs=1", "prm.workers=0", "proposals.max_proposals=20", "train.updates=4", "train.step=[]"),
    *("train.warmup_updates=0", "train.workers=0", "train.picture_every=0"),
]


def test_the_whole_flow(odd, tmp_path):
    """From the folder to the report: what cannot be read is left out everywhere, and named each time."""
    words = ("run", "--images", odd / "photos", "--output", tmp_path / "run", "--config", "demo", "--no-refine")
    done = cim(*words, "--set", *TOY, seconds=300)
    assert done.returncode == 0, done.stderr
    for name in REFUSED:
        assert len(lines_about(name, done.stderr)) == 1, name
    labels = json.loads((tmp_path / "run" / "pseudo_labels" / "msrcnn_pseudo_label.json").read_text())
    assert {Path(image["file_name"]).name for image in labels["images"]} >= set(READ)
    assert len(list((tmp_path / "run" / "pictures" / "pseudo_labels").glob("*.jpg"))) == len(READ) + 3
    assert "<script>alert" not in (tmp_path / "run" / "report.html").read_text()

    config = tmp_path / "run" / "config.yaml"
    further: dict[str, tuple[object, ...]] = {
        "check": ("--for", "training", "--deep", "--workers", 1),
        "peaks": ("--limit", 99),
        "retrieve": ("--split", "train"),
        "refine": ("--no-evaluation", "--set", "refine.updates=1", "refine.step=[]", "refine.min_side=64"),
    }
    for command, extra in further.items():
        done = cim(command, config, *extra, seconds=300)
        assert done.returncode == 0, (command, done.stderr)


def test_tags_may_name_odd_entries(odd, tmp_path):
    """A tag file that names what is no photo is refused, each entry in a line; a named pipe among the photos that it
    does not name is no matter."""
    with open(tmp_path / "tags.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels"])
        rows.writerows([name, "disc"] for name in READ if name.isprintable() and name.isascii())
    done = cim(
        *("check", "folder_mobilenet", "--for", "training", "--workers", 1, "--set"),
        *(f"data.images={odd / 'photos' / 'disc'}", f"data.tags={tmp_path / 'tags.csv'}"),
        f"work_dir={tmp_path / 'run'}",
    )
    assert "tags and list of train" in done.stdout and f"{len(READ) - 2} photos, 1 classes" in done.stdout
    with open(tmp_path / "tags.csv", "a", encoding="utf-8") as file:
        file.write("pipe.png,disc\ndangling.png,disc\n")
    with pytest.raises(CimError, match="2 photos cannot be used"):
        open_folder(odd / "photos" / "disc", tmp_path / "tags.csv")


def without_rights() -> None:
    """In a child of root's, before it starts: modes count for it, too (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


_DROP_CAPABILITY = 24  # PR_CAPBSET_DROP of Linux


@pytest.fixture
def locked(tmp_path):
    """Photos in a folder a, of which one and a folder may not be read."""
    (tmp_path / "a" / "locked").mkdir(parents=True)
    for name in ("a/good.png", "a/secret.png", "a/locked/inner.png"):
        Image.fromarray(odd_photos.photo()).save(tmp_path / name)
    for name in ("a/secret.png", "a/locked"):
        (tmp_path / name).chmod(0)
    look = subprocess.run(["cat", tmp_path / "a/secret.png"], capture_output=True, preexec_fn=without_rights)
    if not look.returncode:
        pytest.skip("this user may read everything")
    yield tmp_path
    (tmp_path / "a" / "locked").chmod(0o755)


def test_a_folder_and_a_photo_that_may_not_be_read(locked):
    words = ("--output", locked / "store", "--no-deep-features", "--max-proposals", 5, "--workers", 1)
    done = cim("proposals", "--images", locked / "a", *words, preexec_fn=without_rights)
    assert done.returncode == 2 and "1 of 2 photos have proposals" in done.stdout
    for name in ("secret.png", "locked"):
        told = [line for line in done.stderr.splitlines() if f"/a/{name};" in line and "Permission denied" in line]
        assert len(told) == 1, done.stderr


@pytest.mark.parametrize("images", [".", "a"])
def test_a_class_that_may_not_be_read_is_not_left_out_in_silence(locked, images):
    words = ("run", "--images", locked / images, "--output", locked / "run", "--config", "demo")
    (locked / "a" / "b").mkdir()
    (locked / "a" / "good.png").rename(locked / "a" / "b" / "good.png")
    if images == ".":
        (locked / "a").chmod(0)
    done = cim(*words, preexec_fn=without_rights)
    (locked / "a").chmod(0o755)
    assert done.returncode == 2 and done.stderr.count("error: cannot list this folder of photos") == 1, done.stderr
    assert not (locked / "run").exists()
