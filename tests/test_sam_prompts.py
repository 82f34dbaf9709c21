"""Peaks of the response network that prompt Segment Anything: from a photo to points, and the stages in their order."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tiny_sam import save_tiny

import cim
from cim.cli.flow import preparation
from cim.cli.jobs.changes import refuse_changes
from cim.cli.main import main
from cim.config.build import build_dataset
from cim.config.checks import check_data
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.datasets.drawn import make_demo
from cim.prm.evidence import relative_peaks
from cim.prm.network import load_response_net, prepare_photo
from cim.prm.trained import PeakPrompter, peak_prompter, proposal_provenance
from cim.proposals.options import ProposerOptions, provenance
from cim.storage.photos import PHOTOS, PhotoTable
from cim.storage.store import Store
from cim.training.artefacts import missing_stages

HAVE_SAM = "SAM is not tested: pip install 'cim[sam]'"


def write_config(folder: Path, **proposals: object) -> Path:
    """A config of six drawn photos with a small response network; its file."""
    values = {
        "base": "demo.yaml",
        "work_dir": str(folder / "run"),
        "device": "cpu",
        "data": {
            "images": str(folder / "drawn" / "images" / "train"),
            "tags": str(folder / "drawn" / "train_tags.csv"),
            "val_images": str(folder / "drawn" / "images" / "val"),
        },
        "proposals": {"method": "sam", "sam_checkpoint": str(folder / "sam"), "prompts": "peaks", **proposals},
        "prm": {"epochs": 1, "workers": 0, "image_size": 64},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with drawn photos and a run whose response network is trained; no test here may change it."""
    folder = tmp_path_factory.mktemp("prompts")
    make_demo(folder / "drawn", train=6, val=2)
    assert main(["prm", str(write_config(folder))]) == 0
    return folder


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> Path:
    """Config of a copy of that folder, with a tiny SAM 2."""
    pytest.importorskip("transformers", reason=HAVE_SAM)
    for name in ("drawn", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    try:
        save_tiny("sam2", tmp_path / "sam", spread=3)
    except AttributeError as error:
        pytest.skip(f"SAM 2 is not tested: {error}")
    return write_config(tmp_path, min_area=0, max_area=1)


def proposals(config: Path, *more: str) -> list[str]:
    return ["proposals", str(config), "--workers", "1", *more]


# ---------------------------------------------------------------------- points


def test_points_are_the_peaks_of_the_tags_as_fractions_of_the_photo(trained: Path) -> None:
    config = load_config(trained / "job.yaml")
    dataset = build_dataset(config.data, "train")
    prompter = peak_prompter(config, dataset)
    photo = cv2.imread(str(dataset[0].path))[:, :, ::-1].copy()
    points = pickle.loads(pickle.dumps(prompter))(photo, [0, 2])
    net = load_response_net(RunPaths(config).prm_checkpoint)
    with torch.inference_mode():
        maps = net(prepare_photo(photo, 64)[None])[0]
    height, width = maps.shape[1:]
    expected = set()
    for class_id in (0, 2):
        for _, row, column in relative_peaks(maps, [class_id], 0.3).index.tolist():
            expected.add(((column + 0.5) / width, (row + 0.5) / height))
    assert {tuple(point) for point in points.tolist()} == expected and len(points) == len(expected) > 0
    assert len(prompter(photo, [0])) <= len(points)


def test_without_tags_the_classes_that_the_network_finds_or_the_likeliest(trained: Path) -> None:
    config = load_config(trained / "job.yaml")
    prompter = peak_prompter(config, build_dataset(config.data, "train"))
    photo = np.zeros((20, 30, 3), np.uint8)
    net = load_response_net(RunPaths(config).prm_checkpoint)
    with torch.inference_mode():
        scores = net.image_scores(net(prepare_photo(photo, 64)[None]))[0]
    found = (scores > 0).nonzero().flatten().tolist() or [int(scores.argmax())]
    np.testing.assert_array_equal(prompter(photo, ()), prompter(photo, found))


def test_a_grid_asks_no_network(trained: Path) -> None:
    config = load_config(trained / "job.yaml", ["proposals.prompts=grid"])
    assert peak_prompter(config, build_dataset(config.data, "train")) is None


def test_the_network_is_part_of_what_proposals_are_made_from(trained: Path, tmp_path: Path) -> None:
    config = load_config(trained / "job.yaml")
    dataset = build_dataset(config.data, "train")
    made_from = proposal_provenance(config, dataset)
    assert made_from["grid"] == 0 and made_from["peaks"]["fraction"] == 0.3 and made_from["trained_on_masks"]
    other = tmp_path / "other.pth"
    state = torch.load(RunPaths(config).prm_checkpoint, weights_only=True)
    state["model"]["head.bias"] += 1
    torch.save(state, other)
    changed = proposal_provenance(load_config(trained / "job.yaml", [f"prm.checkpoint={other}"]), dataset)
    assert changed["peaks"].pop("weights") != made_from["peaks"].pop("weights") and changed == made_from


def test_grids_of_before_are_named_as_before() -> None:
    plain = provenance(ProposerOptions(method="sam", sam_checkpoint="x"))
    assert set(plain) == {"maker", "checkpoint", "trained_on_masks", "max_proposals", "min_area", "max_area"}
    assert provenance(ProposerOptions(method="sam", sam_checkpoint="x", sam_grid=32)) == plain
    assert provenance(ProposerOptions(method="sam", sam_checkpoint="x", sam_grid=16)) == {**plain, "grid": 16}
    assert ProposerOptions(method="sam", prompts="both").grid_side == 8


# ---------------------------------------------------------------------- order


def test_the_network_comes_first_where_its_peaks_prompt(trained: Path) -> None:
    commands = [step.command[0] for step in preparation(Path("x"), True, prompted=True)]
    assert commands == ["prm", "proposals", "proposals", "labels"]
    assert [step.command[0] for step in preparation(Path("x"), True)] == ["proposals", "proposals", "prm", "labels"]
    again = load_config(trained / "job.yaml", [f"work_dir={trained / 'new'}"])
    assert missing_stages(again) == ["prm", "proposals", "first_labels"]
    assert missing_stages(load_config(trained / "job.yaml")) == ["proposals", "first_labels"]
    gaps = [finding.what for finding in check_data(again, "x", ["training"]) if finding.blocks]
    assert gaps == ["response network", "proposals of train", "first labels"]


def test_the_network_knows_its_photos_though_there_are_no_proposals_yet(trained: Path) -> None:
    config = load_config(trained / "job.yaml")
    rows = PhotoTable(RunPaths(config).prm_dir).rows()
    assert set(rows) == {str(record.image_id) for record in build_dataset(config.data, "train")}


def test_peaks_of_no_network_and_peaks_for_grouping_are_refused_in_one_line(trained: Path, capsys) -> None:
    config = str(trained / "job.yaml")
    for words, told in (
        ([config, "--set", f"work_dir={trained / 'new'}"], "no trained response network"),
        ([config, "--method", "grouping", "--no-deep-features"], "only Segment Anything takes prompts"),
        (["--images", str(trained), "--output", "x", "--method", "sam", "--prompts", "peaks"], "CONFIG instead of"),
    ):
        capsys.readouterr()
        assert main(["proposals", *words, "--workers", "1"]) == 2
        shown = capsys.readouterr().err.strip()
        assert told in shown and "\n" not in shown


# ---------------------------------------------------------------------- stage


def test_tens_of_prompts_a_photo_are_counted_and_a_killed_stage_goes_on(job: Path, capsys) -> None:
    assert main(proposals(job)) == 0
    told = capsys.readouterr().out.splitlines()
    store = Store.open(job.parent / "run" / "proposals" / "train", "regions")
    ids = [record.image_id for record in build_dataset(load_config(job).data, "train")]
    counts = [len(store.load(image_id)["prompts"]) for image_id in ids]
    mean, least, most = np.mean(counts), min(counts), max(counts)
    assert told[-1] == f"{mean:.1f} prompts a photo (at least {least}, at most {most}), all of them peaks"
    assert least > 0 and most < 200 and all(len(store.load_regions(image_id)) for image_id in ids)
    kept = {image_id: store.read(image_id) for image_id in ids}
    store.remove(ids[2])  # as a kill would have left it
    assert main(proposals(job)) == 0
    assert {image_id: store.read(image_id) for image_id in ids} == kept
    assert capsys.readouterr().out.splitlines()[-1] == told[-1]


def test_both_adds_a_coarse_grid(job: Path, capsys) -> None:
    assert main(proposals(job, "--prompts", "both", "--set", "proposals.sam_grid=2")) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    store = Store.open(job.parent / "run" / "proposals" / "train", "regions")
    assert told.endswith("2 x 2 of them a grid") and store.provenance["grid"] == 2
    counts = [len(store.load(r.image_id)["prompts"]) + 4 for r in build_dataset(load_config(job).data, "train")]
    assert told.startswith(f"{np.mean(counts):.1f} prompts a photo (at least {min(counts)},")


def test_other_weights_of_the_network_are_refused_and_the_job_says_so_before_it_begins(job: Path, capsys) -> None:
    assert main(proposals(job)) == 0
    config = load_config(job)
    refuse_changes(config, val=False, refined=False)
    checkpoint = RunPaths(config).prm_checkpoint
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["head.bias"] += 1
    torch.save(state, checkpoint)
    with pytest.raises(CimError, match=r"regions made with other settings \(peaks\)") as error:
        refuse_changes(config, val=False, refined=False)
    capsys.readouterr()
    assert main(proposals(job)) == 2
    assert f"error: {error.value}" in capsys.readouterr().err
    assert main(proposals(job, "--overwrite")) == 0


def test_a_replaced_photo_and_an_edited_tag_are_asked_about_again_alone(job: Path) -> None:
    assert main(proposals(job)) == 0
    config = load_config(job)
    data, store = build_dataset(config.data, "train"), Store.open(RunPaths(config).proposals("train"), "regions")
    before = {record.image_id: store.path(record.image_id).stat().st_mtime_ns for record in data}
    os.utime(data[0].path)  # touched, not replaced
    cv2.imwrite(str(data[1].path), cv2.imread(str(data[1].path))[::-1])
    rows = Path(config.data.tags).read_text().splitlines()
    line = next(n for n, row in enumerate(rows) if data[3].path.name in row)
    other = next(name for k, name in enumerate(data.classes) if k not in data[3].tags)
    rows[line] += f" {other}"
    Path(config.data.tags).write_text("\n".join(rows) + "\n")
    stale = [f.detail for f in check_data(config, "x", ["training"]) if f.what == "proposals of train"]
    assert stale[0].startswith("2 of 6 photos replaced or tagged anew since")
    assert main(proposals(job)) == 0
    again = {record.image_id: store.path(record.image_id).stat().st_mtime_ns for record in data}
    changed = {image_id for image_id in before if before[image_id] != again[image_id]}
    assert changed == {data[1].image_id, data[3].image_id}


def test_photos_of_another_split_are_asked_about_without_their_tags(job: Path) -> None:
    assert main(proposals(job, "--split", "val")) == 0
    store = Store.open(job.parent / "run" / "proposals" / "val", "regions")
    rows = [json.loads(line) for line in (store.root / PHOTOS).read_text().split("\n") if line]
    assert len(rows) == 2 and all(row[-1] == "" for row in rows)
    config = load_config(job)
    val = build_dataset(config.data, "val")
    prompter = PeakPrompter(RunPaths(config).prm_checkpoint, 64, 0.3)
    photo = cv2.imread(str(val[0].path))[:, :, ::-1].copy()
    np.testing.assert_allclose(store.load(val[0].image_id)["prompts"], prompter(photo, ()), rtol=1e-6)


def test_a_whole_job_whose_peaks_prompt_and_the_same_command_again(job: Path, capsys) -> None:
    folder = job.parent
    command = [
        *(
            "run",
            "--images",
            str(folder / "drawn" / "images" / "train"),
            "--tags",
            str(folder / "drawn" / "train_tags.csv"),
        ),
        *("--output", str(folder / "job"), "--config", str(job), "--device", "cpu", "--no-refine", "--set"),
        *("train.updates=2", "train.step=[1]", "train.workers=0", "train.warmup_updates=0", "train.sides=[64]"),
        *("train.picture_every=0", "infer.sides=[64]", "export.threshold=0", "proposals.max_proposals=20"),
    ]
    assert main(command) == 0
    stages = list(json.loads((folder / "job" / "stages.json").read_text()))
    assert stages[:3] == ["response network (PRM)", "proposals", "first labels"]
    assert (folder / "job" / "report.html").is_file()
    photo = next((folder / "drawn" / "images" / "train").iterdir())
    assert len(cim.load_model(folder / "job", "cpu").predict(photo, score_threshold=0)) > 0
    made = (folder / "job" / "stages.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "job" / "stages.json").stat().st_mtime_ns == made
