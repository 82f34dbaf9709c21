"""Peak memory of `cim run`, stage by stage, with few photos and with many: it must not grow with their number.

Draws small photos of two classes, runs the whole flow of the light config on them in processes of its own (few
proposals, few updates, nothing downloaded), and looks at all of its processes several times a second. MiB are what they
hold for themselves (anonymous and shared memory, proportional shares): pages of files, which Linux drops when
memory is short, are not counted. Prints a Markdown table with a row for each stage. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from cim.cli.common import parser, run

ROOT = Path(__file__).resolve().parent.parent
SIZE = (64, 56)  # width, height of a photo, pixels
CLASSES = ("box", "disc")
PAUSE = 0.5  # seconds between two looks, at least
SMALL = [
    *("proposals.max_proposals=20", "proposals.deep_features=false", "prm.weights=none", "prm.image_size=64"),
    *("model.weights=none", "train.sides=[64]", "train.epochs=null", "train.updates=30", "train.step=[20]"),
    *("infer.sides=[64]", "refine.weights=none", "refine.epochs=null", "refine.updates=10", "refine.step=[5]"),
    *("refine.min_side=64", "refine.max_side=80"),
]
HEADING = re.compile(r"^\[\d+/\d+\] (.+?)(: done|: \d+ s)?$")


def draw(folder: Path, count: int, val: int) -> None:
    """``folder``/train, ``folder``/val, a csv of tags for both and the boxes of the second as a COCO json."""
    for split, number in (("train", count), ("val", val)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines, images, annotations = ["image,labels"], [], []
        for index in range(number):
            rng, name, kind = np.random.default_rng([index, number]), f"{index:06d}.png", index % 2
            photo = Image.fromarray(rng.integers(0, 60, (*SIZE[::-1], 3), np.uint8))
            x, y = int(rng.integers(4, 34)), int(rng.integers(4, 30))
            painter = ImageDraw.Draw(photo)
            (painter.ellipse if kind else painter.rectangle)((x, y, x + 25, y + 21), (40, 220, 40 + 180 * kind))
            photo.save(folder / split / name, compress_level=1)
            lines.append(f"{name},{CLASSES[kind]}")
            width, height = SIZE
            images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
            outline = [[x, y, x + 26, y, x + 26, y + 22, x, y + 22]]
            box = {"bbox": [x, y, 26, 22], "area": 572, "segmentation": outline, "iscrowd": 0}
            annotations.append({"id": index + 1, "image_id": index + 1, "category_id": kind + 1, **box})
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def own_memory(pid: int) -> float:
    """MiB that a process holds, its share of what it shares; pages of files are not counted."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    wanted = ("Pss_Anon:", "Pss_Shmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(wanted)) / 2**10


def measure(folder: Path, count: int, val: int) -> dict[str, tuple[float, float]]:
    """(peak MiB, seconds) of every stage of `cim run` on so many photos."""
    draw(folder, count, val)
    words = [sys.executable, "-m", "cim", "run", "--images", folder / "train", "--tags", folder / "train.csv"]
    words += ["--val", folder / "val", "--val-masks", folder / "val.json", "--output", folder / "run"]
    words += ["--device", "cpu", "--set", *SMALL]
    began: dict[str, float] = {}
    peaks: dict[str, float] = defaultdict(float)
    with open(folder / "told.txt", "wb") as told:
        process = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=told, stderr=subprocess.PIPE)
        assert process.stderr is not None
        began["before the first stage"] = time.perf_counter()
        listener = threading.Thread(target=_listen, args=(process.stderr, told, began))
        listener.start()
        try:
            while process.poll() is None:
                stage, used = list(began)[-1], time.process_time()
                peaks[stage] = max(peaks[stage], sum(map(own_memory, tree(process.pid))))
                time.sleep(max(PAUSE, 20 * (time.process_time() - used)))  # looking takes a twentieth of a core at most
        finally:
            process.terminate()
        listener.join()
    if process.returncode:
        raise RuntimeError((folder / "told.txt").read_text(errors="replace")[-2000:])
    ends = [*list(began.values())[1:], time.perf_counter()]
    return {stage: (peaks[stage], end - start) for (stage, start), end in zip(began.items(), ends)}


def _listen(lines: IO[bytes], told: IO[bytes], began: dict[str, float]) -> None:
    """Note when each stage is announced."""
    for line in lines:
        told.write(line)
        match = HEADING.match(line.decode(errors="replace").strip())
        if match and not match[2]:
            began[match[1]] = time.perf_counter()


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/run_memory.py --photos 100 5000")
    target.add_argument("--photos", type=int, nargs=2, default=[100, 5000], help="numbers of training photos")
    target.add_argument("--val", type=int, default=20, help="validation photos, in both runs")
    target.add_argument("--folder", type=Path, help="where the files go and stay (default: a temporary folder)")
    return target


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 when the peak of the whole run grows by more than 15 %."""
    args = get_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        few, many = (
            measure(folder / str(count), count, args.val) for count in tqdm(args.photos, desc="runs", unit="run")
        )
    few["the whole run"], many["the whole run"] = (
        (max(mib for mib, _ in one.values()), sum(seconds for _, seconds in one.values())) for one in (few, many)
    )
    print(f"| peak, MiB | {args.photos[0]:,} photos | {args.photos[1]:,} photos | ratio | s | s |")
    print("|---|--:|--:|--:|--:|--:|")
    for stage, (low, seconds) in few.items():
        high, longer = many[stage]
        print(f"| {stage} | {low:.0f} | {high:.0f} | {high / max(low, 1):.2f} | {seconds:.0f} | {longer:.0f} |")
    return int(many["the whole run"][0] > 1.15 * few["the whole run"][0])


if __name__ == "__main__":
    sys.exit(run(main))
