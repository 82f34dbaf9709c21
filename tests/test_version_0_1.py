"""What version 0.1 left on disk still works: checkpoints, stores, run folders, published pickles, configs.

fixtures/run_0_1.tar.xz.b64 holds a whole tiny run of version 0.1 (4 training photos, 2 to evaluate on, all of its
artefacts but Mask R-CNN's, which take megabytes), as that version wrote it; configs_0_1.json what its configs resolved
to; networks_0_1.json digests of the names and shapes of the tensors in its checkpoints, for every network it had. They
were made, and are never to be made again with a later version, by

    git worktree add /tmp/cim01 74ebedd
    OMP_NUM_THREADS=1 python tests/fixtures/make_run_0_1.py /tmp/cim01 tests/fixtures

and that script says how. The run itself is ``tools/run_folder.py --images photos/train --tags tags.csv --val photos/val
--val-masks val.json --output run --config old.yaml --device cpu --no-refine``; its paths are relative to the folder
that it is unpacked to. What is asked of it here goes through the published tools.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from doors import run_tool

from cim.config.build import build_model
from cim.config.loading import load_config
from cim.config.schema import Config
from cim.models.mask_rcnn import build_mask_rcnn
from cim.prm.network import build_response_net

FIXTURES = Path(__file__).resolve().parent / "fixtures"
CONFIG = "run/config.yaml"
ONE = ("--workers", 1)


@pytest.fixture(scope="module")
def archive() -> bytes:
    return lzma.decompress(base64.b64decode((FIXTURES / "run_0_1.tar.xz.b64").read_text()))


@pytest.fixture(autouse=True)
def old(archive, tmp_path, monkeypatch) -> Path:
    """The folder with the run in it, which is also the current one."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*.json"):
        if "RUN_ROOT" in (text := path.read_text()):
            path.write_text(text.replace("RUN_ROOT", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(*folders: str) -> dict[str, bytes]:
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    assert files
    return {str(path): path.read_bytes() for path in files}


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


def remove(*patterns: str) -> None:
    """Files that the tools are to make again."""
    for pattern in patterns:
        found = list(Path().glob(pattern))
        assert found, pattern
        for path in found:
            path.unlink()


def arrays(folder: str) -> dict[str, np.ndarray]:
    """All arrays of a store, by file and name."""
    return {
        f"{path.name} {name}": values for path in Path(folder).glob("*.npz") for name, values in np.load(path).items()
    }


def assert_same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)


def assert_same_results(found: list[dict], expected: list[dict], atol: float = 0) -> None:
    """The same instances, in any order."""

    def keyed(results: list[dict]) -> dict[tuple, dict]:
        keys = [(r["image_id"], r["category_id"], r["segmentation"]["counts"]) for r in results]
        assert len(set(keys)) == len(keys)
        return dict(zip(keys, results, strict=True))

    found, expected = keyed(found), keyed(expected)
    assert found.keys() == expected.keys() and len(expected)
    for key, result in expected.items():
        assert found[key]["score"] == pytest.approx(result["score"], abs=atol), key
        assert found[key]["bbox"] == result["bbox"], key


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every number and name in nested lists and mappings, by where it stands."""
    if not isinstance(value, dict | list):
        return {path: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: leaf for key, one in inner for place, leaf in leaves(one, f"{path}/{key}").items()}


# ---------------------------------------------------------------------- settings


def flat(values: dict, prefix: str = "") -> dict:
    pairs = {}
    for key, value in values.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return pairs


CHANGED = {
    # trained as long as rules say (train.epochs, refine.epochs)
    "folder_mobilenet": {"train.updates", "train.step", "refine.updates", "refine.step"},
    "demo": {"prm.workers"},  # how pictures are read, not what comes of it
}


def test_configs_resolve_as_they_did(tmp_path):
    """Every setting of version 0.1 is there with its value; new ones may stand beside them."""
    expected = read(FIXTURES / "configs_0_1.json")
    defaults = expected.pop("defaults")
    assert len(expected) == 11
    (tmp_path / "empty.yaml").write_text("name: cim\n")
    for name, own in {**expected, str(tmp_path / "empty.yaml"): {}}.items():
        found = flat(load_config(name).model_dump(mode="json"))
        wanted = {key: value for key, value in (defaults | own).items() if key not in CHANGED.get(name, ())}
        assert {key: found.get(key, "no such key") for key in wanted} == wanted, name


def test_resolved_config_of_a_run_names_every_setting():
    """config.yaml of a run spells all settings out: each of them is still taken."""
    written = flat(load_config(CONFIG).model_dump(mode="json"))
    assert read(FIXTURES / "configs_0_1.json")["defaults"].keys() <= written.keys()
    assert written["work_dir"] == "run" and written["train.updates"] == 30 and written["model.axes"] == [4]


# ---------------------------------------------------------------------- the run as a whole


def test_check_data_accepts_the_run(capsys):
    assert run_tool("check_data", CONFIG, "--deep", *ONE) == 0
    shown = capsys.readouterr().out
    assert all(f"{purpose}: ready" in shown for purpose in ("training", "evaluation", "export"))
    remove("run/first_labels/*.npz")
    assert run_tool("check_data", CONFIG, "--deep", *ONE) == 2


def test_the_same_command_finds_the_run_done():
    """run_folder may look at every stage again, but makes nothing again that took long."""
    before = contents("run/train", "run/prm", "run/proposals", "run/peaks", "run/first_labels", "run/features")
    before |= {name: data for name, data in contents("run/detections").items() if name.endswith(".npz")}
    command = ["--images", "photos/train", "--tags", "tags.csv", "--val", "photos/val", "--val-masks", "val.json"]
    command += ["--output", "run", "--config", "old.yaml", "--device", "cpu", "--no-refine"]
    assert run_tool("run_folder", *command) == 0
    after = contents("run")
    assert {name: after.get(name) for name in before if after.get(name) != before[name]} == {}


def test_report_and_pictures_of_the_run():
    assert run_tool("report", "run") == 0
    text = Path("run/report.html").read_text()
    for name, row in read("run/metrics.json")["rows"].items():
        assert name in text and f"{row['mAP@0.50']:.1f}" in text
    assert "Learning rate" in text and "data:image" in text
    assert run_tool("visualize", CONFIG, "--max-images", 1, "--output", "painted", *ONE) == 0
    assert any(Path("painted").iterdir())


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(("tool", "folder"), [("train", "run/train"), ("train_prm", "run/prm")])
def test_a_finished_training_is_finished(tool, folder, capsys):
    before = contents(folder)
    assert run_tool(tool, CONFIG) == 0
    assert f"{folder}/final.pth" in capsys.readouterr().out
    assert contents(folder) == before
    section = "train" if tool == "train" else "prm"
    assert run_tool(tool, CONFIG, "--set", f"{section}.seed=1") == 2  # what it was made with is compared
    assert "other settings (seed)" in capsys.readouterr().err


@pytest.mark.parametrize(("tool", "folder", "stopped"), [("train", "run/train", 22), ("train_prm", "run/prm", 10)])
def test_a_stopped_training_goes_on_to_the_same_network(tool, folder, stopped):
    """From the checkpoint that SIGTERM left, with the optimiser's state in it."""
    final, log = Path(folder, "final.pth"), Path(folder, "log.jsonl")
    expected, lines = torch.load(final, weights_only=True), log.read_text().splitlines()
    assert [path.name for path in Path(folder, "checkpoints").iterdir()] == [f"update_{stopped:08d}.pth"]
    final.unlink()
    features = contents("run/features")
    assert run_tool(tool, CONFIG) == 0
    found = torch.load(final, weights_only=True)
    assert found["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(
            found["model"][name], tensor, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    kept = [line for line in lines if json.loads(line)["update"] <= stopped]
    again = log.read_text().splitlines()
    assert again[: len(kept)] == kept and len(again) == len(lines) > len(kept)  # these updates were not made again
    made = contents("run/features")
    assert {name: made[name] for name in features} == features
    assert len(made) == len(features) + (3 if tool == "train" else 0)  # maps that the store lacked, and their table


@pytest.mark.parametrize("folder", ["run", "fused"])
def test_networks_score_as_they_did(folder):
    """region_pool on features of the run's own trunk, and the published head mask_fuse."""
    config = f"{folder}/train/config.yaml"
    scores, results = arrays(f"{folder}/detections/val"), read(f"{folder}/detections/val/results.json")
    assert run_tool("test", config, "--overwrite", *ONE) == 0
    assert_same_arrays(arrays(f"{folder}/detections/val"), scores, 1e-5)
    assert_same_results(read(f"{folder}/detections/val/results.json"), results, 1e-5)
    assert np.ptp([values for name, values in scores.items() if name.endswith("scores")]) > 0.05


@pytest.mark.parametrize("checkpoint", ["run", "run/train/final.pth", "fused"])
def test_predict_finds_what_the_run_found(checkpoint):
    """Proposals, network and selection of a checkpoint alone, against the detections of the run."""
    assert (
        run_tool("predict", "photos/val", "--checkpoint", checkpoint, "--device", "cpu", "--score-threshold", 0.01) == 0
    )
    content = read("predictions/predictions.json")
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    number = {image["file_name"]: image["id"] for image in read("val.json")["images"]}
    found = [{**line, "image_id": number[names[line["image_id"]]]} for line in content["annotations"]]
    expected = read(f"{Path(checkpoint).parts[0]}/detections/val/results.json")
    assert_same_results(found, [result for result in expected if result["score"] > 0.01], 1e-5)
    assert [category["name"] for category in content["categories"]] == ["ball", "box"]
    assert len(list(Path("predictions/overlays").iterdir())) == 2


def test_predict_takes_the_checkpoint_of_a_stopped_run():
    checkpoint = "run/train/checkpoints/update_00000022.pth"
    assert run_tool("predict", "photos/val/e.png", "--checkpoint", checkpoint, "--device", "cpu", "--no-overlays") == 0


def built(kind: str, trunk: str) -> torch.nn.Module:
    """A network as big as the configs' own, of 20 classes; on the meta device its tensors take no memory."""
    if kind == "prm":
        return build_response_net(trunk, 20, weights="none")
    if kind == "mask_rcnn":
        return build_mask_rcnn(trunk, 20, "none", 64, 96)
    model = {"backbone": trunk, "weights": "none", "head": kind}
    if kind == "region_pool":
        model["axes"] = [96] if trunk == "tiny" else [96, 64, 32]
    return build_model(Config(model=model), 20)


def test_tensors_of_all_networks_have_their_names():
    """In their order too: an optimiser's state goes by it."""
    found, expected = {}, read(FIXTURES / "networks_0_1.json")
    with torch.device("meta"):
        for name in expected:
            tensors = built(*name.split()).state_dict().items()
            lines = "\n".join(f"{key} {list(tensor.shape)}" for key, tensor in tensors)
            found[name] = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert found == expected and len(found) == 11


def test_predict_takes_a_mask_rcnn_of_that_layout():
    """Random weights in a file with the keys that version 0.1 wrote."""
    state = torch.load("run/train/final.pth", weights_only=True)
    config = state["meta"]["config"]
    config["refine"] |= {"backbone": "mobilenet_fpn", "min_side": 64, "max_side": 96}
    meta = {"kind": "mask_rcnn", "classes": ["ball", "box"], "config": config, "settings": {}, "signature": {}}
    torch.manual_seed(0)
    network = build_mask_rcnn("mobilenet_fpn", 2, "none", 64, 96)
    Path("mask_rcnn").mkdir()
    torch.save({"format": state["format"], "meta": meta, "model": network.state_dict()}, "mask_rcnn/final.pth")
    options = ("--device", "cpu", "--score-threshold", 0, "--no-overlays")
    assert run_tool("predict", "photos/val/e.png", "--checkpoint", "mask_rcnn", *options) == 0
    content = read("predictions/predictions.json")
    assert content["annotations"] and [category["name"] for category in content["categories"]] == ["ball", "box"]


# ---------------------------------------------------------------------- stores


def test_stored_scores_are_enough():
    """Detections of the run's two branches out of its stored scores, which nothing computes again."""
    scores = {name: data for name, data in contents("run/detections").items() if name.endswith(".npz")}
    results = {split: read(f"run/detections/{split}/results.json") for split in ("train", "val")}
    remove("run/detections/*/results*.json")
    for split, expected in results.items():
        assert run_tool("test", CONFIG, "--split", split, *ONE) == 0
        assert_same_results(read(f"run/detections/{split}/results.json"), expected)
    after = contents("run/detections")
    assert {name: after[name] for name in scores} == scores


def test_scores_of_other_weights_are_not_mixed(capsys):
    shutil.copy("run/train/checkpoints/update_00000022.pth", "run/train/final.pth")
    assert run_tool("test", CONFIG, *ONE) == 2
    assert "other settings (checkpoint)" in capsys.readouterr().err


def test_numbers_are_the_same():
    """Each row is made again beside those that the run left behind in both files; rows may gain numbers."""
    metrics, diagnosis = read("run/metrics.json")["rows"], read("run/diagnosis.json")["rows"]
    instances = Path("run/prm_instances/val/results.json")
    assert run_tool("prm_instances", CONFIG, "--output", "prm.json") == 0
    assert_same_results(read("prm.json"), read(instances), 1e-5)
    rows = {
        "CIM": ["--oracle"],
        "WSDDN": ["--branch", "mil"],
        "PRM": ["--results", instances],
    }
    for name, options in rows.items():
        for path in ("run/metrics.json", "run/diagnosis.json"):
            content = read(path)
            del content["rows"][name]
            Path(path).write_text(json.dumps(content))
        assert run_tool("evaluation", CONFIG, "--name", name, *options) == 0
        for path, expected in (("run/metrics.json", metrics), ("run/diagnosis.json", diagnosis)):
            found = read(path)["rows"]
            assert found.keys() == expected.keys()
            for row, values in expected.items():
                now, then = leaves(found[row]), leaves(values)
                assert {key: now[key] for key in then} == pytest.approx(then, abs=1e-6), (path, row)


def test_proposals_are_kept_and_made_alike():
    before, manifests = arrays("run/proposals/val"), read("run/proposals/val/manifest.json")
    kept = contents("run/proposals/train")
    remove("run/proposals/val/4.npz")
    for split in ("train", "val"):
        assert run_tool("pre/generate_proposals", CONFIG, "--split", split, *ONE) == 0
    assert_same_arrays(arrays("run/proposals/val"), before, 1e-5)
    assert contents("run/proposals/train") == kept and read("run/proposals/val/manifest.json") == manifests


def exported(tool: str, *options: object) -> dict:
    """First labels of the run as the published pickle, which every version writes the same way."""
    assert run_tool(f"pre/{tool}", CONFIG, *ONE, *options, "--export", "again.pkl") == 0
    return pickle.loads(Path("again.pkl").read_bytes())


def assert_same_labels(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and found["indexes"] == expected["indexes"]
    for one, other in zip(found["mat"], expected["mat"], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_first_labels_are_done_and_made_alike():
    """Stored labels (array ``klass``) are read; missing ones come from the stored peaks, missing peaks from the net."""
    expected = pickle.loads(Path("labels.pkl").read_bytes())
    assert any(mat.any() for mat in expected["mat"])
    stored = contents("run/first_labels", "run/peaks")
    assert "klass" in np.load("run/first_labels/a.png.npz")
    assert_same_labels(exported("AGPL_label_assign"), expected)
    assert contents("run/first_labels", "run/peaks") == stored
    remove("run/first_labels/[ab].png.npz")  # some new ones beside some old ones
    assert_same_labels(exported("AGPL_label_assign"), expected)
    assert {name: data for name, data in contents("run/peaks").items() if stored[name] != data} == {}
    remove("run/first_labels/*.npz")
    assert_same_labels(exported("AGPL_label_assign"), expected)
    peaks = arrays("run/peaks/train")
    remove("run/first_labels/*.npz", "run/peaks/train/*.npz")
    assert_same_labels(exported("AGPL_label_assign"), expected)
    assert_same_arrays(arrays("run/peaks/train"), peaks, 1e-4)


def test_stored_labels_and_not_new_ones_are_used():
    """Another label in a stored file shows: nothing is quietly made again."""
    path = Path("run/first_labels/a.png.npz")
    values = dict(np.load(path))
    values["klass"] = np.where(values["klass"] == 1, 2, values["klass"])
    np.savez_compressed(path, **values)
    found, expected = exported("AGPL_label_assign")["mat"], pickle.loads(Path("labels.pkl").read_bytes())["mat"]
    changed = [not np.array_equal(one, other) for one, other in zip(found, expected, strict=True)]
    assert changed == [True, False, False, False]


def test_labels_from_points():
    options = ("--points", "points", "--output", "run/point_labels")
    before = contents("run/point_labels")
    stored = exported("point_level_label_assign", *options)
    assert contents("run/point_labels") == before
    assert_same_labels(exported("point_level_label_assign", *options, "--overwrite"), stored)


def test_pseudo_labels_are_the_same():
    names = [f"run/pseudo_labels/msrcnn_pseudo_label{end}.json" for end in ("", "_0.05")]
    before = {name: read(name) for name in names}
    assert run_tool("change_mask_thr", CONFIG) == 0  # of the file that version 0.1 wrote
    assert read(names[1])["annotations"] == before[names[1]]["annotations"]
    remove("run/pseudo_labels/*.json")
    assert run_tool("generate_mask_for_MaskRCNN", CONFIG, *ONE) == 0
    assert run_tool("change_mask_thr", CONFIG) == 0
    for name, expected in before.items():
        found = read(name)
        assert expected["annotations"]
        assert {part: found[part] for part in ("images", "categories")} == {
            part: expected[part] for part in ("images", "categories")
        }
        assert_same_results(found["annotations"], expected["annotations"])
        assert leaves(expected["info"]).items() <= leaves(found["info"]).items()


def test_published_pickles_of_version_0_1():
    """Written again out of its region store; imported to the same grids."""
    grids = arrays("voc/grids")
    published = {name: pickle.loads(data) for name, data in contents("voc").items() if name.endswith(".pkl")}
    assert len(published) == 5
    voc = ("--dataset", "voc", "--data-root", "voc", *ONE)
    cob = ("--from", "pickle", "--input", "voc/cob/voc_2012_trainaug.pkl", "--output", "again")
    assert run_tool("pre/import_proposals", *voc, *cob) == 0
    assert_same_arrays(arrays("again"), grids)
    remove("voc/cob/*.pkl", "voc/cob_iou/*/*.pkl", "voc/cob_asy_iou/*/*.pkl")
    for tool in ("generate_7_7_voc", "create_cob_iou", "create_cob_asy_iou"):
        assert run_tool(f"pre/{tool}", *voc, "--regions", "voc/regions") == 0
    for name, expected in published.items():
        found = pickle.loads(Path(name).read_bytes())
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        else:
            assert found.keys() == expected.keys() and found["indexes"] == expected["indexes"]
            for key in ("masks", "boxes", "scores"):
                for one, other in zip(found[key], expected[key], strict=True):
                    assert one.dtype == other.dtype
                    np.testing.assert_array_equal(one, other)
