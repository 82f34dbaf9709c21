"""IoU and containment of all pairs of proposals: RegionSet against a per-pair loop and against pycocotools.

Prints a markdown table of milliseconds and one of bytes on disk. Times are this process's CPU time (so that other
programs on the machine count little), the best of several runs. The loop is measured on a sample of pairs and
extrapolated. N = 200 uses real COB proposals where they are found, larger N synthetic nested regions: a tree over
the cells of a warped Voronoi diagram.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from scipy.io import savemat
from scipy.spatial import cKDTree

from cim.cli.common import parser, run
from cim.core.regions import RegionSet, load_members, overlaps
from cim.proposals.cob import read_cob

ROOT = Path(__file__).resolve().parent.parent
SIZE = (375, 500)


def nested_masks(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """bool [count, H, W], nested regions: every node of a binary tree over count // 2 + 1 cells."""
    rng = np.random.default_rng(seed)
    leaves = count // 2 + 1
    points = rng.random((leaves, 2)) * size
    yx = np.stack(np.mgrid[: size[0], : size[1]], -1).astype(float)
    warp = np.stack([np.sin(yx[..., 1] / 7), np.sin(yx[..., 0] / 5)], -1) * 3  # borders as wavy as real ones
    cells = cKDTree(points).query(yx + warp)[1]
    members = np.zeros((2 * leaves - 1, leaves), bool)
    waiting, row = [np.arange(leaves)], 0
    while waiting:
        node = waiting.pop()
        members[row, node], row = True, row + 1
        if len(node) > 1:
            order = node[np.argsort(points[node, np.ptp(points[node], axis=0).argmax()])]
            waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return np.take(members[:count], cells, axis=1)


def by_loop(masks: np.ndarray, pairs: np.ndarray) -> list[tuple[float, float]]:
    """One pair at a time, int [M, 2]."""
    result = []
    for i, j in pairs:
        inter = np.logical_and(masks[i], masks[j]).sum()
        result.append((inter / np.logical_or(masks[i], masks[j]).sum(), inter / masks[j].sum()))
    return result


def by_pycocotools(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From uint8 [H, W, N], column-major as pycocotools wants it. Crowd IoU is intersection / first area."""
    rles = coco_mask.encode(columns)
    return coco_mask.iou(rles, rles, [0] * len(rles)), coco_mask.iou(rles, rles, [1] * len(rles)).T


def from_store(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return overlaps(*load_members(path))


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def measure(name: str, masks: np.ndarray, repeats: int, sample: int, folder: Path) -> tuple[list[str], list[str]]:
    """One row of the table of times and one of the table of bytes, as text."""
    stored, mat = folder / f"{len(masks)}.npz", folder / f"{len(masks)}.mat"
    regions = RegionSet.from_masks(masks)
    regions.save(stored)
    savemat(mat, {"maskmat": _cells(masks)}, do_compression=True)
    columns = np.asfortranarray(masks.transpose(1, 2, 0)).view(np.uint8)
    theirs, ours = by_pycocotools(columns), from_store(stored)
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    pairs = np.random.default_rng(0).integers(0, len(masks), (sample, 2))
    loop = best_seconds(lambda: by_loop(masks, pairs), 3) / sample * len(masks) ** 2
    coco = best_seconds(lambda: by_pycocotools(columns), repeats)
    fresh = best_seconds(lambda: RegionSet.from_masks(masks).overlaps(), repeats)
    kept = best_seconds(lambda: from_store(stored), repeats)
    count, atoms = regions.members.shape
    times = [f"{1e3 * value:,.1f}" for value in (loop, coco, fresh, kept)]
    ratios = [f"{value:,.0f}x" for value in (loop / fresh, loop / kept)]
    ratios += [f"{value:,.1f}x" for value in (coco / fresh, coco / kept)]
    size = [stored.stat().st_size, mat.stat().st_size, 2 * 2 * count**2]
    return [name, str(count), str(atoms), *times, *ratios], [name, str(count), *(f"{n / 1024:,.0f}" for n in size)]


def _cells(masks: np.ndarray) -> np.ndarray:
    cells = np.empty((len(masks), 1), object)
    for index, mask in enumerate(masks):
        cells[index, 0] = mask.astype(np.uint8)
    return cells


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "OMP_NUM_THREADS=1 python benchmarks/regions.py")
    result.add_argument(
        "--mat", type=Path, nargs="*", default=sorted((ROOT.parent / "shared/reference").glob("**/*.mat"))
    )
    result.add_argument("--synthetic", type=int, nargs="*", default=[1000, 2000], help="numbers of nested regions")
    result.add_argument("--repeats", type=int, default=9)
    result.add_argument("--sample", type=int, default=500, help="pairs measured for the loop")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    sets = [(path.stem, lambda path=path: read_cob(path).masks()) for path in args.mat]
    sets += [("nested", lambda count=count: nested_masks(count)) for count in ([] if args.mat else [200])]
    sets += [("nested", lambda count=count: nested_masks(count)) for count in args.synthetic]
    times, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in sets:
            one, other = measure(name, make(), args.repeats, args.sample, Path(folder))
            times.append(one)
            sizes.append(other)
    header = [
        "masks",
        "N",
        "atoms",
        "loop, extrapolated (ms)",
        "pycocotools (ms)",
        "from masks (ms)",
        "from store (ms)",
    ]
    gains = ["masks vs loop", "store vs loop", "masks vs pycocotools", "store vs pycocotools"]
    print(table([*header, *gains], times), end="\n\n")
    print(table(["masks", "N", "store (KiB)", ".mat (KiB)", "two float16 matrices (KiB)"], sizes))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
