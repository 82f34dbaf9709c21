"""Training Mask R-CNN on pseudo labels; ``cim.mask_rcnn.detect`` then finds instances without any proposals."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, RefineConfig
from cim.core.errors import CimError
from cim.engine.checkpoints import FRESH_RUN, load_checkpoint
from cim.engine.fit import FitOptions, Schedule, fit, is_finished, signature_of
from cim.engine.held_out import HeldOut
from cim.engine.loader import Source
from cim.mask_rcnn.scenes import PastedScenes
from cim.mask_rcnn.source import LabelSource, open_labels
from cim.models.backbones import RANDOM, weights_named
from cim.models.mask_rcnn import UNKNOWN, build_mask_rcnn
from cim.training.held_out import draw_held_out, patience_of
from cim.training.lengths import Length
from cim.training.scene_source import Mixed, among_scenes

logger = logging.getLogger(__name__)

_LATER = ("scenes", "held_out")  # settings that version 0.1 did not know: its runs continue while these are off
STEP = 0.8  # share of the updates after which the rate falls, where a rule sets their number


def refine_step(
    model: nn.Module, samples: list[dict[str, Any]], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Torchvision's five losses; it draws its regions with the global generator, which the engine seeds."""
    losses = model([sample["image"] for sample in samples], [sample["target"] for sample in samples])
    return losses, {"instances": sum(int((s["target"]["labels"] != UNKNOWN).sum()) for s in samples)}


def train_mask_rcnn(config: Config, labels: Path, images: Path | None = None, run_dir: Path | None = None) -> Path:
    """Train on a label file, or continue; the finished checkpoint.

    Raises:
        CimError: see :func:`open_labels` and :func:`cim.engine.fit.fit`.
    """
    refine = config.refine
    fed = _fed(config, labels, images)
    torch.manual_seed(refine.seed)
    model = build_mask_rcnn(refine.backbone, len(fed.classes), refine.weights, refine.min_side, refine.max_side)
    device = resolve_device(config.device)
    return fit(
        model,
        fed.source,
        refine_step,
        param_groups=_param_groups(model, refine),
        schedule=fed.schedule,
        options=_options(refine),
        run_dir=run_dir or RunPaths(config).refine_dir,
        device=device,
        meta=_describe(config, fed.classes),
        held_out=hold_out(fed, refine, device),
    )


def hold_out(fed: Fed, refine: RefineConfig, device: torch.device) -> HeldOut | None:
    """Labelled photos that decide how long to train; None: none do."""
    photos, patience = fed.photos, patience_of(refine.held_out, fed.schedule, len(fed.photos))
    if patience is None:
        return None
    numbers = draw_held_out(refine.held_out, range(len(photos)), refine.seed)
    rest = replace(photos, photos=tuple(p for n, p in enumerate(photos.photos) if n not in numbers))
    held = replace(photos, photos=tuple(photos.photos[n] for n in sorted(numbers)), flip=False)
    return HeldOut(patience, among_scenes(rest, fed.source), LabelLosses(held, device))


@dataclass(frozen=True)
class LabelLosses:
    """The sum of torchvision's losses of every photo of a source, with the same regions drawn each time."""

    photos: LabelSource
    device: torch.device

    def __call__(self, model: nn.Module) -> list[float]:
        model.train()  # in eval mode there are no losses; its norms are frozen
        losses = list[Tensor]()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for number in range(len(self.photos)):
                sample = self.photos.sample(number, np.random.default_rng(number))
                if sample is not None:
                    torch.manual_seed(number)
                    target = {name: value.to(self.device) for name, value in sample["target"].items()}
                    found = model([sample["image"].to(self.device)], [target])
                    losses.append(torch.stack(list(found.values())).sum())
        model.eval()
        return torch.stack(losses).tolist() if losses else [0.0]  # no label large enough in any: nothing to go by


class Fed(NamedTuple):
    """What a label file gives a training: its photos, these with scenes where they are asked for, classes, and how long
    it lasts."""

    photos: LabelSource
    source: Source
    classes: Sequence[str]
    schedule: Schedule


def _fed(config: Config, labels: Path, images: Path | None = None) -> Fed:
    refine = config.refine
    photos, classes = open_labels(labels, images)
    source = LabelSource(photos, refine.min_side, refine.max_side, refine.flip, refine.score_weighted)
    schedule = schedule_of(refine, [sorted(set(photo.labels)) for photo in photos])
    return Fed(source, with_scenes(source, refine), classes, schedule)


def with_scenes(source: LabelSource, refine: RefineConfig) -> Source:
    """The photos, with ``refine.scenes`` scenes to every ``refine.images_per_update`` of them where any can be made."""
    pasted = PastedScenes.of(source) if refine.scenes else None
    if pasted is None:
        if refine.scenes:
            logger.warning("no class has two labels that are surely one instance: no scenes are pasted")
        return source
    counts = ", ".join(f"{len(pairs)}" for pairs in pasted.certain.values())
    logger.info("scenes of certain labels: %d classes with %s of them", len(pasted.certain), counts)
    return Mixed(source, pasted, math.ceil(len(source) * refine.scenes / refine.images_per_update))


def check_mask_rcnn(config: Config, labels: Path) -> None:
    """Whether :func:`train_mask_rcnn` would take a finished network as it is, and rightly; nothing is written.

    Args:
        labels: those of the config; may be missing.

    Raises:
        CimError: it was trained with other settings, or on labels that were chosen with others.
    """
    refine, run_dir = config.refine, RunPaths(config).refine_dir
    if not (run_dir / "final.pth").is_file():
        return
    before, now = load_checkpoint(run_dir / "final.pth", lazy=True)["meta"]["config"], config.model_dump(mode="json")
    for section in ("infer", "export"):
        for name, value in before.get(section, {}).items():
            if now[section].get(name) != value:
                raise CimError(
                    f"Mask R-CNN was trained on labels of other settings ({section}.{name})",
                    path=run_dir,
                    expected=now[section].get(name),
                    found=value,
                    fix=f"--no-refine leaves it as it is; or {FRESH_RUN}",
                )
    if labels.is_file():
        fed = _fed(config, labels)
        model = build_mask_rcnn(refine.backbone, len(fed.classes), RANDOM, refine.min_side, refine.max_side)
        patience = patience_of(refine.held_out, fed.schedule, len(fed.photos))
        groups, meta = _param_groups(model, refine), _describe(config, fed.classes)
        is_finished(run_dir, signature_of(groups, len(fed.source), fed.schedule, _options(refine), meta, patience))


def _options(refine: RefineConfig) -> FitOptions:
    return FitOptions(
        precision=refine.precision,
        workers=refine.workers,
        seed=refine.seed,
        checkpoint_every=refine.checkpoint_every,
        clip_grad=refine.clip_grad,
        micro_batch=refine.micro_batch,
        rescale_momentum=False,
        reduction="mean",
        optimizer=refine.optimizer,
    )


def _describe(config: Config, classes: Sequence[str]) -> dict[str, Any]:
    refine, same = config.refine, ("backbone", "min_side", "max_side", "flip", "score_weighted", *_LATER)
    return {
        "kind": "mask_rcnn",
        "classes": list(classes),
        "config": config.model_dump(mode="json"),
        "settings": {name: getattr(refine, name) for name in same if name not in _LATER or getattr(refine, name)}
        | {"trunk_file": weights_named(refine.weights)},
    }


def schedule_of(refine: RefineConfig, labels: Sequence[Sequence[int]] = ()) -> Schedule:
    """The engine's schedule of a config; with ``refine.epochs``, for photos with labels of these classes."""
    updates, steps = refine.updates, refine.step
    if refine.epochs is not None:
        length = Length(refine.epochs, step=STEP, stretch=refine.stretch)
        updates = length.updates(labels, refine.images_per_update)
        steps = length.steps(updates)
        logger.info("Mask R-CNN: %d updates of %d photos", updates, refine.images_per_update)
    images = refine.images_per_update + refine.scenes
    return Schedule(images, updates, steps, 0.1, refine.warmup_updates, warmup_factor=1e-3)


def _param_groups(model: nn.Module, refine: RefineConfig) -> list[dict[str, Any]]:
    momentum = {"momentum": refine.momentum} if refine.optimizer == "sgd" else {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trunk = [p for name, p in trained if name.startswith("backbone.trunk.")]
    rest = [p for name, p in trained if not name.startswith("backbone.trunk.")]
    rates = ((trunk, refine.lr * refine.trunk_lr_factor), (rest, refine.lr))
    return [{"params": p, "lr": rate, "weight_decay": refine.weight_decay, **momentum} for p, rate in rates if p]
