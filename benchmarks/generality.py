"""Does the main job work on data that it was not tuned on? One command, many data sets, no option set.

    python benchmarks/generality.py --animals animals --voc voc2007 --weights mobilenet_v2.pth --output runs/generality
    python benchmarks/generality.py --animals animals --weights mobilenet_v2.pth --output runs/g --cells two grey

Every cell writes a folder of photos with tags, runs ``cim run`` on it with all defaults but Mask R-CNN, and keeps one
json: a killed run continues, a finished cell is not run again. The table has mAP at 25/50/70/75 on other photos, the
share of instances found at 50, minutes, and the verdicts that the job gave itself. The cells named ``shuffled``,
``three`` and ``blind`` are broken on purpose: their verdict must not be fine.

Data sets as DIR/images/train, DIR/images/dev, DIR/train_tags.csv, DIR/dev_tags.csv, DIR/dev_instances.json.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from cim.core.files import read_json, write_json, write_text
from cim.core.regions import RegionSet

Tags = dict[str, list[str]]
SHAPES = ("disc", "square", "triangle", "ring", "cross", "bar")
COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (220, 200, 50),
    "white": (240,) * 3,
}


@dataclass(frozen=True)
class Photos:
    """A data set on disk: folders of photos, tags, and masks of the validation photos."""

    train: Path
    tags: Path
    val: Path
    val_tags: Path
    val_masks: Path


def photos_of(root: Path) -> Photos:
    """A data set in the form that the module's text describes."""
    images = root / "images"
    masks = root / "dev_instances.json"
    return Photos(images / "train", root / "train_tags.csv", images / "dev", root / "dev_tags.csv", masks)


def read_tags(path: Path) -> Tags:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["image"]: row["labels"].split() for row in csv.DictReader(file)}


def write_tags(path: Path, tags: Tags) -> None:
    write_text(path, "image,labels\n" + "".join(f"{name},{' '.join(labels)}\n" for name, labels in tags.items()))


# ---------------------------------------------------------------------- cells


def subset(source: Photos, folder: Path, train: Tags, classes: set[str] | None = None, change=None) -> Photos:
    """Photos of ``source`` with other tags; ``classes``: only validation photos of these; ``change``: of the pixels."""
    result = photos_of(folder)
    val = {n: t for n, t in read_tags(source.val_tags).items() if classes is None or set(t) <= classes}
    write_tags(result.tags, train)
    write_tags(result.val_tags, val)
    for names, old, new in ((train, source.train, result.train), (val, source.val, result.val)):
        new.mkdir(parents=True, exist_ok=True)
        for name in names:
            if change is None:
                shutil.copyfile(old / name, new / name)
            else:
                pixels = change(cv2.imread(str(old / name)), new == result.val)
                cv2.imwrite(str(new / name), pixels)
    truth = read_json(source.val_masks)
    truth["images"] = [image for image in truth["images"] if image["file_name"] in val]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    if classes is not None:
        truth["categories"] = [c for c in truth["categories"] if c["name"] in classes]
        ids = {c["id"] for c in truth["categories"]}
        truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] in ids]
    write_json(result.val_masks, truth)
    return result


def first_of_each(tags: Tags, classes: set[str], count: int) -> Tags:
    chosen: Tags = {}
    for name in sorted(classes):
        chosen |= dict([(k, v) for k, v in tags.items() if name in v][:count])
    return chosen


def whole(source: Photos, folder: Path) -> Photos:
    return source


def two(source: Photos, folder: Path) -> Photos:
    """Sixty photos of two classes."""
    classes = {"tiger", "turtle"}
    return subset(source, folder, first_of_each(read_tags(source.tags), classes, 30), classes)


def one(source: Photos, folder: Path) -> Photos:
    """One class alone, and as many photos without it whose labels are empty."""
    tags = read_tags(source.tags)
    mine = first_of_each(tags, {"tiger"}, 50)
    others = [name for name, labels in tags.items() if "tiger" not in labels][:: max((len(tags) - len(mine)) // 50, 1)]
    return subset(source, folder, {**mine, **{name: [] for name in others[:50]}}, {"tiger"})


def rare(source: Photos, folder: Path) -> Photos:
    """One class with a tenth of its photos."""
    tags = read_tags(source.tags)
    otters = [name for name, labels in tags.items() if "otter" in labels]
    gone = set(otters[len(otters) // 10 :])
    return subset(source, folder, {name: labels for name, labels in tags.items() if name not in gone})


def noisy(source: Photos, folder: Path) -> Photos:
    """One photo in ten with a wrong tag or with one missing."""
    tags, rng = read_tags(source.tags), np.random.default_rng(0)
    names = sorted({label for labels in tags.values() for label in labels})
    for name in rng.choice(list(tags), len(tags) // 10, replace=False):
        others = [other for other in names if other not in tags[name]]
        tags[name] = tags[name][:-1] if len(tags[name]) > 1 else [str(rng.choice(others))]
    return subset(source, folder, tags)


def shuffled(source: Photos, folder: Path) -> Photos:
    """Broken on purpose: every photo has another one's tags."""
    tags = read_tags(source.tags)
    labels = [list(tags.values())[k] for k in np.random.default_rng(0).permutation(len(tags))]
    return subset(source, folder, dict(zip(tags, labels, strict=True)))


def three(source: Photos, folder: Path) -> Photos:
    """Broken on purpose: three photos a class."""
    tags = read_tags(source.tags)
    return subset(source, folder, first_of_each(tags, {label for labels in tags.values() for label in labels}, 3))


def grey(source: Photos, folder: Path) -> Photos:
    def without_colour(pixels: np.ndarray, of_val: bool) -> np.ndarray:
        return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)

    return subset(source, folder, some(source), None, without_colour)


def some(source: Photos, count: int = 30) -> Tags:
    """``count`` photos a class: cells about pixels need no more."""
    tags = read_tags(source.tags)
    return first_of_each(tags, {label for labels in tags.values() for label in labels}, count)


def resized(size: tuple[int, int]) -> Callable[[Photos, Path], Photos]:
    """Training photos of another size (w, h at most); validation photos stay, since their masks do."""

    def cell(source: Photos, folder: Path) -> Photos:
        def change(pixels: np.ndarray, of_val: bool) -> np.ndarray:
            if of_val:
                return pixels
            scale = min(size[0] / pixels.shape[1], size[1] / pixels.shape[0])
            return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else 1)

        return subset(source, folder, some(source), None, change)

    return cell


def drawn(source: Photos | None, folder: Path, train: int = 3000, val: int = 120) -> Photos:
    """3,000 drawn photos of 30 classes: six shapes in five colours on mottled ground, one or two things each."""
    result, rng = photos_of(folder), np.random.default_rng(0)
    names = [f"{colour}_{shape}" for shape in SHAPES for colour in COLOURS]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    entries: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": categories}
    for place, path, count in ((result.train, result.tags, train), (result.val, result.val_tags, val)):
        place.mkdir(parents=True, exist_ok=True)
        tags: Tags = {}
        for number in tqdm(range(count), desc="drawing"):
            pixels, things = scene(rng, number % len(names), len(names))
            name = f"{number:05d}.jpg"
            cv2.imwrite(str(place / name), pixels)
            tags[name] = sorted({names[class_id] for class_id, _ in things})
            if place == result.val:
                entries["images"].append({"id": number, "file_name": name, "height": 180, "width": 240})
                for class_id, mask in things:
                    region = RegionSet.from_masks(mask[None])
                    x1, y1, x2, y2 = region.boxes[0].tolist()
                    entries["annotations"].append(
                        {
                            "id": len(entries["annotations"]) + 1,
                            "image_id": number,
                            "category_id": class_id + 1,
                            "segmentation": region.rles()[0],
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": int(mask.sum()),
                            "iscrowd": 0,
                        }
                    )
        write_tags(path, tags)
    write_json(result.val_masks, entries)
    return result


def scene(rng: np.random.Generator, first: int, classes: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """BGR pixels [180, 240, 3] and (class, visible mask) of the things in it."""
    ground = cv2.resize(rng.integers(60, 190, (12, 16, 3)).astype(np.uint8), (240, 180), interpolation=cv2.INTER_CUBIC)
    wanted = [first, *([int(rng.integers(classes))] if rng.random() < 0.4 else [])]
    owner = np.full((180, 240), -1)
    for index, class_id in enumerate(wanted):
        mask = np.zeros((180, 240), np.uint8)
        radius = int(rng.integers(22, 46))
        x, y = int(rng.integers(radius, 240 - radius)), int(rng.integers(radius, 180 - radius))
        draw_shape(mask, SHAPES[class_id // len(COLOURS)], x, y, radius)
        colour = np.array(list(COLOURS.values())[class_id % len(COLOURS)])[::-1]
        ground[mask > 0] = np.clip(colour + rng.normal(0, 12, (int((mask > 0).sum()), 3)), 0, 255).astype(np.uint8)
        owner[mask > 0] = index
    return ground, [(c, owner == i) for i, c in enumerate(wanted) if (owner == i).sum() > 50]


def draw_shape(mask: np.ndarray, shape: str, x: int, y: int, r: int) -> None:
    if shape == "disc":
        cv2.circle(mask, (x, y), r, 1, -1)
    elif shape == "ring":
        cv2.circle(mask, (x, y), r - 5, 1, 10)
    elif shape == "triangle":
        cv2.fillPoly(mask, [np.array([[x, y - r], [x - r, y + r], [x + r, y + r]])], 1)
    elif shape == "cross":
        mask[y - r : y + r, x - r // 3 : x + r // 3] = 1
        mask[y - r // 3 : y + r // 3, x - r : x + r] = 1
    else:
        high = r if shape == "square" else r // 3
        mask[y - high : y + high, x - r : x + r] = 1


@dataclass(frozen=True)
class Cell:
    """A data set, which source it is cut from, and whether it is broken on purpose."""

    make: Callable[[Photos, Path], Photos]
    source: str = "animals"
    broken: bool = False
    options: tuple[str, ...] = ()


CELLS = {
    "animals": Cell(whole),
    "voc": Cell(whole, "voc"),
    "two": Cell(two),
    "one": Cell(one),
    "rare": Cell(rare),
    "drawn": Cell(drawn, ""),
    "large": Cell(resized((4000, 3000))),
    "small": Cell(resized((120, 90))),
    "grey": Cell(grey),
    "noisy": Cell(noisy),
    "shuffled": Cell(shuffled, broken=True),
    "three": Cell(three, broken=True),
    "blind": Cell(whole, broken=True, options=("--set", "prm.weights=none", "model.weights=none")),
}


# ---------------------------------------------------------------------- the job


def get_parser() -> argparse.ArgumentParser:
    target = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target.add_argument("--animals", type=Path, help="data set of seven animals (or any with tiger, turtle, otter)")
    target.add_argument("--voc", type=Path, help="a second data set")
    target.add_argument("--weights", type=Path, help="ImageNet weights of the trunk (default: downloaded once)")
    target.add_argument("--output", type=Path, required=True, help="folder; what is done in it is not done again")
    target.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="default: all")
    target.add_argument("--refine", action="store_true", help="Mask R-CNN, too: several times as long")
    return target


def main() -> None:
    args = get_parser().parse_args()
    for name in args.cells:
        if CELLS[name].source and getattr(args, CELLS[name].source) is None:
            print(f"not run: {name} (no --{CELLS[name].source})", file=sys.stderr)
            continue
        if not (args.output / name / "result.json").is_file():
            run_cell(name, args)
    done = {name: args.output / name / "result.json" for name in CELLS}
    print(table({name: read_json(path) for name, path in done.items() if path.is_file()}))


def run_cell(name: str, args: argparse.Namespace) -> None:
    """The whole job on one data set; its row as RUN/result.json."""
    cell, folder = CELLS[name], args.output / name
    source = photos_of(getattr(args, cell.source)) if cell.source else None
    data = folder / "data"
    ready = folder / "data.done"
    photos = cell.make(source, data) if not ready.exists() or cell.make is whole else photos_of(data)
    write_text(ready, "")
    command = [sys.executable, "-m", "cim", "run", "--images", photos.train, "--tags", photos.tags]
    command += ["--val", photos.val, "--val-tags", photos.val_tags, "--val-masks", photos.val_masks]
    command += ["--output", folder / "run", *(["--weights", args.weights] if args.weights else []), *cell.options]
    command += [] if args.refine else ["--no-refine"]
    began = time.monotonic()
    code = subprocess.run(list(map(str, command)), check=False).returncode
    if code:  # the lines above say why; the same command tries again
        print(f"failed: {name}, exit code {code}", file=sys.stderr)
        return
    result = {"photos": len(read_tags(photos.tags)), "seconds": time.monotonic() - began}
    result["broken"] = cell.broken
    for file in ("metrics", "verdicts", "diagnosis", "timings"):
        path = folder / "run" / f"{file}.json"
        result[file] = read_json(path) if path.is_file() else {}
    write_json(folder / "result.json", result, indent=1)


def table(results: dict[str, dict]) -> str:
    """Markdown, one line a cell."""
    head = ("cell", "photos", "CIM: mAP 25 / 50 / 70 / 75", "found, %", "minutes", "verdicts")
    lines = [f"| {' | '.join(head)} |", "|---|--:|---|--:|--:|---|"]
    for name, result in results.items():
        row = result["metrics"].get("rows", {}).get("CIM", {})
        scores = " / ".join(f"{row[f'mAP@{iou}']:.1f}" for iou in ("0.25", "0.50", "0.70", "0.75")) if row else "-"
        truth = result["diagnosis"].get("rows", {}).get("CIM", {}).get("ground_truth", {}).get("shares", {})
        found = f"{truth['complete']:.0f}" if "complete" in truth else "-"
        told = ", ".join(f"{stage} {verdict['level']}" for stage, verdict in result["verdicts"].items())
        minutes = sum(result["timings"].values()) / 60
        what = f"{name} (broken)" if result["broken"] else name
        lines.append(f"| {what} | {result['photos']} | {scores} | {found} | {minutes:.1f} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
