"""CIM training (METHOD sections 4-7): what the engine is fed with, what one step does, and what is checked before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cim.config.build import build_criterion, build_dataset, build_model
from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, KnownConfig, LossConfig, TrainConfig
from cim.core.errors import CimError
from cim.core.types import Sample
from cim.datasets.base import Dataset
from cim.engine.checkpoints import FRESH_RUN, load_checkpoint
from cim.engine.fit import FitOptions, Schedule, distributed, fit, is_finished, signature_of
from cim.mining.losses import Criterion
from cim.models.backbones import RANDOM, weights_named
from cim.models.cim_net import CIMNet, param_groups
from cim.storage.photos import remember_photos, tell_replaced
from cim.storage.published import RegionSource, open_regions
from cim.storage.store import Store
from cim.training.artefacts import check_images, open_artefacts
from cim.training.held_out import hold_out, patience_of
from cim.training.kept import (
    cached_features,
    cached_pooled,
    calibrate,
    pooled_from,
    pools,
    scenes_among,
    with_scenes,
)
from cim.training.lengths import Length, balanced_order
from cim.training.pictures import MinedPictures
from cim.training.samples import overlaps_of
from cim.training.scene_source import Mixed
from cim.training.source import CIMSource, Heeded

logger = logging.getLogger(__name__)

_LATER = {"evidence"}  # settings that version 0.1 did not know: its runs continue while these are at their defaults


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
    if distributed.is_main():
        if paths.checkpoint.is_file():
            tell_replaced(paths.train_dir, dataset, "CIM", FRESH_RUN)
        else:
            remember_photos(paths.train_dir, paths.proposals(config.data.train_split))
    sides, known = train.sides, heeded(config.known)
    source = CIMSource(dataset, regions, clusters, sides, train.flip, train.max_proposals, known=known)
    torch.manual_seed(train.seed)
    model = build_model(config, len(dataset.classes))
    if train.start is not None:
        start_from(model, train.start, dataset)
    if pools(config) and Store.kind_at(paths.features) != "features":  # maps of version 0.1 are used as they are
        if train.start is None:
            calibrate(model, source, device)
        source = replace(source, pooled=cached_pooled(config, model, source, device))
    else:
        source = replace(source, features=cached_features(config, model, dataset, device))
        if train.start is None:
            calibrate(model, source, device)
    proposed = regions.seen()
    tags = [record.tags for record in dataset if proposed(record.image_id)]
    schedule = schedule_of(train, tags)
    if train.balance:
        source = replace(source, order=_order(dataset, train))
    seen: CIMSource | Mixed = source if not train.scenes else with_scenes(config, model, source, device)
    criterion = build_criterion(config.mining, config.loss)
    held_out = hold_out(source, seen, train, schedule, criterion.stable, device)
    if distributed.is_main() and not paths.checkpoint.is_file():
        minutes = schedule.updates * train.images_per_update * pass_seconds(model, source, criterion, device) / 60
        text = "%d updates of %d photos, about %.0f minutes from the start on one process%s"
        open_end = "" if held_out is None else ", fewer or more as held-out photos say"
        logger.info(text, schedule.updates, train.images_per_update, max(minutes, 1), open_end)
    pictures = MinedPictures(source.sample_at, len(source), criterion, dataset.classes, min(train.sides), device)

    def on_update(update: int, model: nn.Module) -> None:
        if train.picture_every and (update % train.picture_every == 0 or update == schedule.updates):
            pictures.save(model, paths.train_dir / "pictures" / f"mined_{update:08d}.png")

    return fit(
        model,
        seen,
        CIMStep(criterion),
        param_groups=groups_of(model, train),
        schedule=schedule,
        options=options_of(train),
        run_dir=paths.train_dir,
        device=device,
        meta=describe(config, dataset, regions),
        on_update=on_update,
        held_out=held_out,
    )


def check_cim(config: Config, dataset: Dataset) -> None:
    """Whether :func:`train_cim` would take a finished network and what it has kept as they are; nothing is written.

    Raises:
        CimError: they are of other settings, proposals, photos or tags.
    """
    paths, train = RunPaths(config), config.train
    proposals = paths.proposals(config.data.train_split)
    if not proposals.exists():
        return
    regions = open_regions(proposals)
    if pools(config) and Store.kind_at(paths.features) == "pooled":
        Store.agreeing(paths.features, "pooled", pooled_from(config, regions, dataset))
    if not paths.checkpoint.is_file():
        return
    untrained = config.model.model_copy(update={"weights": RANDOM})
    model = build_model(config.model_copy(update={"model": untrained}), len(dataset.classes))
    proposed = regions.seen()
    tags = [record.tags for record in dataset if proposed(record.image_id)]
    schedule = schedule_of(train, tags)
    images = len(_order(dataset, train)) if train.balance else len(dataset)
    images += scenes_among(images, train)
    meta = describe(config, dataset, regions)
    patience = patience_of(train.held_out, schedule, sum(map(bool, tags)))
    expected = signature_of(groups_of(model, train), images, schedule, options_of(train), meta, patience)
    is_finished(paths.train_dir, expected)


def _order(dataset: Dataset, train: TrainConfig) -> tuple[int, ...]:
    return balanced_order([record.tags for record in dataset], train.balance)


def start_from(model: CIMNet, path: str, dataset: Dataset) -> None:
    """The weights of a trained CIM, its calibration included.

    Raises:
        CimError: no CIM checkpoint, or of other classes or another network.
    """
    state = load_checkpoint(path)
    classes = state["meta"].get("classes")
    if state["meta"].get("kind") != "cim" or classes != list(dataset.classes):
        raise CimError("not a CIM of these classes", path=path, expected=list(dataset.classes), found=classes)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CimError("weights do not fit the network", path=path, found=str(error).split("\n")[1].strip()) from None


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
    images = train.images_per_update + train.scenes
    return Schedule(images, updates, steps, train.gamma, train.warmup_updates, train.warmup_factor)


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
        "tags": dataset.tags_digest,
        "trunk_file": weights_named(config.model.weights),
    }
    if config.train.held_out:
        settings |= {"held_out": config.train.held_out}
    if config.known.mining and dataset.known_digest:
        settings |= {"known": dataset.known_digest, "heeded": heeded(config.known)}
    return {"kind": "cim", "classes": list(dataset.classes), "config": whole, "settings": settings}


def heeded(known: KnownConfig) -> Heeded:
    """What mining heeds of what is known beyond tags."""
    return "nothing" if not known.mining else "all" if known.mining_numbers else "marked"
