"""Training step by parts, the loader, and memory as the data set grows; all data are synthetic.

python benchmarks/training.py
python benchmarks/training.py --device cuda --precision bf16 --configs resnet50_voc hrnet48_voc --proposals 1000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cim.cli.common import run
from cim.config.build import build_criterion, build_model
from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.config.schema import Config
from cim.core.regions import RegionSet
from cim.core.types import Sample
from cim.datasets.base import Dataset, Record
from cim.engine.fit import FitOptions, Schedule, fit
from cim.engine.loader import stream
from cim.engine.run_logger import memory_mb, read_log
from cim.models.cim_net import param_groups
from cim.models.mask_fuse import MaskFuse
from cim.models.roi_align import roi_align
from cim.storage.published import open_regions
from cim.storage.store import Store
from cim.training.samples import overlaps_of
from cim.training.source import CIMSource
from cim.training.train import CIMStep

CLASSES, SIZE, PHOTOS = 20, (375, 500), 20


def make_photos(root: Path, proposals: int) -> None:
    """Noise photos with random ellipses as proposals."""
    rng = np.random.default_rng(0)
    store = Store.create(root / "regions", "regions", {"maker": "benchmark"})
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    for number in range(PHOTOS):
        photo = rng.integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(photo).resize(SIZE[::-1]).save(root / f"{number}.jpg")
        ellipses = zip(rng.uniform(0, 1, (proposals, 2)) * SIZE, rng.exponential(50, (proposals, 2)) + 8)
        masks = np.array([((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 for (cy, cx), (ry, rx) in ellipses])
        store.save_regions(number, RegionSet.from_masks(masks))


def make_source(root: Path, config: Config, records: int = PHOTOS) -> CIMSource:
    """``records`` records over the same few photos."""
    entries = tuple(Record(i % PHOTOS, root / f"{i % PHOTOS}.jpg", SIZE, (i % CLASSES,)) for i in range(records))
    classes = tuple(f"c{i}" for i in range(CLASSES))
    dataset = Dataset("synthetic", classes, tuple(range(1, CLASSES + 1)), entries)
    return CIMSource(dataset, open_regions(root / "regions"), None, config.train.sides)


class Clock:
    """Seconds by part; waits for the device at every mark."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts, self.last = device, defaultdict(list), 0.0

    def start(self) -> None:
        self._wait()
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.parts[part].append(now - self.last)
        self.last = now

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def one_step(model, criterion, sample: Sample, generator, clock: Clock | None, kind) -> None:
    """Forward, mining, losses, backward of one image, marked on the clock."""
    mark = clock.mark if clock else lambda part: None
    with torch.autocast(sample.image.device.type, dtype=kind, enabled=kind is not None):
        features = model.features(sample.image)
        mark("trunk")
        if clock:  # once more by itself: the head below contains it
            with torch.no_grad():
                if isinstance(model.roi_head, MaskFuse):
                    roi_align(features, sample.boxes, model.roi_head.stride)
            mark("RoIAlign")
        scores = model.predict(model.head(features, sample))
        mark("head")
        losses, _ = criterion(scores, sample, overlaps_of(sample), generator)
    mark("mining + losses")
    sum(losses.values()).backward()
    mark("backward")


def measure_step(config: Config, source: CIMSource, side: int, device: torch.device, precision: str, steps: int) -> str:
    """A table row: milliseconds per image by part, images per second, memory, share of the arithmetic floor."""
    model = build_model(config, CLASSES).to(device).train()
    criterion = build_criterion(config.mining, config.loss)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    sample = source.sample_at(0, side, False).to(device)
    generator = torch.Generator(device=device).manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        one_step(model, criterion, sample, generator, None, kind)
    clock = Clock(device)
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        clock.start()
        one_step(model, criterion, sample, generator, clock, kind)
    ms = {part: 1000 * float(np.median(values)) for part, values in clock.parts.items()}
    ms["head"] -= ms["RoIAlign"]
    total = sum(ms.values())
    floor = counter.get_total_flops() / arithmetic_rate(device, kind) * 1000 if device.type == "cuda" else 0
    cells = [f"{ms[part]:.0f}" for part in ("trunk", "RoIAlign", "head", "mining + losses", "backward")]
    what = f"{config.name}, side {side}, N = {len(sample.boxes)}, {precision}"
    share = f"{floor / total:.0%}" if floor else "-"
    numbers = f"{total:.0f} | {1000 / total:.2f} | {share} | {memory_mb(device):.0f}"
    return f"| {what} | {' | '.join(cells)} | {numbers} |"


def arithmetic_rate(device: torch.device, kind: torch.dtype | None) -> float:
    """FLOP per second of a large matrix product, the best this device does in practice."""
    size = 8192
    a = torch.randn(size, size, device=device, dtype=kind or torch.float32)
    clock = Clock(device)
    for _ in range(5):
        clock.start()
        a @ a
        clock.mark("product")
    return 2 * size**3 / min(clock.parts["product"])


def measure_wait(config: Config, source: CIMSource, device: torch.device, precision: str, workers: int) -> str:
    """Share of the time a short run of the real engine waits for data."""
    model = build_model(config, CLASSES)
    groups = param_groups(model, lr=1e-5, bias_lr_factor=2, momentum=0.9, weight_decay=5e-4)
    with tempfile.TemporaryDirectory() as folder:
        final = fit(
            model,
            source,
            CIMStep(build_criterion(config.mining, config.loss)),
            param_groups=groups,
            schedule=Schedule(4, 10),
            options=FitOptions(precision=precision, workers=workers, log_every=2),
            run_dir=Path(folder),
            device=device,
            meta={"kind": "benchmark"},
        )
        log = read_log(final.parent / "log.jsonl")[1:]  # the first line holds the workers' start
    wait, rate = (float(np.mean([line[key] for line in log])) for key in ("data_wait", "images_per_second"))
    return f"| {config.name}, {precision}, {workers} workers | {wait:.1%} | {rate:.2f} |"


def measure_memory(root: Path, config: str, records: int) -> None:
    """Print MiB of this process and of its loader's workers after 100 samples (run in a process of its own)."""
    source = make_source(root, load_config(config), records)
    items = stream(source, images_per_update=4, start=0, stop=25, seed=0, workers=2)
    for _ in range(99):
        next(items)
    workers = [share_mb(int(p)) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    print(f"| {records:,} | {share_mb(os.getpid()):.0f} | {max(workers):.0f} |", flush=True)


def share_mb(pid: int) -> float:
    """Memory of a process, what it shares divided by the number that share it, MiB (Linux's PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def get_parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--configs", nargs="+", default=["folder_mobilenet"])
    result.add_argument("--proposals", type=int, default=200)
    result.add_argument("--sides", type=int, nargs="+", help="long sides of the step's rows (default: the smallest)")
    result.add_argument("--device", default="auto")
    result.add_argument("--precision", nargs="+", default=["fp32"])
    result.add_argument("--steps", type=int, default=5)
    result.add_argument("--workers", type=int, default=1)
    result.add_argument("--parts", nargs="+", choices=list(TABLES), default=list(TABLES))
    result.add_argument("--memory-of", nargs=2, metavar=("ROOT", "RECORDS"), help=argparse.SUPPRESS)
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.memory_of:
        measure_memory(Path(args.memory_of[0]), args.configs[0], int(args.memory_of[1]))
        return
    device = resolve_device(args.device)
    configs = [load_config(name, ["model.weights=none"]) for name in args.configs]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photos(root, args.proposals)
        for part in args.parts:
            TABLES[part](args, configs, root, device)


def step_table(args: argparse.Namespace, configs: list[Config], root: Path, device: torch.device) -> None:
    parts = "trunk | RoIAlign | head | mining + losses | backward"
    print(f"| ms per image | {parts} | all | images/s | of floor | MiB |\n|---|" + "--:|" * 9)
    for config in configs:
        source = make_source(root, config)
        for precision in args.precision:
            for side in args.sides or [min(config.train.sides)]:
                print(measure_step(config, source, side, device, precision, args.steps), flush=True)


def loader_table(args: argparse.Namespace, configs: list[Config], root: Path, device: torch.device) -> None:
    print("\n| real engine | waits for data | images/s |\n|---|--:|--:|")
    for config in configs:
        for precision in args.precision:
            wait = measure_wait(config, make_source(root, config), device, precision, args.workers)
            print(wait, flush=True)


def memory_table(args: argparse.Namespace, configs: list[Config], root: Path, device: torch.device) -> None:
    print("\n| records | training process, MiB | a worker, MiB |\n|--:|--:|--:|", flush=True)
    for records in (100, 1_000, 10_000, 100_000):
        command = [sys.executable, __file__, "--configs", args.configs[0], "--memory-of", str(root), str(records)]
        subprocess.run(command, check=True)


TABLES = {"step": step_table, "loader": loader_table, "memory": memory_table}


if __name__ == "__main__":
    sys.exit(run(main))
