"""Whether a class is in a photo at all: from the response network into stored scores, selections and predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from doors import call_tool, run_tool
from PIL import Image
from test_prm_tools import toy_config

import cim
from cim.cli.common import run
from cim.config.build import build_dataset
from cim.config.loading import save_config
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.inference.averaging import average_scores
from cim.inference.detections import Selection, StoredScores, detect
from cim.inference.presence import presence
from cim.prm.network import load_response_net, prepare_photo
from cim.prm.train import train_prm
from cim.storage.published import open_regions
from cim.storage.store import Store
from cim.training.train import train_cim


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Config, Path]:
    """A solved response network, first labels and a CIM that asks it; the config and its file."""
    root = tmp_path_factory.mktemp("presence")
    values = toy_config(root, fit="converge", frozen_trunk=True, train_norms=False).model_dump()
    values["assign"] |= {"peak_rule": "relative", "background": "rest", "evidence": True, "mean_mask_threshold": 0.3}
    values["model"] = {"backbone": "mobilenet_v2_d16", "weights": "none", "freeze": "all", "head": "region_pool"}
    values["model"] |= {"hidden": 16, "axes": (8, 8, 8)}
    values["train"] |= {"updates": 4, "step": (), "cache_features": True, "flip": False, "sides": (64,)}
    values["infer"] |= {"presence": 0.5, "sides": (64,), "flip": False}
    config = Config(**values)
    path = root / "toy.yaml"
    save_config(config, path)
    train_prm(config)
    assert run(lambda: call_tool("pre/AGPL_label_assign", str(path), "--workers", "1")) == 0
    train_cim(config)
    assert run_tool("test", path, "--split", "val") == 0
    return config, path


def stored(config: Config, split: str = "val") -> Store:
    return Store.open(Path(config.work_dir) / "detections" / split, "detections")


def net_of(config: Config):
    return load_response_net(Path(config.work_dir) / "prm" / "final.pth")


def test_of_a_solved_network_it_is_the_mean_over_the_figure(job):
    config, _ = job
    net = net_of(config)
    photo = read_photo(build_dataset(config.data, "val")[0].path)
    with torch.no_grad():
        features = net.trunk(prepare_photo(photo, net.image_size)[None])[0].numpy()
        maps = net.head(torch.from_numpy(features[None]))[0].numpy()
    length = np.sqrt((features.astype(np.float64) ** 2).sum(0))
    places = [(y, x) for y in range(length.shape[0]) for x in range(length.shape[1]) if length[y, x] > length.mean()]
    assert 0 < len(places) < length.size
    for c, found in enumerate(presence(net, photo)):
        logit = np.mean([maps[c, y, x] for y, x in places])
        assert found == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


def test_of_any_other_it_is_the_image_score(job):
    config, _ = job
    net, photo = net_of(config), read_photo(build_dataset(config.data, "val")[0].path)
    net.score = "peaks"
    with torch.no_grad():
        scores = net.image_scores(net(prepare_photo(photo, net.image_size)[None]))[0]
    np.testing.assert_allclose(presence(net, photo), scores.sigmoid().numpy(), rtol=1e-5)


def test_a_photo_of_nothing_has_a_probability_too(job):
    net = net_of(job[0])
    for module in net.trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)  # the trunk responds alike everywhere: no figure
    found = presence(net, np.full((40, 60, 3), 128, np.uint8))
    assert found.shape == (2,) and ((found > 0) & (found < 1)).all()


def test_it_is_kept_beside_the_scores_and_multiplies_them(job, tmp_path):
    config, _ = job
    store, net = stored(config), net_of(config)
    for record in build_dataset(config.data, "val"):
        arrays = store.load(record.image_id)
        np.testing.assert_allclose(arrays["presence"], presence(net, read_photo(record.path)), rtol=1e-5)
        for power in (0.5, 2.0):
            wanted = arrays["scores"] * arrays["presence"] ** power
            np.testing.assert_allclose(StoredScores(store, presence=power).load(record.image_id), wanted, rtol=1e-5)
        assert np.array_equal(StoredScores(store).load(record.image_id), arrays["scores"])


def test_a_damaged_one_is_told(job, tmp_path):
    store = Store.create(tmp_path / "d", "detections", {})
    for number, wrong in enumerate((np.ones(3, np.float32), np.ones((1, 2), np.float32), np.ones(2, np.int64))):
        store.save(number, scores=np.ones((4, 2), np.float32), mil=np.ones((4, 2), np.float32), presence=wrong)
        with pytest.raises(CimError, match="damaged detections"):
            StoredScores(store, presence=0.5).load(number)
        assert StoredScores(store).load(number).shape == (4, 2)


def test_selections_heed_it_but_for_other_branches(job, tmp_path):
    config, _ = job
    store, dataset = stored(config), build_dataset(config.data, "val")
    source = open_regions(Path(config.data.val_proposals))
    found = {}
    for name, options in {
        "plain": {},
        "presence": {"presence": 0.5},
        "mil": {"branch": "mil"},
        "both": {"branch": "mil", "presence": 0.5},
        "known": {"known": True, "presence": 0.5},
    }.items():
        found[name] = detect(dataset, source, store, tmp_path / f"{name}.json", Selection(), **options)
    texts = {name: path.read_bytes() for name, path in found.items()}
    assert texts["plain"] != texts["presence"] and texts["mil"] == texts["both"]
    assert texts["known"] == texts["plain"]  # nothing is known here, but asked for
    assert (Path(config.work_dir) / "detections" / "val" / "results.json").read_bytes() == texts["presence"]
    before = found["plain"].stat().st_mtime_ns
    detect(dataset, source, store, found["plain"], Selection())
    assert found["plain"].stat().st_mtime_ns == before  # as it is
    detect(dataset, source, store, found["plain"], Selection(), presence=0.5)
    assert found["plain"].read_bytes() == texts["presence"]


def test_photos_whose_tags_are_known_have_none(job):
    config, path = job
    assert run_tool("test", path, "--split", "train") == 0
    store = stored(config, "train")
    for record in build_dataset(config.data, "train"):
        arrays = store.load(record.image_id)
        assert set(arrays) == {"scores", "mil"}
        assert np.array_equal(StoredScores(store, presence=0.5).load(record.image_id), arrays["scores"])


def test_scores_of_another_response_network_are_refused_and_without_any_regions_count_alone(
    job, tmp_path, capsys, caplog
):
    config, path = job
    there = Path(config.work_dir) / "prm" / "final.pth"
    kept = shutil.copy(there, tmp_path / "kept.pth")
    try:
        state = torch.load(there, weights_only=True)
        state["model"]["head.bias"] += 1
        torch.save(state, there)
        assert run_tool("test", path, "--split", "val") == 2
        assert "presence" in capsys.readouterr().err
        assert run_tool("test", path, "--split", "val", "--output", tmp_path / "off", "--set", "infer.presence=0") == 0
        there.unlink()
        assert run_tool("test", path, "--split", "val", "--output", tmp_path / "none") == 0
        assert "no response network" in caplog.text
        plain = [(tmp_path / name / "results.json").read_bytes() for name in ("off", "none")]
        assert plain[0] == plain[1] != (Path(config.work_dir) / "detections" / "val" / "results.json").read_bytes()
    finally:
        shutil.copy(kept, there)


def test_means_of_runs_keep_it_where_all_have_it(job, tmp_path):
    config, _ = job
    store, dataset = stored(config), build_dataset(config.data, "val")
    record = dataset[0]
    other = Store.create(tmp_path / "other", "detections", {})
    arrays = store.load(record.image_id)
    other.save(record.image_id, **{name: array / 2 for name, array in arrays.items()})
    without = Store.create(tmp_path / "without", "detections", {})
    without.save(record.image_id, scores=arrays["scores"], mil=arrays["mil"])
    for name, runs, factor in (("mean", [store, other], 0.75), ("some", [store, without], None)):
        output = Store.create(tmp_path / name, "detections", {})
        average_scores(runs, output, [record])
        found = output.load(record.image_id)
        assert ("presence" in found) == (factor is not None)
        if factor:
            np.testing.assert_allclose(found["presence"], factor * arrays["presence"], rtol=1e-6)


def test_predictions_are_those_of_the_run_wherever_it_lies(job, tmp_path, caplog):
    config, _ = job
    record = build_dataset(config.data, "val")[0]
    regions = open_regions(Path(config.data.val_proposals)).load(record.image_id)
    results = json.loads((Path(config.work_dir) / "detections" / "val" / "results.json").read_text())
    wanted = sorted((r["score"] for r in results if r["image_id"] == record.image_id), reverse=True)
    moved = tmp_path / "moved"
    shutil.copytree(config.work_dir, moved)
    state = torch.load(moved / "train" / "final.pth", weights_only=True)
    state["meta"]["config"]["work_dir"] = str(tmp_path / "gone")
    torch.save(state, moved / "train" / "final.pth")
    arguments = {"regions": regions, "score_threshold": config.infer.score_threshold}
    for folder in (Path(config.work_dir), moved):
        found = cim.load_model(folder, device="cpu").predict(Image.open(record.path), **arguments)
        assert found.scores.tolist() == pytest.approx(wanted, rel=1e-4)
    assert "no response network" not in caplog.text
    tagged = cim.load_model(moved, device="cpu").predict(record.path, tags=["box", "disc"], **arguments)
    (moved / "prm" / "final.pth").unlink()
    alone = cim.load_model(moved, device="cpu")
    assert "no response network" in caplog.text
    plain = alone.predict(record.path, **arguments)
    assert plain.scores.tolist() == pytest.approx(
        tagged.scores.tolist(), rel=1e-5
    )  # where tags are told, it says nothing
    assert plain.scores.max() > found.scores.max()
