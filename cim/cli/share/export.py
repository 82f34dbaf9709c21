"""Pseudo labels for Mask R-CNN: detections on the training photos, of the classes each is said to show; and labels for
other programs."""

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
from cim.core.errors import CimError
from cim.core.files import fingerprint
from cim.core.locks import hold
from cim.datasets.base import Dataset
from cim.inference.detections import Selection, StoredScores, select_dataset
from cim.inference.scores import evaluation_dir, find_checkpoint
from cim.labels.export import chosen_path, image_root, label_path, of_the_tags, write_labels
from cim.labels.formats.coco import read_coco
from cim.labels.formats.marks import VAL, together
from cim.labels.formats.table import FORMATS, in_split, with_validation, write_formats
from cim.labels.label_files import validate_labels
from cim.labels.worth import as_labels, rank
from cim.mask_rcnn.detect import detect_dataset, open_detector
from cim.storage.photos import refuse_replaced
from cim.storage.published import having_proposals, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)


_OF_DETECTIONS = ("checkpoint", "scores", "from_mask_rcnn")  # options that have no place beside --format
_NOT_OF_A_REVIEW = ("labels", "images", "val", "val_labels", "val_images", "empty_images", "split")
_OF_FORMATS = ("review", "labels", "images", "val", "val_labels", "val_images", "empty_images")  # and without it


def main(args: argparse.Namespace) -> None:
    for name in _OF_DETECTIONS if args.format else _OF_FORMATS:
        if getattr(args, name) is not None:
            where = "beside" if args.format else "without"
            fix = "write labels and choose among them first (cim threshold), then --format"
            raise CimError(f"--{name.replace('_', '-')} {where} --format", fix=fix if args.format else "add --format")
    if args.review is not None:
        _to_review(args)
        return
    if args.format:
        _formats(args)
        return
    if not args.config:
        raise CimError("no config", expected="cim export CONFIG", fix="name one, or --labels FILE with --format")
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


def _formats(args: argparse.Namespace) -> None:
    path, output = args.labels, args.output
    if path is None or output is None:
        if not args.config:
            raise CimError("which labels, and where to", fix="name a config, or --labels FILE and --output FOLDER")
        config = load_config(args.config, args.set)
        path = path or chosen_path(label_path(config, args.split or config.data.train_split), config.export)
        output = output or Path(config.work_dir) / "exports"
        if not path.is_file():
            raise CimError("no labels yet", path=path, fix="cim threshold CONFIG, or --labels FILE")
    labels = read_coco(path, args.images, outside=args.labels is None)
    if args.val is not None:
        labels = with_validation(labels, args.val, args.seed)
    if args.val_labels is not None:
        labels = together([labels, in_split(read_coco(args.val_labels, args.val_images), VAL)])
    empty = None if args.empty_images is None else args.empty_images == "keep"
    names = dict.fromkeys(args.format)
    for name, done in write_formats(
        labels, list(names), output, photos=args.photos, empty=empty, overwrite=args.overwrite
    ):
        print(f"{output / name}: {done}")


def _to_review(args: argparse.Namespace) -> None:
    for name in _NOT_OF_A_REVIEW:
        if getattr(args, name) is not None:
            raise CimError(f"--{name.replace('_', '-')} beside --review", fix="leave it out")
    names = list(dict.fromkeys(args.format))
    if other := [name for name in names if not FORMATS[name].correcting]:
        expected = ", ".join(name for name, one in FORMATS.items() if one.correcting)
        raise CimError("nobody corrects labels in this format", expected=expected, found=other[0])
    if not args.config:
        raise CimError("which run", expected="cim export CONFIG --review", fix="name the config.yaml of its folder")
    config = load_config(args.config, args.set)
    ranking = rank(config, build_dataset(config.data, config.data.train_split))
    labels, output = as_labels(config, ranking, args.review), args.output or Path(config.work_dir) / "to_review"
    for name, done in write_formats(labels, names, output, photos=args.photos, overwrite=args.overwrite):
        print(f"{output / name}: {done}")


def _cim(
    args: argparse.Namespace, config: Config, dataset: Dataset, split: str
) -> tuple[Iterator[list[dict[str, Any]]], dict[str, Any]]:

    paths = RunPaths(config)
    folder = args.scores or evaluation_dir(paths, find_checkpoint(args.checkpoint, paths)) / "detections" / split
    of = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    fix = command_line("score", args, "--split", split, *of)
    store = Store.open(folder, "detections", fix=fix)
    selection = Selection.of(config.infer)
    source = open_regions(paths.proposals(split))
    first = config.export.tags_first
    able = having_proposals(dataset, source)
    refuse_replaced(store, able, fix)
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
