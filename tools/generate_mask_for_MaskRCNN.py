#!/usr/bin/env python
"""Pseudo labels for Mask R-CNN: detections on the training photos, of the classes each is said to show."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cim.cli import add_config_args, parser, run
from cim.config import Config, load_config
from cim.datasets.base import Dataset

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    target = parser(
        __doc__,
        "python tools/test.py resnet50_voc --split trainaug   # scores first\n"
        "  python tools/generate_mask_for_MaskRCNN.py resnet50_voc\n"
        "  python tools/generate_mask_for_MaskRCNN.py resnet50_voc --from-mask-rcnn   # one more round",
    )
    add_config_args(target)
    target.add_argument("--checkpoint", help="whose scores: a checkpoint or a run folder (default: that of the config)")
    target.add_argument("--scores", type=Path, help="a folder of scores, e.g. RUN/detections/SPLIT, instead")
    target.add_argument(
        "--from-mask-rcnn",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="label with a trained Mask R-CNN instead (default: that of the config)",
    )
    target.add_argument("--split", help="default: data.train_split")
    target.add_argument("--output", type=Path, help="default: <work_dir>/pseudo_labels/msrcnn_pseudo_label.json")
    target.add_argument("--rle", choices=("compressed", "uncompressed"), default="compressed", help="form of the masks")
    target.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the selection")
    return target


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from cim.build import build_dataset
    from cim.export import image_root, label_path, write_labels
    from cim.labels import validate_labels

    split = args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    path = args.output or label_path(config, split, args.from_mask_rcnn is not None)
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
    from cim.detections import Selection, StoredScores, select_dataset
    from cim.export import of_the_tags
    from cim.inference import evaluation_dir, find_checkpoint
    from cim.layout import Layout
    from cim.published import having_proposals, open_regions
    from cim.store import Store

    layout = Layout(config)
    folder = args.scores or evaluation_dir(layout, find_checkpoint(args.checkpoint, layout)) / "detections" / split
    store = Store.open(folder, "detections", fix=f"python tools/test.py {args.config} --split {split}")
    selection = Selection.of(config.infer)
    source = open_regions(layout.proposals(split))
    first = config.export.tags_first
    able = having_proposals(dataset, source)
    images = select_dataset(
        able, source, StoredScores(store), selection, tagged_classes_only=first, workers=args.workers
    )
    return of_the_tags(images, dataset), {"selection": vars(selection), "scores": store.provenance}


def _refined(
    checkpoint: str, config: Config, dataset: Dataset
) -> tuple[Iterator[list[dict[str, Any]]], dict[str, Any]]:
    from cim.files import fingerprint
    from cim.layout import Layout
    from cim.mask_detector import detect_dataset, open_detector

    path = Path(checkpoint) if checkpoint else Layout(config).refine_dir / "final.pth"
    path = path / "final.pth" if path.is_dir() else path
    detector = open_detector(path, config.device, dataset.classes)
    return detect_dataset(detector, dataset, tagged_classes_only=True), {"mask_rcnn": fingerprint(path)}


if __name__ == "__main__":
    sys.exit(run(main))
