"""CIM training (METHOD sections 4-7): what the engine is fed with, what one step does, and what is checked before."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cim.config.build import build_criterion, build_dataset, build_model, proposer_options, trunk_file
from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, LossConfig, TrainConfig
from cim.core.errors import CimError
from cim.core.files import as_json, fingerprint
from cim.core.types import Sample
from cim.datasets.base import Dataset
from cim.engine.fit import FitOptions, Schedule, distributed, fit
from cim.mining.losses import Criterion
from cim.models.backbones import RANDOM
from cim.models.cim_net import CIMNet, param_groups
from cim.models.region_pool import RegionPool
from cim.proposals.options import provenance
from cim.storage.published import ClusterSource, RegionSource, lineage, open_clusters, open_regions
from cim.storage.store import Store
from cim.training.feature_cache import FeatureCache
from cim.training.lengths import Length, balanced_order
from cim.training.pictures import MinedPictures
from cim.training.pooled_cache import PooledCache
from cim.training.samples import make_sample, overlaps_of

logger = logging.getLogger(__name__)

_LATER = {"evidence"}  # settings that version 0.1 did not know: its runs continue while these are at their defaults
PREPARE = "cim train CONFIG --prepare prepares and trains"


@dataclass(frozen=True)
class CIMSource:
    """Photos with proposals, tags and first labels, at a random scale and side (METHOD section 7).

    Attributes:
        regions: proposals; clusters: first labels, None when training goes without.
        sides: long sides to draw from, pixels.
        flip: mirror half of the samples.
        max_proposals: cap per image, see :func:`cim.training.samples.keep_best`.
        features: the frozen trunk's maps; needs ``flip`` off.
        pooled: what the light head makes of them, instead of these.
        order: photos of one round, rare classes more often (:func:`balanced_order`); None: each once.
    """

    dataset: Dataset
    regions: RegionSource
    clusters: ClusterSource | None
    sides: tuple[int, ...]
    flip: bool = True
    max_proposals: int | None = None
    features: FeatureCache | None = None
    pooled: PooledCache | None = None
    order: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.dataset) if self.order is None else len(self.order)

    def sample(self, index: int, rng: np.random.Generator) -> Sample | None:
        """None for an image without tags or proposals.

        Raises:
            CimError: damaged photo or artefact, or artefacts that do not belong together.
        """
        side = int(rng.choice(self.sides))
        return self.sample_at(index, side, self.flip and rng.random() < 0.5, rng)

    def sample_at(self, index: int, side: int, flip: bool, rng: np.random.Generator | None = None) -> Sample | None:
        """The same, at a given scale."""
        record = self.dataset[index if self.order is None else self.order[index]]
        if not record.tags or not self.regions.has(record.image_id):
            return None
        regions = self.regions.load(record.image_id)
        if not len(regions):
            return None
        clusters = None
        if self.clusters is not None and self.clusters.has(record.image_id):
            clusters = self.clusters.load(record.image_id)
        sample = make_sample(record, regions, clusters, side, flip, len(self.dataset.classes), self.max_proposals, rng)
        if self.pooled is not None:
            return replace(sample, pooled=self.pooled.load(record.image_id, len(regions))[sample.proposal])
        return sample if self.features is None else replace(sample, features=self.features.load(record.image_id, side))


@dataclass(frozen=True)
class CIMStep:
    """Forward pass and losses of one image."""

    criterion: Criterion

    def __call__(
        self, model: nn.Module, samples: list[Sample], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weighted losses and diagnostics, see :class:`cim.mining.losses.Criterion`."""
        (sample,) = samples
        return self.criterion(model(sample), sample, overlaps_of(sample), generator)


def train_cim(config: Config) -> Path:
    """Train CIM as configured, or continue; the finished checkpoint.

    Raises:
        CimError: data or artefacts are missing or do not fit together; whatever :func:`cim.engine.fit.fit` raises.
    """
    with distributed.session(resolve_device(config.device)) as device:  # before the first work to be shared
        return _train(config, device)


def _train(config: Config, device: torch.device) -> Path:
    paths, train = RunPaths(config), config.train
    dataset = distributed.main_first(lambda: build_dataset(config.data, config.data.train_split))
    regions, clusters = open_artefacts(config)
    check_images(dataset, regions, clusters)
    source = CIMSource(dataset, regions, clusters, train.sides, train.flip, train.max_proposals)
    torch.manual_seed(train.seed)
    model = build_model(config, len(dataset.classes))
    if pools(config) and Store.kind_at(paths.features) != "features":  # maps of version 0.1 are used as they are
        calibrate(model, source, device)
        source = replace(source, pooled=cached_pooled(config, model, source, device))
    else:
        source = replace(source, features=cached_features(config, model, dataset, device))
        calibrate(model, source, device)
    tags = [record.tags for record in dataset if regions.has(record.image_id)]
    schedule = schedule_of(train, tags)
    if train.balance:
        source = replace(source, order=balanced_order([record.tags for record in dataset], train.balance))
    criterion = build_criterion(config.mining, config.loss)
    if distributed.is_main() and not paths.checkpoint.is_file():
        minutes = schedule.updates * train.images_per_update * pass_seconds(model, source, criterion, device) / 60
        text = "%d updates of %d photos, about %.0f minutes from the start on one process"
        logger.info(text, schedule.updates, train.images_per_update, max(minutes, 1))
    pictures = MinedPictures(source.sample_at, len(source), criterion, dataset.classes, min(train.sides), device)

    def on_update(update: int, model: nn.Module) -> None:
        if train.picture_every and (update % train.picture_every == 0 or update == schedule.updates):
            pictures.save(model, paths.train_dir / "pictures" / f"mined_{update:08d}.png")

    return fit(
        model,
        source,
        CIMStep(criterion),
        param_groups=groups_of(model, train),
        schedule=schedule,
        options=options_of(train),
        run_dir=paths.train_dir,
        device=device,
        meta=describe(config, dataset, regions),
        on_update=on_update,
    )


def pass_seconds(model: CIMNet, source: CIMSource, criterion: Criterion, device: torch.device) -> float:
    """Seconds that one photo takes, forward and back: the second of two, since the first one warms up."""
    model.to(device).train()
    seconds = 0.0
    samples = (source.sample_at(index, max(source.sides), False) for index in range(len(source)))
    for sample in islice((sample for sample in samples if sample is not None), 2):
        moved, generator = sample.to(device), torch.Generator(device).manual_seed(0)
        began = time.perf_counter()
        losses, _ = criterion(model(moved), moved, overlaps_of(moved), generator)
        torch.stack(list(losses.values())).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def pools(config: Config) -> bool:
    """Whether what the light head reads can be kept: a frozen trunk without flips, photos at one size."""
    train = config.train
    light = config.model.head == "region_pool" and config.model.freeze == "all"
    return train.cache_features and light and not train.flip and len(train.sides) == 1


def cached_pooled(config: Config, model: CIMNet, source: CIMSource, device: torch.device) -> PooledCache:
    """What the calibrated head makes of every photo and its proposals, computed now where it is missing.

    Raises:
        CimError: the folder holds those of another trunk, of other proposals or other photos.
    """
    made_from = {
        "trunk": config.model.backbone,
        "weights": trunk_weights(config),
        "axes": list(config.model.axes),
        "side": config.train.sides[0],
        "proposals": lineage(source.regions.provenance),
        "photos": source.dataset.digest,
    }
    cache = PooledCache.create(RunPaths(config).features, made_from)
    if distributed.is_main():
        model.to(device).eval()
        cache.fill(model, replace(source, max_proposals=None), config.train.sides[0], device)
    distributed.wait()
    return cache


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
    cache = FeatureCache.create(RunPaths(config).features, trunk, trunk_weights(config))
    if distributed.is_main():
        cache.fill(model.to(device).eval().features, dataset, train.sides, device)
    distributed.wait()
    return cache


@torch.no_grad()
def calibrate(model: CIMNet, source: CIMSource, device: torch.device, images: int = 64) -> None:
    """Let the region-pooling head measure the trunk's features on images spread over the data set."""
    if not isinstance(model.roi_head, RegionPool):
        return
    model.to(device).eval()
    spread = np.linspace(0, len(source) - 1, min(images, len(source))).astype(int)
    samples = (source.sample_at(int(index), min(source.sides), False) for index in spread)
    moved = (sample.to(device) for sample in samples if sample is not None)
    model.roi_head.calibrate((model.features_of(sample), sample) for sample in moved)


def groups_of(model: CIMNet, train: TrainConfig) -> list[dict[str, Any]]:
    """The optimiser's parameter groups: SGD as published, AdamW with one rate for all."""
    if train.optimizer == "adamw":
        learning = [p for p in model.parameters() if p.requires_grad]
        return [{"params": learning, "lr": train.lr, "weight_decay": train.weight_decay}]
    return param_groups(
        model,
        lr=train.lr,
        bias_lr_factor=train.bias_lr_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def schedule_of(train: TrainConfig, tags: Sequence[Sequence[int]] = ()) -> Schedule:
    """The engine's schedule of a config; with ``train.epochs``, for photos with these tags."""
    updates, steps = train.updates, train.step
    if train.epochs is not None:
        length = Length(
            train.epochs, train.visits, train.step_share, train.least_updates, train.most_updates, train.stretch
        )
        updates = length.updates(tags, train.images_per_update)
        steps = length.steps(updates)
    return Schedule(train.images_per_update, updates, steps, train.gamma, train.warmup_updates, train.warmup_factor)


def options_of(train: TrainConfig) -> FitOptions:
    """The engine's options of a config; one image per pass, gradients summed (published)."""
    return FitOptions(
        precision=train.precision,
        workers=train.workers,
        seed=train.seed,
        checkpoint_every=train.checkpoint_every,
        keep_checkpoints=train.keep_checkpoints,
        clip_grad=train.clip_grad,
        rescale_momentum=train.rescale_momentum,
        optimizer=train.optimizer,
    )


def describe(config: Config, dataset: Dataset, regions: RegionSource) -> dict[str, Any]:
    """What a checkpoint tells about itself; ``settings`` are those that a continued run must share."""
    whole = config.model_dump(mode="json")
    proposals = {k: v for k, v in regions.provenance.items() if k != "data_dir"}  # a folder may move
    settings = {
        "model": {k: v for k, v in whole["model"].items() if k not in ("weights", "roi_align")},
        "mining": whole["mining"],
        "loss": {k: v for k, v in whole["loss"].items() if k not in _LATER or v != LossConfig.model_fields[k].default},
        "sides": whole["train"]["sides"],
        "flip": whole["train"]["flip"],
        "max_proposals": whole["train"]["max_proposals"],
        "proposals": proposals,
        "photos_and_tags": dataset.digest,
    }
    return {"kind": "cim", "classes": list(dataset.classes), "config": whole, "settings": settings}


# ---------------------------------------------------------------------------------------------- before training


def open_artefacts(config: Config) -> tuple[RegionSource, ClusterSource | None]:
    """Proposals and first labels (None when the loss goes without) of the training split.

    Raises:
        CimError: not there, or labels of other proposals; the command that makes them is named.
    """
    paths = RunPaths(config)
    proposals = paths.proposals(config.data.train_split)
    if not proposals.exists():
        raise CimError("no proposals for training", path=proposals, fix=_proposals_fix(config))
    regions = open_regions(proposals)
    if not config.loss.first_labels:
        return regions, None
    if not paths.first_labels.exists():
        fix = f"{PREPARE}; alone: cim labels CONFIG"
        raise CimError("no first labels for training", path=paths.first_labels, fix=fix)
    clusters = open_clusters(paths.first_labels)
    labelled = clusters.provenance.get("proposals")
    if labelled is not None and lineage(labelled) != lineage(regions.provenance):
        raise CimError(
            "first labels of other proposals",
            path=paths.first_labels,
            expected=lineage(regions.provenance),
            found=lineage(labelled),
            fix="cim labels CONFIG --overwrite",
        )
    return regions, clusters


def missing_stages(config: Config) -> list[str]:
    """Stages to run before training, in order: "proposals", "prm" (trains the response network), "first_labels".

    A stage counts as missing while any tagged image (with proposals, for first labels) lacks its artefact; but
    where proposals of another maker have gaps, COB's for example, these images are left out instead.

    Raises:
        CimError: the data set itself is missing; or proposals are, for a data set whose published ones have to
            be fetched.
    """
    dataset, paths = build_dataset(config.data, config.data.train_split), RunPaths(config)
    path, labels = paths.proposals(config.data.train_split), paths.first_labels
    tagged = [record.image_id for record in dataset if record.tags]
    regions = open_regions(path) if path.exists() else None
    missing = []
    if regions is None and config.data.dataset != "folder":
        raise CimError("no proposals for training", path=path, fix=_proposals_fix(config))
    ours = regions is not None and regions.provenance == as_json(provenance(proposer_options(config.proposals)))
    if regions is None or (ours and not all(map(regions.has, tagged))):
        missing.append("proposals")
    if config.loss.first_labels:
        clusters = open_clusters(labels) if labels.exists() else None
        if regions is None or clusters is None or missing or not all(clusters.has(i) for i in tagged if regions.has(i)):
            if config.prm.checkpoint is None and config.assign.points is None and not paths.prm_checkpoint.exists():
                missing.append("prm")
            missing.append("first_labels")
    return missing


def check_images(dataset: Dataset, regions: RegionSource, clusters: ClusterSource | None) -> None:
    """Tell how many images will be skipped, and why.

    Raises:
        CimError: all of them.
    """
    if distributed.rank():
        return
    found: Counter[str] = Counter()
    for record in dataset:
        if not record.tags:
            found["without tags (skipped)"] += 1
        elif not regions.has(record.image_id):
            found["without proposals (skipped)"] += 1
        else:
            found["usable"] += 1
            if clusters is not None and not clusters.has(record.image_id):
                found["without first labels"] += 1
    parts = ", ".join(f"{count} {what}" for what, count in found.items())
    logger.info("%s: %d images, %d classes: %s", dataset.name, len(dataset), len(dataset.classes), parts)
    if not found["usable"]:
        raise CimError("no image can be used for training", expected="tags and proposals", found=parts, fix=PREPARE)
    if found["without first labels"] == found["usable"]:
        raise CimError(
            "no image has first labels",
            fix="cim labels CONFIG, or --set loss.first_labels=false",
        )


def _proposals_fix(config: Config) -> str:
    if config.data.dataset == "folder":
        return f"{PREPARE}; alone: cim proposals CONFIG"
    return "cim import for COB's files (docs/DATASET.md), or cim proposals CONFIG for our own"
