"""Options of the whole jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.cli.common import add_set, describe

BUDGETS = ("quick", "normal", "long")
AGAIN = "Every stage is skipped when done: the same command continues after a stop."


def run(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "The whole flow on a folder of tagged photos: masks, pseudo labels, a trained model, overlays and a report. "
        + AGAIN,
        "cim run --images photos --tags tags.csv --output runs/mine\n"
        "  cim run --images photos/train --output runs/mine --val photos/val --val-masks val.json",
    )
    target.add_argument("--images", type=Path, required=True, help="folder of training photos")
    target.add_argument(
        "--tags", type=Path, help="tags.csv (image,labels) or COCO json; default: one sub-folder a class"
    )
    target.add_argument(
        "--negatives", type=Path, help="folder of photos that show none of the classes (or rows with empty labels)"
    )
    target.add_argument(
        "--known",
        type=Path,
        nargs="+",
        default=[],
        help="what else is known of these photos: csv of points, files of LabelMe, Label Studio, CVAT, COCO jsons",
    )
    target.add_argument("--output", type=Path, required=True, help="run folder")
    target.add_argument("--val", type=Path, help="folder of photos to evaluate on")
    target.add_argument("--val-tags", type=Path, help="their tags (default: from --val-masks)")
    target.add_argument("--val-masks", type=Path, help="their COCO json with masks; only evaluation reads it")
    target.add_argument("--weights", type=Path, help="ImageNet weights of the trunk (default: downloaded once)")
    target.add_argument("--budget", choices=BUDGETS, default="normal", help="how much training (quick: no Mask R-CNN)")
    target.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    target.add_argument("--config", default="folder_mobilenet", help="yaml file or name (default: folder_mobilenet)")
    add_set(target)
    target.add_argument("--no-refine", action="store_true", help="leave Mask R-CNN out")


def demo(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "The whole flow on pictures that the project draws itself: what complete instances are, seen in a few minutes. "
        f"Nothing is downloaded. {AGAIN}",
        "cim demo --output runs/demo",
    )
    target.add_argument("--output", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    target.add_argument("--seed", type=int, default=0, help="of the pictures and of all training (default: 0)")
    target.add_argument("--config", default="demo", help="yaml file or name (default: demo)")
    target.add_argument("--train", type=int, default=200, help="training pictures (default: %(default)s)")
    target.add_argument("--val", type=int, default=60, help="validation pictures (default: %(default)s)")
    target.add_argument("--refine", action="store_true", help="also Mask R-CNN, from nothing: slow and weak here")
    add_set(target)
