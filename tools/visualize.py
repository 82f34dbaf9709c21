"""Photos with their instances painted on: predictions, ground truth, or both side by side."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from cim.album import Album, Picture, make_picture
from cim.build import build_dataset
from cim.cli import add_config_args, add_stage_args, parser, run
from cim.config import load_config
from cim.errors import CimError
from cim.layout import Layout
from cim.parallel import run_stage
from cim.store import Store

MODES = ("predictions", "truth", "both")


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(
        __doc__,
        "python tools/visualize.py resnet50_voc --mode both\n"
        "  python tools/visualize.py --results results.json --annotations val.json --images photos --output pictures",
    )
    add_config_args(target)
    next(a for a in target._actions if a.dest == "config").nargs = "?"
    target.add_argument("--results", type=Path, help="COCO result file (default: the run's detections)")
    target.add_argument("--annotations", type=Path, help="COCO json: sizes, classes, masks (default: the data set's)")
    target.add_argument("--images", type=Path, help="folder of the photos that --annotations names")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--mode", choices=MODES, help="default: both with annotated masks, predictions without")
    target.add_argument("--score-threshold", type=float, default=0.3, help="leave out weaker detections (0.3)")
    target.add_argument("--max-images", type=int, help="only so many, spread evenly over the split")
    target.add_argument("--output", type=Path, help="folder (default: <work_dir>/pictures/<split>_<mode>)")
    add_stage_args(target)
    return target


def main(argv: list[str] | None = None) -> int:
    """Makes the pictures that are not there yet; 2 when some could not be made."""
    args = get_parser().parse_args(argv)
    album, results, pictures, split = _inputs(args)
    mode = args.mode or ("both" if album.annotated else "predictions")
    if mode != "predictions" and not album.annotated:
        raise CimError(f"--mode {mode} needs annotated masks", path=album.truth.name, fix="--mode predictions")
    found = {} if mode == "truth" else album.results(results)
    output = args.output or pictures / f"{split}_{mode}"
    settings = {"mode": mode, "score_threshold": args.score_threshold, "annotations": _state(album.truth.name)}
    if mode != "truth":
        settings["results"] = _state(results)
    Store.create(output, "pictures", settings, overwrite=args.overwrite)
    photos = list(album.photos)
    count = min(args.max_images or len(photos), len(photos))
    chosen = [photos[k * len(photos) // count] for k in range(count)]
    tasks = [
        Picture(
            album.photos[image_id],
            album.truth.sizes[image_id],
            output / f"{album.stems[image_id]}.jpg",
            album.truth.by_image[image_id],
            [mark for mark in found.get(image_id, []) if mark["score"] >= args.score_threshold],
        )
        for image_id in chosen
        if image_id in album.truth.sizes
    ]
    todo = [task for task in tasks if not task.output.exists()]
    report = run_stage(
        partial(make_picture, names=album.names, mode=mode),
        todo,
        names=[str(task.photo) for task in todo],
        description="pictures",
        workers=args.workers,
        scheduler=args.scheduler,
    )
    print(f"{report.done} pictures made, {len(tasks) - len(todo)} were there: {output}")
    return report.exit_code()


def _inputs(args: argparse.Namespace) -> tuple[Album, Path, Path, str]:
    """Album, result file, folder of pictures, split."""
    if args.config is None:
        if args.annotations is None or args.images is None:
            raise CimError("nothing to draw", expected="CONFIG, or --annotations with --images (and --results)")
        if args.results is None and args.mode != "truth":
            raise CimError("no result file given", expected="--results FILE, or --mode truth")
        return Album.read(args.annotations, args.images), args.results, Path("pictures"), args.annotations.stem
    config = load_config(args.config, args.set)
    layout = Layout(config)
    split = args.split or config.data.eval_split
    if args.annotations and args.images:
        album = Album.read(args.annotations, args.images)
    else:
        album = Album.of(build_dataset(config.data, split))
    return album, args.results or layout.detections(split) / "results.json", layout.pictures, split


def _state(name: str | Path) -> str:
    """A file with its size and time, so that pictures of an older one are not taken for new."""
    path = Path(name)
    if not path.is_file():
        return str(name)
    state = path.stat()
    return f"{path.resolve()} ({state.st_size} bytes, {state.st_mtime_ns})"


if __name__ == "__main__":
    sys.exit(run(main))
