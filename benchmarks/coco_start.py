"""Opening a data set of COCO's size: the first start, later ones, and version 0.1's way beside them.

Writes a json of 118,000 images and 830,000 annotations (once: it stays in the folder), then starts one process after
the other, the file warm in the page cache. Each does what a training stage does before its first image: imports,
opening the data set, a walk over its records, their digest. Then two loader workers read records. All ways must find
the same digest. Prints a Markdown table; of several rounds, in which the ways take turns, the best.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cim.cli.common import parser, run

CATEGORIES = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
SIZES = [(640, 480), (480, 640), (640, 427), (500, 375)]
WAYS = {
    "alone": "the libraries alone",
    "whole": "version 0.1: parse the whole json",
    "first": "first start: parse entry by entry, keep the tags",
    "later": "later start: read the kept tags",
}
READS = 20_000  # records that the loader workers read together


# ---------------------------------------------------------------------- the file


def make_json(path: Path, images: int, annotations: int, megabytes: float) -> None:
    """Write COCO annotations, entry by entry; polygons as long as the size needs, one mask in 100 a crowd's."""
    rng = random.Random(0)
    ids = rng.sample(range(1, 5 * images + 1), images)
    room = (1e6 * megabytes - 320 * images) / max(annotations, 1) - 180  # bytes for a mask
    polygons = [_polygon(rng, room) for _ in range(500)]
    crowd = json.dumps({"counts": [rng.randrange(1, 999) for _ in range(max(3, int(room / 5)))], "size": [480, 640]})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [{"id": 1, "name": "none"}], "images": [')
        for number, image_id in enumerate(ids):
            file.write((", " if number else "") + json.dumps(_image(image_id, rng)))
        file.write('], "annotations": [')
        for number in range(annotations):
            image_id = ids[rng.randrange(images - images // 100)]  # some images have no annotation
            mask = crowd if number % 100 == 99 else rng.choice(polygons)
            file.write((", " if number else "") + _annotation(number, image_id, mask, rng))
        names = [{"supercategory": "thing", "id": i, "name": f"thing {i}"} for i in CATEGORIES]
        file.write(f'], "categories": {json.dumps(names)}}}')


def _polygon(rng: random.Random, room: float) -> str:
    """json of a mask of about so many bytes."""
    return json.dumps([[round(rng.uniform(1, 640), 2) for _ in range(max(6, 2 * int(room / 14.6)))]])


def _image(image_id: int, rng: random.Random) -> dict[str, Any]:
    name, (width, height) = f"{image_id:012d}.jpg", rng.choice(SIZES)
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{image_id:010d}_a04f43d8aa_z.jpg",
        "id": image_id,
    }


def _annotation(number: int, image_id: int, mask: str, rng: random.Random) -> str:
    rest = {
        "area": round(rng.uniform(50, 90000), 4),
        "iscrowd": int(number % 100 == 99),
        "image_id": image_id,
        "bbox": [round(rng.uniform(1, 300), 2) for _ in range(4)],
        "category_id": rng.choice(CATEGORIES),
        "id": 900100000 + number,
    }
    return f'{{"segmentation": {mask}, {json.dumps(rest)[1:]}'


# ---------------------------------------------------------------------- one process


def measure(way: str, root: Path) -> dict[str, Any]:
    """Seconds and MiB of one way, measured in this process."""
    start = time.perf_counter()
    import cim.training.train  # noqa: F401  what a training stage imports

    found: dict[str, Any] = {"imports": time.perf_counter() - start}
    before = memory("VmHWM")
    start, cpu = time.perf_counter(), time.process_time()
    if way != "alone":
        dataset = open_whole(root) if way == "whole" else open_now(root, anew=way == "first")
        found["tagged"] = sum(bool(record.tags) for record in dataset)
        found["digest"] = dataset.digest
    found |= {"opening": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    found["peak"] = memory("VmHWM")
    found["added"] = found["peak"] - before
    found["private"] = found["peak"] - memory("RssFile")  # without the libraries' files, which all processes share
    if way != "alone":
        found["worker"] = worker_memory(dataset)
        found["pickle"] = len(pickle.dumps(dataset)) / 2**20
    return found


def open_now(root: Path, anew: bool):
    """The training split as every stage opens it."""
    from cim.config.build import build_dataset
    from cim.config.schema import DataConfig
    from cim.datasets.tags.cache import cache_path

    if anew:
        cache_path(json_path(root)).unlink(missing_ok=True)
    return build_dataset(DataConfig(dataset="coco", root=str(root), train_split="train2017"), "train2017")


def open_whole(root: Path):
    """As version 0.1: the standard library parses the file as a whole, and every image is an object."""
    from cim.datasets.base import Dataset, Record
    from cim.datasets.tags import coco_json

    path = json_path(root)
    content = coco_json._load(path, None)
    names, numbers = coco_json._categories(content, path)
    tags = coco_json._tags(content, path, {number: index for index, number in enumerate(numbers)})
    records = [
        Record(e["id"], root / "train2017" / e["file_name"], (e["height"], e["width"]), tuple(sorted(tags[e["id"]])))
        for e in content["images"]
    ]
    del content, tags
    return Dataset("coco train2017", names, numbers, tuple(records), path)


def worker_memory(dataset) -> float:
    """MiB that a loader worker has for itself after the workers have read many records."""
    from cim.engine.loader import stream

    items = stream(_Tags(dataset), images_per_update=4, start=0, stop=READS // 4, seed=0, workers=2)
    for _ in range(READS - 8):
        next(items)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return max(memory("Private", f"{child}/smaps_rollup") for child in children)


class _Tags:
    """A loader's source that reads nothing but records."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[int, ...]:
        return self.dataset[index].tags


def memory(name: str, file: str = "self/status") -> float:
    """MiB of Linux's figures that start with ``name``."""
    lines = Path("/proc", file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# ---------------------------------------------------------------------- the table


def json_path(root: Path) -> Path:
    return root / "annotations" / "instances_train2017.json"


def start_process(way: str, root: Path) -> dict[str, Any]:
    """What :func:`measure` says, from a new process."""
    command = [sys.executable, __file__, "--folder", str(root), "--measure", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def report(args: argparse.Namespace, root: Path) -> None:
    """Make the file if it is not there, and print the table."""
    path = json_path(root)
    if not path.is_file():
        make_json(path, args.images, args.annotations, args.megabytes)
    print(f"{args.images:,} images, {args.annotations:,} annotations, {path.stat().st_size / 1e6:,.0f} MB\n")
    print("| | imports, s | opening, s | its CPU, s | peak, MiB | not shared | of opening | a worker's own | pickled |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    rounds = [{way: start_process(way, root) for way in WAYS} for _ in range(args.repeats)]
    for way, label in WAYS.items():
        best = {key: min(found[way][key] for found in rounds) for key in rounds[0][way] if key != "digest"}
        row = f"| {label} | {best['imports']:.1f} |"
        if way == "alone":
            print(f"{row} | | {best['peak']:,.0f} | {best['private']:,.0f} | | | |")
            continue
        row += f" {best['opening']:.1f} | {best['cpu']:.1f} | {best['peak']:,.0f} | {best['private']:,.0f} |"
        print(f"{row} {best['added']:,.0f} | {best['worker']:.0f} | {best['pickle']:.1f} |")
    digests = {found["digest"] for turns in rounds for found in turns.values() if "digest" in found}
    assert len(digests) == 1, "the ways found different records"


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/coco_start.py --folder out --repeats 4")
    target.add_argument("--images", type=int, default=118_000)
    target.add_argument("--annotations", type=int, default=830_000)
    target.add_argument("--megabytes", type=float, default=760, help="size of the json, about")
    target.add_argument("--folder", type=Path, help="where it lies, or goes (default: a temporary folder)")
    target.add_argument("--repeats", type=int, default=3, help="rounds")
    target.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = get_parser().parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder)))
    elif args.folder:
        report(args, args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(args, Path(folder))


if __name__ == "__main__":
    sys.exit(run(main))
