"""Mining: the vectorised miner beside loops over proposals, same labels, same run.

python benchmarks/mining.py
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from cim.cli.common import run
from cim.core.regions import Overlaps, overlaps
from cim.mining.miners import CIMMiner

CLASSES, PRESENT = 20, 2


def scene(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, Overlaps]:
    """s, d [N, C], tags [C] and overlaps of N boxes of all sizes, as atoms of a 32 x 32 raster."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 28, (count, 2))
    high = low + rng.exponential(6, (count, 2)) + 2
    at = np.arange(32) + 0.5
    x, y = (((low[:, i, None] < at) & (at < high[:, i, None])) for i in (0, 1))
    members = (y[:, :, None] & x[:, None]).reshape(count, -1).astype(np.float32)
    s, d = rng.random((2, count, CLASSES), np.float32)
    tags = np.zeros(CLASSES, np.float32)
    tags[:PRESENT] = 1
    return s, d, tags, overlaps(members, np.full(members.shape[1], 180.0, np.float32))


def loop_mine(s, d, tags, iou, containment, branch):
    """The same steps, one Python step per proposal, as one would write them first.

    Takes NumPy arrays or torch tensors; gives class_ids, integrity and weight as lists.
    """
    count, t_cls, t_iou = len(iou), 0.25 + 0.1 * branch, 0.5 + 0.1 * branch
    big = [bool((containment[i] > 0.85).sum() >= 0.9 * count) for i in range(count)]
    owner: dict[int, int] = {}
    for c in [c for c, tag in enumerate(tags.tolist()) if tag]:
        kept: list[int] = []
        for j in sorted(range(count), key=(-s[:, c]).tolist().__getitem__)[: math.ceil(0.1 * count)]:
            if not kept or bool((iou[j, kept] < t_cls).all()):
                kept.append(j)
        for j in kept:
            around = (containment[:, j] > 0.85).nonzero()
            candidates = [i for i in (around[0] if isinstance(around, tuple) else around[:, 0]).tolist() if not big[i]]
            if candidates:
                i = candidates[int(d[candidates, c].argmax())]
                if i not in owner or s[i, c] * d[i, c] > s[i, owner[i]] * d[i, owner[i]]:
                    owner[i] = c
    truths = sorted((c, i) for i, c in owner.items())
    at = [i for _, i in truths]
    class_ids, integrity, weight = [-1] * count, [0.0] * count, [0.0] * count
    for i in range(count):
        best = int(iou[i, at].argmax())
        c, g = truths[best]
        overlap = iou[i, g]
        if overlap > 0:
            class_ids[i] = c + 1 if overlap >= t_cls else 0
            integrity[i], weight[i] = float(overlap > t_iou), float(s[g, c] * d[g, c])
    return class_ids, integrity, weight


def median_ms(call: Callable[[], object], repeats: int, wait: Callable[[], object] = lambda: None) -> float:
    """Median wall time of ``call`` after one warm-up, in ms."""
    call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def measure(count: int, device: str, repeats: int) -> str:
    """One table row: all three branches of one image; NumPy's loop always runs on the CPU."""
    arrays = scene(count)
    tags = torch.from_numpy(arrays[2])  # on the host, as in training
    s, d, *pairs = (torch.from_numpy(a).to(device) for a in (*arrays[:2], *arrays[3]))
    over = Overlaps(*pairs)
    exact, full = CIMMiner(anti_noise=False), CIMMiner()
    generator = torch.Generator(device).manual_seed(0)
    seeds = 0
    for k in range(3):
        ours = exact(s, d, tags, over, k)
        seeds += int(ours.seeds)
        for class_ids, integrity, weight in (loop_mine(s, d, tags, *over, k), loop_mine(*arrays[:3], *arrays[3], k)):
            assert ours.class_ids.tolist() == class_ids and ours.integrity.tolist() == integrity
            assert np.allclose(ours.weight.cpu(), weight)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    fast = median_ms(lambda: [full(s, d, tags, over, k, generator) for k in range(3)], repeats, wait)
    slow = median_ms(lambda: [loop_mine(s, d, tags, *over, k) for k in range(3)], 3, wait)
    numpy = median_ms(lambda: [loop_mine(*arrays[:3], *arrays[3], k) for k in range(3)], 3)
    times = [f"{fast:.1f}", f"{slow:.0f} ({slow / fast:.0f}x)", f"{numpy:.0f} ({numpy / fast:.0f}x)"]
    return f"| {device} | {count} | {seeds} | {' | '.join(times)} |"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example:\n  python benchmarks/mining.py"
    )
    parser.add_argument("--proposals", type=int, nargs="+", default=[200, 1000, 2000], metavar="N")
    parser.add_argument("--repeats", type=int, default=20)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    print("| device | N | seeds | ours, ms | loop, PyTorch, ms | loop, NumPy, ms |")
    print("|---|---|---|---|---|---|")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for count in args.proposals:
            print(measure(count, device, args.repeats), flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
