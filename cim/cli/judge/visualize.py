"""Photos with their instances painted on: predictions, ground truth, or both side by side."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.core.files import file_state
from cim.core.locks import hold
from cim.core.parallel import run_stage
from cim.pictures.photo_set import PhotoSet, Picture, make_picture
from cim.storage.store import Store

MODES = ("predictions", "truth", "both")


def main(args: argparse.Namespace) -> int:
    """Makes the pictures that are not there yet; 2 when some could not be made."""
    photo_set, results, pictures, split = _inputs(args)
    mode = args.mode or ("both" if photo_set.annotated else "predictions")
    if mode != "predictions" and not photo_set.annotated:
        raise CimError(f"--mode {mode} needs annotated masks", path=photo_set.truth.name, fix="--mode predictions")
    found = {} if mode == "truth" else photo_set.results(results)
    output = args.output or pictures / f"{split}_{mode}"
    with hold(output):
        return _paint(args, photo_set, results, found, mode, output)


def _paint(
    args: argparse.Namespace,
    photo_set: PhotoSet,
    results: Path,
    found: dict[int | str, list[dict[str, Any]]],
    mode: str,
    output: Path,
) -> int:
    settings = {"mode": mode, "score_threshold": args.score_threshold, "annotations": _state(photo_set.truth.name)}
    if mode != "truth":
        settings["results"] = _state(results)
    Store.create(output, "pictures", settings, overwrite=args.overwrite)
    photos = list(photo_set.photos)
    count = len(photos) if args.max_images is None else min(args.max_images, len(photos))
    chosen = [photos[k * len(photos) // count] for k in range(count)]
    tasks = [
        Picture(
            photo_set.photos[image_id],
            photo_set.truth.sizes[image_id],
            output / f"{photo_set.stems[image_id]}.jpg",
            photo_set.truth.by_image[image_id],
            [mark for mark in found.get(image_id, []) if mark["score"] >= args.score_threshold],
        )
        for image_id in chosen
        if image_id in photo_set.truth.sizes
    ]
    todo = [task for task in tasks if not task.output.exists()]
    report = run_stage(
        partial(make_picture, names=photo_set.names, mode=mode),
        todo,
        names=[str(task.photo) for task in todo],
        description="pictures",
        workers=args.workers,
        scheduler=args.scheduler,
    )
    print(f"{report.done} pictures made, {len(tasks) - len(todo)} were there: {output}")
    return report.exit_code()


def _inputs(args: argparse.Namespace) -> tuple[PhotoSet, Path, Path, str]:
    """PhotoSet, result file, folder of pictures, split."""
    if args.config is None:
        if args.annotations is None or args.images is None:
            raise CimError("nothing to draw", expected="CONFIG, or --annotations with --images (and --results)")
        if args.results is None and args.mode != "truth":
            raise CimError("no result file given", expected="--results FILE, or --mode truth")
        return PhotoSet.read(args.annotations, args.images), args.results, Path("pictures"), args.annotations.stem
    config = load_config(args.config, args.set)
    paths = RunPaths(config)
    split = args.split or config.data.eval_split
    if args.annotations and args.images:
        photo_set = PhotoSet.read(args.annotations, args.images)
    else:
        photo_set = PhotoSet.of(build_dataset(config.data, split))
    return photo_set, args.results or paths.detections(split) / "results.json", paths.pictures, split


def _state(name: str | Path) -> str:
    """So that pictures of an older file are not taken for new."""
    return file_state(name) if Path(name).is_file() else str(name)
