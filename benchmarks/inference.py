"""Inference per image and pass, split into reading, trunk, RoIAlign, head and selection.

Prints a Markdown table, one line per long side and one for all passes of an image. The network is random and the
photo drawn: time does not depend on what is in them. On a CPU it is CPU time, which other programs on the machine do
not lengthen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from cim.cli.common import parser, run
from cim.config.build import build_model
from cim.config.device import resolve_device
from cim.config.schema import Config
from cim.core.regions import RegionSet
from cim.datasets.base import Record
from cim.inference.scores import mirrored, prepare_passes, score_passes
from cim.inference.selection import select
from cim.models.mask_fuse import MaskFuse
from cim.models.roi_align import roi_align

SIZE = (375, 500)
PARTS = ("read and resize", "trunk", "RoIAlign", "head", "predict")


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/inference.py --backbone resnet50 --device cuda")
    target.add_argument("--backbone", default="resnet50")
    target.add_argument("--hidden", type=int, default=4096, help="width of the fully connected layers")
    target.add_argument("--proposals", type=int, default=300)
    target.add_argument("--classes", type=int, default=20)
    target.add_argument("--sides", type=int, nargs="+", default=[480, 576, 688, 864, 1200])
    target.add_argument("--repeats", type=int, default=3)
    target.add_argument("--device", default="auto")
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = get_parser().parse_args(argv)
    device = resolve_device(args.device)
    config = Config(name="b", work_dir="b", model={"backbone": args.backbone, "weights": "none", "hidden": args.hidden})
    model = build_model(config, args.classes).to(device).eval()
    regions = random_regions(args.proposals)
    print(
        f"{args.backbone}, {args.proposals} proposals, {args.classes} classes, {device}; ms, best of {args.repeats}\n"
    )
    print("| long side | " + " | ".join(PARTS) + " | sum |\n" + "|---" * (len(PARTS) + 2) + "|")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))
        record = Record(1, path, SIZE)
        for side in args.sides:
            runs = [one_pass(model, record, regions, side, args.classes, device) for _ in range(args.repeats)]
            times = np.min(runs, 0)
            print(f"| {side} | " + " | ".join(f"{value:.0f}" for value in times) + f" | {times.sum():.0f} |")
        start = _now()
        passes = prepare_passes(record, regions, args.classes, args.sides)
        read = _now() - start
        start = _now()
        scores = score_passes(model, passes, len(regions), args.classes, flip=True, device=device)["scores"]
        network = _now() - start
    start = _now()
    mirror = [mirrored(sample) for sample in passes]
    flips = _now() - start
    assert len(mirror) == len(passes)
    selection = [timed(lambda nms=nms: select(fresh(regions), scores, 1, nms=nms)) for nms in ("box", "mask")]
    print(
        f"\nper image, {2 * len(args.sides)} passes: reading and resizing {1000 * read:.0f} ms (once, shared by both "
        f"mirror images), mirroring {1000 * flips:.0f} ms, network {1000 * network:.0f} ms, selection with run lengths "
        f"{selection[0]:.0f} ms (box NMS) or {selection[1]:.0f} ms (mask NMS)"
    )


@torch.inference_mode()
def one_pass(model, record: Record, regions: RegionSet, side: int, classes: int, device: torch.device) -> list[float]:
    """Milliseconds of every part of one pass."""
    times: list[float] = []

    @contextmanager
    def clock() -> Iterator[None]:
        start = _now()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (_now() - start))

    with clock():
        sample = prepare_passes(record, regions, classes, [side])[0].to(device)
    with clock():
        features = model.features(sample.image)
    with clock():
        if isinstance(model.roi_head, MaskFuse):
            roi_align(features, sample.boxes, model.roi_head.stride, model.roi_head.backend)
    with clock():
        hidden = model.head(features, sample)
    times[-1] -= times[-2]  # the head aligns again
    with clock():
        model.predict(hidden)
    return times


def _now() -> float:
    """Seconds: the process's own on a CPU; real ones where a GPU works beside it."""
    return time.perf_counter() if torch.cuda.is_initialized() else time.process_time()


def timed(function: Callable[[], object], repeats: int = 5) -> float:
    """Best of some runs, milliseconds."""
    values = []
    for _ in range(repeats):
        start = _now()
        function()
        values.append(1000 * (_now() - start))
    return min(values)


def fresh(regions: RegionSet) -> RegionSet:
    """The regions without anything computed before."""
    return RegionSet(regions.atoms, regions.members, regions.scores)


def random_regions(count: int) -> RegionSet:
    """Unions of neighbouring cells of a picture of 375 x 500."""
    rng = np.random.default_rng(0)
    rows, columns = np.arange(SIZE[0]) // 16, np.arange(SIZE[1]) // 16
    atoms = rows[:, None] * (columns[-1] + 1) + columns
    y, x = np.divmod(np.arange(atoms.max() + 1), columns[-1] + 1)
    centre, radius = rng.random((count, 2, 1)) * np.array([[24], [32]]), rng.uniform(1.5, 10, (count, 1))
    members = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 <= radius**2
    return RegionSet(atoms.astype(np.int32), members)


if __name__ == "__main__":
    sys.exit(run(main))
