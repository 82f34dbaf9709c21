"""Training the response network from tags (METHOD section 2), and how well it tells the tags afterwards."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cim.config.build import build_dataset
from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, PRMConfig
from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.datasets.base import Dataset, Record
from cim.engine.checkpoints import FRESH_RUN
from cim.engine.fit import FitOptions, Schedule, Source, fit, is_finished, signature_of
from cim.evaluation.verdicts import save_verdict
from cim.models.backbones import RANDOM, weights_named
from cim.prm.converge import HELD_OUT, converge, is_solved, judge_held_out
from cim.prm.fit import average_precision
from cim.prm.network import ResponseNet, build_response_net, load_response_net
from cim.prm.photos import FeatureSource, PhotoSource, feature_cache, one_hot, photo_batches
from cim.storage.photos import remember_photos, tell_replaced

logger = logging.getLogger(__name__)

STAGE = "response network"  # in verdicts.json


def prm_step(
    model: ResponseNet, samples: list[dict[str, Any]], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Multi-label soft margin loss on the image scores."""
    tags = torch.stack([sample["tags"] for sample in samples])
    if "features" in samples[0]:
        maps = model.maps(torch.stack([sample["features"] for sample in samples]).float())
    else:
        maps = model(torch.stack([sample["image"] for sample in samples]))
    scores = model.image_scores(maps)
    agreement = ((scores > 0) == (tags > 0)).float().mean().detach()
    return {"tags": functional.multilabel_soft_margin_loss(scores, tags)}, {"tag_agreement": agreement}


def train_prm(config: Config) -> Path:
    """Train as configured, or continue; writes ``metrics.json`` beside the finished checkpoint and returns the latter.

    Raises:
        CimError: the data set is missing or has no tags; whatever :func:`cim.engine.fit.fit` raises.
    """
    prm, paths, device = config.prm, RunPaths(config), resolve_device(config.device)
    dataset = build_dataset(config.data, config.data.train_split)
    if not any(record.tags for record in dataset):
        raise CimError(f"no tags in {dataset.name}", fix="set data.tags")
    torch.manual_seed(prm.seed)
    net = _build(prm, dataset, prm.weights)
    finished = (paths.prm_dir / "final.pth").is_file()
    metrics = paths.prm_dir / "metrics.json"
    if finished and _is_first():
        tell_replaced(paths.prm_dir, dataset, "the response network", FRESH_RUN)
    elif _is_first():
        first = dataset if config.proposals.prompted else ()  # proposals come later
        remember_photos(paths.prm_dir, paths.proposals(config.data.train_split), first)
    if prm.fit == "converge":
        if not _is_first():  # seconds of work: one process does it
            return paths.prm_dir / "final.pth"
        final = converge(net, dataset, prm, paths.prm_dir, device, _describe(config, dataset))
        if not (finished and metrics.is_file()):
            _write_metrics(config, final, metrics, device)
        verdict = judge_held_out(read_json(paths.prm_dir / HELD_OUT))
        save_verdict(paths.verdicts, STAGE, verdict)
        logger.info("%s", verdict.line(STAGE))
        return final
    cache = None
    if prm.frozen_trunk and not finished and _processes() == 1:
        cache = feature_cache(net, dataset, prm, paths.prm_dir / "features.npy", device)
    source: Source = PhotoSource(dataset, prm.image_size, prm.flip)
    if cache is not None:
        source = FeatureSource(dataset, np.load(cache, mmap_mode="r"))
    final = fit(
        net,
        source,
        prm_step,
        param_groups=_param_groups(net, prm),
        schedule=_schedule(prm, dataset),
        options=_options(prm, workers=0 if cache else prm.workers),
        run_dir=paths.prm_dir,
        device=device,
        meta=_describe(config, dataset),
    )
    if cache is not None:
        cache.unlink(missing_ok=True)
    if _is_first() and not (finished and metrics.is_file()):
        _write_metrics(config, final, metrics, device)
    return final


def check_prm(config: Config, dataset: Dataset) -> None:
    """Whether :func:`train_prm` would take a finished network as it is; nothing is written.

    Raises:
        CimError: it was trained with other settings, or on other photos and tags.
    """
    prm, run_dir, meta = config.prm, RunPaths(config).prm_dir, _describe(config, dataset)
    if prm.fit == "converge":
        is_solved(run_dir, meta)
    elif (run_dir / "final.pth").is_file():
        groups = _param_groups(_build(prm, dataset, RANDOM), prm)
        is_finished(run_dir, signature_of(groups, len(dataset), _schedule(prm, dataset), _options(prm, 0), meta))


def _build(prm: PRMConfig, dataset: Dataset, weights: str | None) -> ResponseNet:
    return build_response_net(
        prm.backbone,
        len(dataset.classes),
        weights=weights,
        frozen_trunk=prm.frozen_trunk,
        train_norms=prm.train_norms,
        upsample=prm.upsample,
        score="mean" if prm.fit == "converge" else prm.score,
        image_size=prm.image_size,
        classes=dataset.classes,
    )


def _schedule(prm: PRMConfig, dataset: Dataset) -> Schedule:
    return Schedule(prm.batch_size, max(math.ceil(prm.epochs * len(dataset) / prm.batch_size), 1))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun sets it


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _param_groups(net: ResponseNet, prm: PRMConfig) -> list[dict[str, Any]]:
    parameters = [p for p in net.parameters() if p.requires_grad]
    momentum = {"momentum": prm.momentum} if prm.optimizer == "sgd" else {}
    return [{"params": parameters, "lr": prm.lr, "weight_decay": prm.weight_decay, **momentum}]


def _options(prm: PRMConfig, workers: int) -> FitOptions:
    return FitOptions(
        optimizer=prm.optimizer,
        precision=prm.precision,
        workers=workers,
        seed=prm.seed,
        checkpoint_every=prm.checkpoint_every,
        micro_batch=prm.batch_size,
        reduction="mean",
    )


def _describe(config: Config, dataset: Dataset) -> dict[str, Any]:
    whole = config.model_dump(mode="json")
    keep = ("score", "optimizer", "backbone", "image_size", "upsample", "flip", "frozen_trunk", "train_norms", "epochs")
    settings = {name: whole["prm"][name] for name in keep}
    settings |= {"photos_and_tags": dataset.digest, "tags": dataset.tags_digest}
    settings["trunk_file"] = weights_named(config.prm.weights)
    if config.prm.fit != "sgd":  # which version 0.1 did not know
        settings["fit"] = config.prm.fit
    if config.prm.fit == "converge":
        settings |= {"fit": "converge", "score": "mean"}
    return {"kind": "prm", "classes": list(dataset.classes), "config": whole, "settings": settings}


# ---------------------------------------------------------------------- evaluation


def tag_scores(net: ResponseNet, records: Sequence[Record], *, batch: int = 8, workers: int = 2) -> np.ndarray:
    """Image scores float32 [n, C]; ``net`` in eval mode, on any device.

    Raises:
        CimError: unreadable photo.
    """
    device = next(net.parameters()).device
    scores = []
    for _, images in photo_batches(records, net.image_size, batch, workers, "tags"):
        with torch.inference_mode():
            scores.append(net.image_scores(net(images.to(device))).cpu().numpy())
    return np.concatenate(scores) if scores else np.zeros((0, net.num_classes), np.float32)


def tag_metrics(scores: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Average precision per class and its mean over the classes that occur; share of photos with the best first.

    Args:
        scores: [n, C]; truth: bool [n, C].
    """
    precisions = [average_precision(scores[:, k], truth[:, k]) for k in range(len(classes))]
    known = [value for value in precisions if not math.isnan(value)]
    first = truth[np.arange(len(truth)), scores.argmax(1)] if len(truth) else np.zeros(0, bool)
    return {
        "images": len(truth),
        "mean_average_precision": float(np.mean(known)) if known else None,
        "top_class_correct": float(first.mean()) if len(first) else None,
        "exact_tags": float(((scores > 0) == truth).all(1).mean()) if len(truth) else None,
        "average_precision": {
            name: None if math.isnan(value) else value for name, value in zip(classes, precisions, strict=True)
        },
    }


def _write_metrics(config: Config, checkpoint: Path, path: Path, device: torch.device) -> None:
    data = config.data
    if data.dataset == "folder" and not (data.val_images or data.val_tags or data.val_annotations):
        logger.info("no validation photos: tags are not evaluated")
        return
    dataset = build_dataset(data, data.eval_split)
    records = [record for record in dataset if record.tags]
    if not records:
        logger.info("%s has no tags: not evaluated", dataset.name)
        return
    net = load_response_net(checkpoint, len(dataset.classes)).to(device)
    truth = np.stack([one_hot(record, len(dataset.classes)).numpy() > 0 for record in records])
    scores = tag_scores(net, records, workers=config.prm.workers)
    metrics = tag_metrics(scores, truth, dataset.classes)
    write_json(path, {"split": data.eval_split, **metrics}, indent=1)
    for name, value in metrics["average_precision"].items():
        logger.info("%-20s AP %s", name, "-" if value is None else f"{value:.3f}")
    logger.info(
        "%d photos: mean AP %.3f, best class right %.3f",
        metrics["images"],
        metrics["mean_average_precision"],
        metrics["top_class_correct"],
    )
