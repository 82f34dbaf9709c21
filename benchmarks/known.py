"""What it brings to say more than tags: the whole job told tags, numbers, points, or the masks of one photo in twenty.

On the demo's pictures, whose truth the project has, or on a folder of photos laid out like them (``--data``):
``images/train``, ``images/val`` (or ``dev``), ``train_tags.csv``, ``val_instances.json``, and ``train_instances.json``,
from which everything else is made, or ``train_counts.csv`` and ``train_points.csv`` (then there are no masks to tell).
Proposals and response network are shared; every seed trains CIM and Mask R-CNN anew.

What is finished in the folder stays: a killed call goes on with the same command. Prints a Markdown table, the means of
the seeds beside the time a person needs to say so much, and what ``cim compare`` says of every kind against tags.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from review_round import COLUMNS, cim, copied

from cim.cli.common import parser, run
from cim.core.errors import CimError
from cim.core.files import read_json, write_text
from cim.datasets.base import Dataset
from cim.datasets.drawn import deepest_pixel
from cim.datasets.folder import open_folder
from cim.evaluation.metrics_file import load_rows

KINDS = ("tags", "numbers", "points", "masks")
FILES = {"points": "points.csv", "masks": "masks.json"}
SHARED_STAGES = ("proposals", "prm", "peaks", "features")  # of all kinds and seeds
SHARE = 0.05  # of the photos whose masks are told
# Seconds a person takes: a tag, a point and a mask as in "What's the Point" (ECCV 2016) and COCO (ECCV 2014); that a
# number takes as long as a tag once more is our guess.
SECONDS = {"tag": 1.0, "number": 1.0, "point": 2.4, "mask": 80.0}
ROWS = ("CIM", "CIM + Mask R-CNN")


def told_by(truth: dict[str, Any], tagged: dict[str, set[str]], folder: Path) -> None:
    """Write numbers.csv, points.csv and masks.json out of the training photos' annotations."""
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    classes = {line["id"]: line["name"] for line in truth["categories"]}
    objects = [(names[a["image_id"]], classes[a["category_id"]], a) for a in truth["annotations"]]
    write_numbers(tagged, Counter((photo, label) for photo, label, _ in objects), folder)
    clicks = [deepest_pixel(coco_mask.decode(a["segmentation"])) for _, _, a in objects]
    write_points(((photo, label, *click) for (photo, label, _), click in zip(objects, clicks, strict=True)), folder)
    chosen = set(random.Random(0).sample(sorted(names.values()), max(round(SHARE * len(names)), 1)))
    images = [image for image in truth["images"] if image["file_name"] in chosen]
    masks = [a for photo, _, a in objects if photo in chosen]
    told(folder / "masks.json", [json.dumps({**truth, "images": images, "annotations": masks})])


def told_in(data: Path, tagged: dict[str, set[str]], folder: Path) -> None:
    """The same from train_counts.csv and train_points.csv, but for masks; classes without a tag are left out."""
    counted = open_folder(data / "images" / "train", data / "train_counts.csv", known=[data / "train_points.csv"])
    numbers, points = dict[tuple[str, str], int](), list[tuple[Any, ...]]()
    for record in counted:
        photo = record.path.name
        numbers |= {(photo, counted.classes[class_id]): number for class_id, number in record.known.counts}
        points += [(photo, counted.classes[m.class_id], *point) for m in record.known.marks for point in m.points]
    write_numbers(tagged, numbers, folder)
    write_points((point for point in points if point[1] in tagged.get(point[0], ())), folder)


def write_numbers(tagged: dict[str, set[str]], numbers: dict[tuple[str, str], int], folder: Path) -> None:
    lines = ["image,labels"]
    for photo, tags in tagged.items():
        if missing := [label for label in sorted(tags) if (photo, label) not in numbers]:
            raise CimError(f"no number for {photo}", expected=" ".join(f"{label}*N" for label in missing))
        lines.append(f"{photo},{' '.join(f'{label}*{numbers[photo, label]}' for label in sorted(tags))}")
    told(folder / "numbers.csv", lines)


def write_points(points: Iterable[tuple[Any, ...]], folder: Path) -> None:
    told(folder / "points.csv", ["image,label,x,y", *(",".join(map(str, point)) for point in points)])


def told(path: Path, lines: Sequence[str]) -> None:
    """Write the file unless it says so already: a run whose files are newer looks at all its stages again."""
    text = "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def tags_of(dataset: Dataset) -> dict[str, set[str]]:
    return {record.path.name: {dataset.classes[tag] for tag in record.tags} for record in dataset}


def hours(kind: str, folder: Path, tagged: dict[str, set[str]]) -> float:
    """What a person spends on it, tags included."""
    seconds = SECONDS["tag"] * sum(map(len, tagged.values()))
    if kind == "numbers":
        seconds += SECONDS["number"] * sum(map(len, tagged.values()))
    elif kind == "points":
        seconds += SECONDS["point"] * (len((folder / "points.csv").read_text().splitlines()) - 1)
    elif kind == "masks":
        seconds += SECONDS["mask"] * len(read_json(folder / "masks.json")["annotations"])
    return seconds / 3600


def job(args: argparse.Namespace, data: Path, kind: str, seed: int) -> Path:
    """One run; its folder."""
    output, first = args.folder / f"{kind}_{seed}", args.folder / f"{args.kinds[0]}_{args.seeds[0]}"
    if (output / "done").is_file():
        return output
    if output != first:
        copied(first, output, SHARED_STAGES)
    val = "val" if (data / "images" / "val").is_dir() else "dev"
    tags = args.folder / "numbers.csv" if kind == "numbers" else data / "train_tags.csv"
    given = ["--images", data / "images" / "train", "--tags", tags, "--output", output]
    given += ["--val", data / "images" / val, "--val-tags", data / f"{val}_tags.csv"]
    given += ["--val-masks", data / f"{val}_instances.json"]
    if kind in FILES:
        given += ["--known", args.folder / FILES[kind]]
    given += ["--weights", args.weights] if args.weights else ["--config", "demo"]
    given += ["--no-refine"] if args.no_refine else []
    cim("run", *given, "--set", f"train.seed={seed}", f"refine.seed={seed}", *args.set)
    (output / "done").touch()
    return output


def line(kind: str, spent: float, runs: Sequence[Path], rows: Sequence[str]) -> str:
    cells = [kind, f"{spent:.1f}"]
    for name in rows:
        found = [load_rows(path)[name] for path in runs]
        for part in (found, [row["subset_multi"] for row in found]):
            cells.append(" / ".join(f"{np.mean([row[column] for row in part]):.1f}" for column in COLUMNS))
    return f"| {' | '.join(cells)} |"


def get_parser() -> argparse.ArgumentParser:
    target = parser(__doc__, "python benchmarks/known.py --folder out --seeds 0 1 2")
    target.add_argument("--folder", type=Path, required=True, help="where the pictures and all runs go")
    target.add_argument("--data", type=Path, help="photos to judge on (default: the demo's pictures, drawn anew)")
    target.add_argument("--weights", type=Path, help="ImageNet weights of MobileNet-V2; needed with --data")
    target.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    target.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    target.add_argument("--no-refine", action="store_true", help="without Mask R-CNN")
    target.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of all runs")
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = get_parser().parse_args(argv)
    if (args.data is None) != (args.weights is None):
        raise CimError("--data and --weights belong together")
    data: Path = args.data or args.folder / "pictures"
    if args.data and "masks" in args.kinds and not (data / "train_instances.json").is_file():
        fix = "--kinds tags numbers points"
        raise CimError("no masks of training photos to tell", path=data / "train_instances.json", fix=fix)
    args.folder.mkdir(parents=True, exist_ok=True)
    if not data.is_dir() and args.data is None:
        cim("draw", data)
    tagged = tags_of(open_folder(data / "images" / "train", data / "train_tags.csv"))
    if (data / "train_instances.json").is_file():
        told_by(read_json(data / "train_instances.json"), tagged, args.folder)
    else:
        told_in(data, tagged, args.folder)
    runs = {kind: [job(args, data, kind, seed) for seed in args.seeds] for kind in args.kinds}
    rows = ROWS[:1] if args.no_refine else ROWS
    columns = [f"{name}{part}" for name in rows for part in ("", ", several")]
    print(f"\n| told | hours | {' | '.join(columns)} |\n|---|--:|{'---|' * len(columns)}")
    for kind, folders in runs.items():
        print(line(kind, hours(kind, args.folder, tagged), folders, rows))
    print(flush=True)
    cim("compare", *(f"{kind}={','.join(map(str, folders))}" for kind, folders in runs.items()))


if __name__ == "__main__":
    sys.exit(run(main))
