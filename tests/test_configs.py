"""Every config loads, opens with its command, cost and score, and states the published schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cim.config.loading import CONFIG_DIR, load_config, save_config
from cim.core.errors import CimError
from cim.training.train import options_of, schedule_of

CONFIGS = sorted(p for p in CONFIG_DIR.glob("*.yaml") if not p.stem.startswith("_"))

# METHOD section 7: updates, step, images per update, lr
PUBLISHED = {
    "vgg16_voc": ("vgg16", "voc", 30_000, 20_000),
    "resnet50_voc": ("resnet50", "voc", 45_000, 30_000),
    "hrnet48_voc": ("hrnet_w48", "voc", 45_000, 30_000),
    "resnet50_voc_point": ("resnet50", "voc", 45_000, 30_000),
    "vgg16_coco2017": ("vgg16", "coco", 120_000, 100_000),
    "resnet50_coco2017": ("resnet50", "coco", 240_000, 200_000),
    "hrnet48_coco2017": ("hrnet_w48", "coco", 240_000, 200_000),
}


def test_all_are_there():
    assert set(PUBLISHED) | {"folder_mobilenet"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_opens_with_command_cost_and_score(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines[: next(i for i, t in enumerate(lines) if not t.startswith("#"))])
    assert f"bash scripts/train_CIM.sh {path.stem}" in head
    assert "# Cost: " in head and "# Score: " in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_loads_and_survives_being_saved(path: Path, tmp_path: Path):
    config = load_config(path.stem)
    assert config.name == path.stem and config.work_dir == f"runs/{path.stem}"
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedule(name: str):
    config, (backbone, dataset, updates, step) = load_config(name), PUBLISHED[name]
    assert (config.model.backbone, config.data.dataset) == (backbone, dataset)
    schedule, options = schedule_of(config.train), options_of(config.train)
    assert (schedule.updates, schedule.steps, schedule.gamma) == (updates, (step,), 0.1)
    assert (schedule.images_per_update, options.reduction, options.micro_batch) == (4, "sum", 1)
    assert (schedule.warmup_updates, schedule.warmup_factor) == (500, pytest.approx(1 / 3))
    assert options.rescale_momentum and options.clip_grad is None
    train = config.train
    assert (train.lr, train.momentum, train.weight_decay, train.bias_lr_factor) == (2.5e-4, 0.9, 5e-4, 2)
    assert train.sides == (480, 576, 688, 864, 1200) and train.flip
    assert config.loss == type(config.loss)() and config.mining == type(config.mining)()


def test_only_the_point_config_uses_points():
    assert [p.stem for p in CONFIGS if load_config(p).assign.points] == ["resnet50_voc_point"]


def test_unknown_key_offers_the_nearest(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"train": {"update": 5}}))
    with pytest.raises(CimError, match=r"unknown setting train.update.*did you mean updates\?"):
        load_config(tmp_path / "a.yaml")
