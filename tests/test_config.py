"""Configs: base chains, overrides, and errors that say what was meant."""

from __future__ import annotations

import pytest

from cim.config import loading
from cim.config.loading import CONFIG_DIR, find_config, load_config, save_config
from cim.config.schema import Config
from cim.core.errors import CimError


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_base_may_be_one_of_the_programs_own(write):
    path = write("mine.yaml", "base: folder_mobilenet.yaml\nname: mine\n")
    assert load_config(path).model.head == "region_pool" and load_config(path).name == "mine"


def test_base_chain_merges_sections(write):
    write("base.yaml", "name: base\ntrain: {lr: 0.1, updates: 7, step: [3, 5]}\nmining: {method: mist}\n")
    write("sub/middle.yaml", "base: ../base.yaml\ntrain: {lr: 0.2}\n")
    path = write("sub/top.yaml", "base: middle.yaml\nname: top\ntrain: {step: [4]}\n")
    config = load_config(path)
    assert (config.train.lr, config.train.updates, config.train.step) == (0.2, 7, (4,))
    assert config.mining.method == "mist" and config.name == "top"
    assert config.infer == Config().infer  # untouched sections keep their defaults


def test_names_follow_the_file(write):
    config = load_config(write("cats.yaml", ""))
    assert config.name == "cats" and config.work_dir == "runs/cats"
    assert load_config(write("b.yaml", "name: x\n")).work_dir == "runs/x"
    assert load_config(write("c.yaml", "name: x\nwork_dir: y\n")).work_dir == "y"
    write("base.yaml", "name: base\n")
    assert load_config(write("d.yaml", "base: base.yaml\n")).name == "base"


def test_overrides(write):
    path = write("c.yaml", "train: {lr: 0.1}\n")
    overrides = ["train.lr=5e-4", "train.sides=[100, 200]", "infer.max_proposals=null", "data.root=a=b", "name=n"]
    config = load_config(path, [*overrides, "mining.anti_noise=false", "export.mask_nms=0.5"])
    assert config.train.lr == 5e-4 and config.train.sides == (100, 200) and config.infer.max_proposals is None
    assert config.data.root == "a=b" and config.name == "n" and config.work_dir == "runs/n"
    assert config.mining.anti_noise is False and config.export.mask_nms == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "override is not KEY=VALUE"),
        ("=3", "override is not KEY=VALUE"),
        ("name.x=3", "override goes through a value that is not a section"),
        ("train.lr=fast", "bad value for train.lr"),
        ("train.lr=[1", "override is not yaml"),
        ("train.learning_rate=1", "unknown setting train.learning_rate"),
        ("trian.lr=1", "unknown setting trian.*did you mean train"),
        ("train=3", "bad value for train"),
        ("train.sides=[]", "bad value for train.sides"),
        ("train.updates=-5", "bad value for train.updates"),
        ("refine.checkpoint_every=0", "bad value for refine.checkpoint_every"),
        ("prm.workers=-1", "bad value for prm.workers"),
        ("assign.peak_threshold=.nan", "bad value for assign.peak_threshold"),
    ],
)
def test_bad_overrides(write, override, message):
    with pytest.raises(CimError, match=message) as caught:
        load_config(write("c.yaml", "name: c\n"), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", r"unknown setting train\.lrr: .*c\.yaml; to fix: did you mean lr\?"),
        ("mining: {seed_fracton: 1}", r"did you mean seed_fraction\?"),
        ("trainn: {}", r"unknown setting trainn: .*did you mean train\?"),
        ("zzzzzz: 1", "unknown setting zzzzzz"),
        ("train: {updates: many}", r"bad value for train\.updates.*found 'many'"),
        ("train: {updates: 1.5}", r"bad value for train\.updates"),
        ("train: {step: 3}", r"bad value for train\.step"),
        ("train: {sides: [1, x]}", r"bad value for train\.sides\.1"),
        ("mining: {method: cimm}", r"bad value for mining\.method.*'cim'"),
        ("model: {refinements: 0}", r"bad value for model\.refinements"),
        ("train:", "bad value for train"),
        ("- 1", "config is not a mapping"),
        ("train: {lr: [", "not a yaml file"),
        ("base: nowhere.yaml", r"no such base config: .*nowhere\.yaml; found named by .*c\.yaml"),
        ("base: c.yaml", "in a circle"),
        ("base: [a]", "base is not a file name"),
        ("base: .", "a folder where a config should be"),
        ("1: 2", "a key that is no name"),
    ],
)
def test_bad_configs(write, text, message):
    with pytest.raises(CimError, match=message) as caught:
        load_config(write("c.yaml", text))
    assert "\n" not in str(caught.value) and "c.yaml" in str(caught.value)


def test_undecodable_file(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(CimError, match="not a yaml file"):
        load_config(tmp_path / "c.yaml")


def test_configs_by_name(monkeypatch, write, tmp_path):
    write("configs/voc.yaml", "name: v\n")
    write("configs/_base.yaml", "name: b\n")
    monkeypatch.setattr(loading, "CONFIG_DIR", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert find_config("voc") == find_config("voc.yaml") == tmp_path / "configs" / "voc.yaml"
    with pytest.raises(CimError, match=r"no such config: vok; expected a yaml file or one of voc(;|$)"):
        load_config("vok")


def test_saved_is_loaded(write, tmp_path):
    config = load_config(write("c.yaml", "train: {sides: [1, 2]}\ninfer: {max_proposals: 7}\n"))
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_the_repository_load(path):
    assert isinstance(load_config(path), Config)
