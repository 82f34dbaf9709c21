"""What CIM training computes once: the maps of a frozen trunk, or what the light head makes of them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cim.config.build import trunk_file
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, TrainConfig
from cim.core.errors import CimError
from cim.core.files import fingerprint
from cim.datasets.base import Dataset
from cim.engine.checkpoints import FRESH_RUN
from cim.engine.fit import distributed
from cim.models.backbones import RANDOM
from cim.models.cim_net import CIMNet
from cim.models.region_pool import RegionPool
from cim.storage.photos import PhotoTable
from cim.storage.published import RegionSource, lineage
from cim.training.feature_cache import FeatureCache
from cim.training.pooled_cache import PooledCache
from cim.training.scene_source import FIX, Mixed, Scenes, SceneSource
from cim.training.source import CIMSource

logger = logging.getLogger(__name__)


def pools(config: Config) -> bool:
    """Whether what the light head reads can be kept: a frozen trunk without flips, photos at one size."""
    train = config.train
    light = config.model.head == "region_pool" and config.model.freeze == "all"
    return train.cache_features and light and not train.flip and len(train.sides) == 1


def cached_pooled(config: Config, model: CIMNet, source: CIMSource, device: torch.device) -> PooledCache:
    """What the calibrated head makes of every photo and its proposals, computed now where it is missing.

    All are computed anew when a photo was replaced that the head was calibrated on: the others are measured along
    axes that this changes.

    Raises:
        CimError: the folder holds those of another trunk, of other proposals or other photos; or such a photo was
            replaced in the middle of a training.
    """
    paths, made_from = RunPaths(config), pooled_from(config, source.regions, source.dataset)
    if distributed.is_main():
        measured = [] if config.train.start else [source.dataset[index] for index in calibrated_on(len(source))]
        replaced = PhotoTable(paths.features).replaced(measured)
        if replaced and not paths.checkpoint.is_file() and any((paths.train_dir / "checkpoints").glob("*.pth")):
            found = f"{len(replaced)} replaced, e.g. {replaced[0].path.name}"
            message = "other photos than when this training began"
            raise CimError(message, path=paths.train_dir, found=found, fix=FRESH_RUN)
        PooledCache.create(paths.features, made_from, config.data.packed, overwrite=bool(replaced))
    distributed.wait()  # nobody opens before the old ones are gone
    cache = PooledCache.create(paths.features, made_from)
    if distributed.is_main():
        model.to(device).eval()
        cache.fill(model, replace(source, max_proposals=None), config.train.sides[0], device)
    distributed.wait()
    return cache


def pooled_from(config: Config, regions: RegionSource, dataset: Dataset) -> dict[str, Any]:
    """What :func:`cached_pooled` depends on."""
    return {
        "trunk": config.model.backbone,
        "weights": trunk_weights(config),
        "axes": list(config.model.axes),
        "side": config.train.sides[0],
        "proposals": lineage(regions.provenance),
        "photos": dataset.tags_digest,
    }


def trunk_weights(config: Config) -> str:
    """The trunk's weights as a name that changes with them."""
    weights = config.model.weights
    return str(weights if weights in (None, RANDOM) else fingerprint(trunk_file(config)))


def cached_features(config: Config, model: CIMNet, dataset: Dataset, device: torch.device) -> FeatureCache | None:
    """The maps of the frozen trunk for all images, computed now where they are missing; None when not asked for.

    Raises:
        CimError: the trunk is trained or photos are flipped; the folder holds another trunk's maps.
    """
    train = config.train
    if not train.cache_features:
        return None
    if train.flip or any(p.requires_grad for p in model.backbone.parameters()):
        raise CimError(
            "features cannot be kept", expected="a frozen trunk and no flips", fix="--set train.cache_features=false"
        )
    trunk = f"{config.model.backbone} ({' + '.join(map(str, model.backbone.parts))} channels)"
    cache = FeatureCache.create(RunPaths(config).features, trunk, trunk_weights(config), config.data.packed)
    if distributed.is_main():
        cache.fill(model.to(device).eval().features, dataset, train.sides, device)
    distributed.wait()
    return cache


@torch.no_grad()
def calibrate(model: CIMNet, source: CIMSource, device: torch.device) -> None:
    """Let the region-pooling head measure the trunk's features on images spread over the data set."""
    if not isinstance(model.roi_head, RegionPool):
        return
    model.to(device).eval()
    samples = (source.sample_at(index, min(source.sides), False) for index in calibrated_on(len(source)))
    moved = (sample.to(device) for sample in samples if sample is not None)
    model.roi_head.calibrate((model.features_of(sample), sample) for sample in moved)


def calibrated_on(images: int, count: int = 64) -> list[int]:
    """Numbers of the images that :func:`calibrate` looks at."""
    return [int(index) for index in np.linspace(0, images - 1, min(count, images))]


def with_scenes(config: Config, model: CIMNet, source: CIMSource, device: torch.device) -> Mixed:
    """The photos with ``train.scenes`` scenes to every ``train.images_per_update`` of them, what the head reads ready.

    Raises:
        CimError: no scenes; they are of another number of classes; features of others are in the way.
    """
    paths, train = RunPaths(config), config.train
    scenes = Scenes.open(paths.scenes)
    classes = scenes.store.provenance.get("classes")
    if classes != list(source.dataset.classes):
        expected = list(source.dataset.classes)
        raise CimError("scenes of other classes", path=paths.scenes, expected=expected, found=classes, fix=FIX)
    mixed = SceneSource(scenes, len(source.dataset.classes), min(train.sides), train.max_proposals)
    if source.pooled is not None:
        made_from = {**source.pooled.store.provenance, "photos": None, "scenes": scenes.store.provenance}
        cache = PooledCache.create(paths.scenes / "pooled", made_from, config.data.packed)
        if distributed.is_main():
            model.to(device).eval()
            cache.fill(model, replace(mixed, max_proposals=None), mixed.side, device)
        distributed.wait()
        mixed = replace(mixed, pooled=cache)
    count = scenes_among(len(source), train)
    logger.info("%d scenes of known truth; %d among every %d photos", len(scenes), count, len(source))
    return Mixed(source, mixed, count)


def scenes_among(photos: int, train: TrainConfig) -> int:
    """How many scenes are drawn while so many photos are."""
    return math.ceil(photos * train.scenes / train.images_per_update)
