"""Pseudo labels for Mask R-CNN: detections on the training photos, of the classes each is said to show."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cim.cli.common import command_line
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.files import fingerprint
from cim.core.locks import hold
from cim.datasets.base import Dataset
from cim.inference.detections import Selection, StoredScores, select_dataset
from cim.inference.scores import evaluation_dir, find_checkpoint
from cim.labels.export import image_root, label_path, of_the_tags, write_labels
from cim.labels.label_files import validate_labels
from cim.mask_rcnn.detect import detect_dataset, open_detector
from cim.storage.published import having_proposals, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

    split = args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    path = args.output or label_path(config, split, args.from_mask_rcnn is not None)
    with hold(config.work_dir) if args.output is None else nullcontext():  # one file elsewhere is in nobody's way
        _export(args, config, dataset, split, path)


def _export(args: argparse.Namespace, config: Config, dataset: Dataset, split: str, path: Path) -> None:
    root = image_root(config.data, dataset)
    if split == config.data.eval_split and config.data.dataset == "folder" and config.data.val_images:
        root = Path(config.data.val_images)
    if args.from_mask_rcnn is None:
        images, info = _cim(args, config, dataset, split)
    else:
        images, info = _refined(args.from_mask_rcnn, config, dataset)
    count = write_labels(path, dataset, images, root, rle=args.rle, info={"split": split, **info})
    if count:
        validate_labels(path, dict(zip(dataset.category_ids, dataset.classes, strict=True)))
    else:
        logger.warning("nothing was found on any photo; are there tags, and is the network trained?")
    print(f"{count} instances on {len(dataset)} photos: {path}")


def _cim(
    args: argparse.Namespace, config: Config, dataset: Dataset, split: str
) -> tuple[Iterator[list[dict[str, Any]]], dict[str, Any]]:

    paths = RunPaths(config)
    folder = args.scores or evaluation_dir(paths, find_checkpoint(args.checkpoint, paths)) / "detections" / split
    of = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    store = Store.open(folder, "detections", fix=command_line("score", args, "--split", split, *of))
    selection = Selection.of(config.infer)
    source = open_regions(paths.proposals(split))
    first = config.export.tags_first
    able = having_proposals(dataset, source)
    known = config.known.selection and able.known_digest is not None
    images = select_dataset(
        able,
        source,
        StoredScores(store),
        selection,
        tagged_classes_only=first,
        known=known,
        doubts=config.export.doubtful is not None,
        workers=args.workers,
    )
    info = {"selection": vars(selection), "scores": store.provenance}
    return of_the_tags(images, dataset), info | ({"known": able.known_digest} if known else {})


def _refined(
    checkpoint: str, config: Config, dataset: Dataset
) -> tuple[Iterator[list[dict[str, Any]]], dict[str, Any]]:

    path = Path(checkpoint) if checkpoint else RunPaths(config).refine_dir / "final.pth"
    path = path / "final.pth" if path.is_dir() else path
    detector = open_detector(path, config.device, dataset.classes)
    return detect_dataset(detector, dataset, tagged_classes_only=True), {"mask_rcnn": fingerprint(path)}
