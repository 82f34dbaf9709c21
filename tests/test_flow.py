"""Flows of stages: order, skipping, stopping, going on; and the first errors of the two commands that people type."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import yaml
from doors import run_tool

from cim.cli import flow
from cim.cli.jobs import run as run_folder
from cim.cli.main import parse
from cim.config.build import build_dataset
from cim.config.loading import load_config, override, save_config
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.evaluation.verdicts import Verdict, save_verdict


def write_log(words) -> None:
    """Stands for a command: appends to a file and ends with a code."""
    path, text, code = words
    with open(path, "a") as file:
        file.write(text)
    sys.exit(int(code))


def sleep(words) -> None:
    Path(words[0]).write_text(str(os.getpid()))
    time.sleep(60)


def run_stages(stages, run_dir, settings):
    flow.run_stages(stages, run_dir, settings, write_log)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def stages(log, *codes):
    return [flow.stage(f"stage {i}", log, chr(97 + i), code) for i, code in enumerate(codes)]


def test_stages_run_in_order_once_and_are_timed(tmp_path, log):
    run_stages(stages(log, 0, 0, 0), tmp_path / "run", "x")
    run_stages(stages(log, 0, 0, 0), tmp_path / "run", "x")
    assert log.read_text() == "abc"
    assert list(json.loads((tmp_path / "run" / "timings.json").read_text())) == ["stage 0", "stage 1", "stage 2"]


def test_a_failure_stops_and_the_next_call_goes_on_there(tmp_path, log):
    with pytest.raises(CimError, match=r"stage 2 \(stage 1\) failed"):
        run_stages(stages(log, 0, 1, 0), tmp_path / "run", "x")
    assert log.read_text() == "ab"
    run_stages(stages(log, 0, 0, 0), tmp_path / "run", "x")
    assert log.read_text() == "abbc"


def test_other_settings_begin_anew(tmp_path, log):
    run_stages(stages(log, 0, 0), tmp_path / "run", "x")
    run_stages(stages(log, 0, 0), tmp_path / "run", "y")
    assert log.read_text() == "abab"


def test_a_stop_by_hand_is_passed_on(tmp_path, log):
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(log, 130), tmp_path / "run", "x")


def test_a_stage_is_told_to_stop_too(tmp_path, log):
    """SIGTERM to the flow alone: its stage ends with it."""
    code = (
        "import pathlib, sys; from cim.cli import flow; from test_flow import sleep\n"
        "run = pathlib.Path(sys.argv[1])\n"
        "if __name__ == '__main__': flow.run_stages([flow.stage('sleep', run / 'pid')], run / 'run', '', sleep)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=90) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("value", ["a b", "#x: y", "c=d", [1, 2], 0.5, True])
def test_overrides_survive_any_path(value):
    key, _, text = override("data.images", value).partition("=")
    assert key == "data.images" and yaml.safe_load(text) == value


def test_run_folder_without_photos_is_one_line(tmp_path, capsys):
    assert run_tool("run_folder", "--images", tmp_path / "none", "--output", tmp_path / "run") == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: no such file or folder") and "\n" not in message
    assert not (tmp_path / "run").exists()


def tagged_photos(folder: Path) -> list[object]:
    """Options of `cim run`: four drawn photos and a tags.csv."""
    small_run.draw(folder, 4)
    (folder / "tags.csv").write_text("image,labels\n" + "".join(f"{n:03d}.png,disc\n" for n in range(4)))
    return ["--images", folder / "photos", "--tags", folder / "tags.csv", "--output", folder / "run"]


@pytest.fixture
def no_stages(monkeypatch):
    """`cim run` up to its first stage."""
    monkeypatch.setattr(run_folder, "run_stages", lambda *_: None)
    monkeypatch.setattr(run_folder, "warm_up", lambda: None)


def settings_of(args: argparse.Namespace) -> Config:
    assert run_folder.main(args) == 0
    return load_config(args.output / "config.yaml")


def test_run_folder_leaves_out_a_photo_that_cannot_be_read(tmp_path, caplog, no_stages):
    """Named each time, also when nothing has to be looked at again; back in when it is mended."""
    args = arguments(*tagged_photos(tmp_path))
    bad = tmp_path / "photos" / "001.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    for _ in range(2):
        caplog.clear()
        data = settings_of(args).data
        assert caplog.text.count("left out: damaged photo") == 1 and "001.png" in caplog.text
        assert [record.path.name for record in build_dataset(data, "train")] == ["000.png", "002.png", "003.png"]
    bad.write_bytes(whole)
    data = settings_of(args).data
    assert data.leave_out is None and len(build_dataset(data, "train")) == 4


def test_run_folder_refuses_validation_photos_that_cannot_be_read(tmp_path, caplog, no_stages):
    """Numbers on fewer photos would be other numbers."""
    args = arguments(*tagged_photos(tmp_path), "--val", tmp_path / "photos", "--val-masks", tmp_path / "truth.json")
    bad = tmp_path / "photos" / "001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(CimError, match="1 of 4 validation photos cannot be read"):
        run_folder.main(args)
    assert "001.png" in caplog.text and not (tmp_path / "run").exists()


def arguments(*words: object) -> argparse.Namespace:
    return parse(["run", *map(str, words)])


def test_run_folder_writes_one_resolved_config(tmp_path):
    photos = tmp_path / "my # photos"
    small_run.draw(photos / "disc", 1)
    (photos / "disc" / "photos" / "000.png").rename(photos / "disc" / "000.png")
    args = arguments("--images", str(photos), "--output", str(tmp_path / "run"), "--budget", "quick")
    config = run_folder.resolve(args)
    assert config.data.images == str(photos) and config.train.stretch == 0.6 and config.data.val_images is None


@pytest.mark.parametrize(("extra", "refined"), [([], True), (["--budget", "quick"], False), (["--no-refine"], False)])
def test_run_folder_always_makes_pseudo_labels_and_names_the_network_it_trained(
    tmp_path, monkeypatch, capsys, extra, refined
):
    planned = []
    monkeypatch.setattr(run_folder, "run_stages", lambda stages, *_: planned.extend(stages))
    run_folder.main(arguments(*tagged_photos(tmp_path), *extra))
    titles = [step.title for step in planned]
    assert "pseudo labels above the threshold" in titles and "overlays of the pseudo labels" in titles
    assert ("Mask R-CNN" in titles) == refined
    told = capsys.readouterr().out
    assert f"--checkpoint {tmp_path / 'run' / 'train' / 'final.pth'}" in told
    assert (f"--checkpoint {tmp_path / 'run' / 'mask_rcnn' / 'final.pth'}" in told) == refined


@pytest.mark.parametrize("level", ["fine", "doubtful"])
def test_mask_rcnn_comes_first_only_where_it_was_measured_to_be_better(tmp_path, level):
    save_verdict(tmp_path / "verdicts.json", "Mask R-CNN", Verdict(level, "mAP@0.50 +0.1 (-2.0 to +2.0)"))
    first, *more = run_folder.on_new_photos(tmp_path, True).splitlines()
    assert ("mask_rcnn" if level == "fine" else "train") in first
    assert len(more) == (level == "doubtful") and all("-2.0 to +2.0" in line for line in more)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--val-masks", "t.json"], "no photos to evaluate on"),
        (["--set", "work_dir=elsewhere"], "the run folder is --output"),
        (["--device", "bogus"], "not a device"),
        (["--val", "photos", "--val-masks", "t.json"], "not COCO instance annotations"),
    ],
)
def test_run_folder_refuses_before_it_writes(tmp_path, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(CimError, match=message):
        run_folder.main(arguments("--images", "photos", "--output", "run", *extra))
    assert not (tmp_path / "run").exists()


def test_run_folder_sees_changed_tags_and_photos(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "tags.csv").write_text("image,labels\n")
    command = ["--images", str(tmp_path / "photos"), "--tags", str(tmp_path / "tags.csv"), "--output", "run"]
    args = arguments(*command)
    states = [run_folder.state_of(args), run_folder.state_of(args)]
    (tmp_path / "tags.csv").write_text("image,labels\na.jpg,dog\n")
    states.append(run_folder.state_of(args))
    (tmp_path / "photos" / "a.jpg").touch()
    states.append(run_folder.state_of(args))
    assert len(states) == 4 and len(set(states)) == 3


def test_run_folder_does_not_look_at_what_it_writes_itself(tmp_path):
    """The run folder may lie among the photos: `--images . --output runs/mine`."""
    args = arguments("--images", str(tmp_path), "--output", str(tmp_path / "runs" / "mine"))
    (tmp_path / "a.jpg").touch()
    before = run_folder.state_of(args)
    (tmp_path / "runs" / "mine" / "pictures").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "pictures" / "b.jpg").touch()
    assert run_folder.state_of(args) == before and "a.jpg" in before


def test_run_folder_paints_new_labels_over_old_pictures(tmp_path):
    """Labels made again are another file: the overlay stages must not refuse to go on."""
    path = small_run.small_config(tmp_path)
    run = tmp_path / "run"
    config = load_config(path)
    save_config(config, run / "config.yaml")
    truth = json.loads((tmp_path / "truth.json").read_text())
    for score in (0.25, 0.5):
        (run / "pseudo_labels").mkdir(exist_ok=True)
        for line in truth["annotations"]:
            line["score"] = score
        (run / "pseudo_labels" / "msrcnn_pseudo_label_0.3.json").write_text(json.dumps(truth))
        painting = run_folder.presentation(run / "config.yaml", config, masks=False)[0].command
        assert run_tool("visualize", *painting[1:]) == 0
        assert len(list((run / "pictures" / "pseudo_labels").glob("*.jpg"))) == 4
