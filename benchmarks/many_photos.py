"""Starting again on a data set of COCO's size whose stages are all done: what is there is listed, nothing is made.

Writes a COCO json of 118,000 images, a small photo for each (links to a few), and stores of proposals, first labels and
scores with a file each: small ones, since a start does not read them. Then every stage is begun again in a process of
its own, as its command begins it, the files warm in the page cache: seconds and memory beyond the libraries and the
data set. A second process of each, under strace where there is one, tells how often files were opened and asked for.
With --packed the stores are turned into one file each before (cim pack), else into many (cim pack --undo), which
comes first in the table where there is something to do. Prints a Markdown table; of several rounds the best.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from coco_start import json_path, make_json, memory

from cim.cli.common import parser, run

SPLIT = "train2017"
LINKS = 20_000  # names that one photo gets; file systems allow some 65,000
OPENS, STATS = {"open", "openat"}, {"stat", "lstat", "statx", "newfstatat", "fstatat64"}
WAYS = {
    "pack": "`cim pack` of all three stores",
    "undo": "`cim pack --undo` of all three",
    "nothing": "the libraries and the data set alone",
    "list": "which photos have proposals",
    "proposals": "`cim proposals` again",
    "labels": "`cim labels` again",
    "training": "`cim train`, up to its first sample",
    "scores": "`cim score` again, detections too",
    "check": "`cim check --for training`",
}


# ---------------------------------------------------------------------- the files


def settings(root: Path):
    """The config of the data set; first labels are made from points, which needs no network."""
    from cim.config.schema import AssignConfig, Config, DataConfig, ProposalConfig

    data = DataConfig(dataset="coco", root=str(root), train_split=SPLIT, eval_split="val2017")
    return Config(
        work_dir=str(root / "run"),
        data=data,
        proposals=ProposalConfig(deep_features=False),
        assign=AssignConfig(points=str(root / "points")),
    )


def make(root: Path, images: int) -> None:
    """Photos, settings, stores and detections."""
    from cim.cli.learn.labels import label_provenance
    from cim.config.build import build_dataset, proposer_options
    from cim.config.loading import save_config
    from cim.config.run_paths import RunPaths
    from cim.inference.detections import Selection, detect
    from cim.proposals.options import provenance
    from cim.storage.published import open_regions
    from cim.storage.store import Store

    make_json(json_path(root), images, images * 2, images * 1e-3)
    config = settings(root)
    (root / "points").mkdir()
    save_config(config, root / "config.yaml")
    dataset, paths = build_dataset(config.data, SPLIT), RunPaths(config)
    _link_photos(dataset, root)
    regions = {size: _regions(size) for size in {record.size for record in dataset}}
    count, classes = len(next(iter(regions.values()))), len(dataset.classes)
    store = Store.create(paths.proposals(SPLIT), "regions", provenance(proposer_options(config.proposals)))
    _fill(store, dataset, lambda target, record: target.save_regions(record.image_id, regions[record.size]))
    made_from = label_provenance(config.assign, {"points": "points"}, open_regions(store.root), None)
    numbers = np.arange(count)
    labels = Store.create(paths.first_labels, "clusters", made_from)
    _fill(labels, dataset, lambda target, record: target.save(record.image_id, class_ids=numbers, cluster=numbers))
    none = np.zeros((count, classes), np.float32)
    scores = Store.create(paths.detections(SPLIT), "detections", {})
    _fill(scores, dataset, lambda target, record: target.save(record.image_id, scores=none, mil=none))
    with patch("cim.inference.detections.select_dataset", return_value=iter(())):  # what is selected is not the point
        detect(dataset, open_regions(store.root), scores, scores.root / "results.json", Selection.of(config.infer))
    begin("labels", config, dataset, root)  # judges them, which reads every one, and keeps the verdict


def _link_photos(dataset, root: Path) -> None:
    from PIL import Image

    made: dict[tuple[int, int], int] = {}
    for record in dataset:
        number = made[record.size] = made.get(record.size, -1) + 1
        height, width = record.size
        source = root / f"photo_{height}_{width}_{number // LINKS}.jpg"
        if not source.exists():
            record.path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (width, height)).save(source)
        os.link(source, record.path)


def _regions(size: tuple[int, int]):
    from cim.core.regions import RegionSet

    masks = np.zeros((2, *size), bool)
    masks[0, : size[0] // 2] = masks[1, :, : size[1] // 2] = True
    return RegionSet.from_masks(masks)


def _fill(store, dataset, save: Callable[[Any, Any], None]) -> None:
    """A file of each photo: those of one size are copies of the first."""
    first: dict[tuple[int, int], bytes] = {}
    for record in dataset:
        path = store.path(record.image_id)
        if record.size not in first:
            save(store, record)
            first[record.size] = path.read_bytes()
        path.write_bytes(first[record.size])


# ---------------------------------------------------------------------- one process


def measure(way: str, root: Path) -> dict[str, Any]:
    """Seconds and MiB of one start, measured in this process."""
    import cim.cli.learn.labels
    import cim.cli.prepare.proposals
    import cim.inference.scores
    import cim.training.train  # noqa: F401
    from cim.config.build import build_dataset

    config = settings(root)
    dataset = build_dataset(config.data, SPLIT)
    tagged = sum(bool(record.tags) for record in dataset)
    before, start, used = memory("VmHWM"), time.perf_counter(), cpu()
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        begin(way, config, dataset, root)
    seconds, added = time.perf_counter() - start, memory("VmHWM") - before
    return {"seconds": seconds, "cpu": cpu() - used, "added": added, "tagged": tagged}


def cpu() -> float:
    """Seconds of processor time, those of ended children among them."""
    spent = os.times()
    return sum(spent[:4])


def begin(way: str, config, dataset, root: Path) -> None:
    """One stage, all of whose work is done."""
    from cim.cli.main import call
    from cim.config.run_paths import RunPaths
    from cim.storage.published import having_proposals, open_regions
    from cim.storage.store import Store

    paths, name = RunPaths(config), str(root / "config.yaml")
    stores = [str(path) for path in (paths.proposals(SPLIT), paths.first_labels, paths.detections(SPLIT))]
    regions = open_regions(paths.proposals(SPLIT))
    if way in ("pack", "undo"):
        assert not call(["pack", *stores, *(["--undo"] if way == "undo" else [])])
    elif way == "list":
        assert len(having_proposals(dataset, regions)) == len(dataset)
    elif way == "proposals":
        assert not call(["proposals", name, "--workers", "1"])
    elif way == "labels":
        assert not call(["labels", name, "--workers", "1"])
    elif way == "training":
        from cim.training.artefacts import check_images, missing_stages, open_artefacts

        assert not missing_stages(config)
        check_images(dataset, *open_artefacts(config))
    elif way == "scores":
        from torch import nn

        from cim.inference.detections import Selection, detect
        from cim.inference.scores import score_dataset

        store = Store.open(paths.detections(SPLIT), "detections")
        results, able = store.root / "results.json", having_proposals(dataset, regions)
        made = results.stat().st_mtime_ns
        score_dataset(nn.Identity(), able, regions, store, config.infer)
        detect(able, regions, store, results, Selection.of(config.infer))
        assert results.stat().st_mtime_ns == made
    elif way == "check":
        assert not call(["check", name, "--for", "training", "--workers", "2"])


# ---------------------------------------------------------------------- the table


def start_process(way: str, root: Path) -> dict[str, Any]:
    """What :func:`measure` says, from a new process."""
    return json.loads(_run([sys.executable, __file__, "--folder", str(root), "--measure", way]))


def count_calls(way: str, root: Path) -> dict[str, int] | None:
    """How often a process of that start opened files ("opens") and asked for them ("stats"); None without strace."""
    if not shutil.which("strace"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder, "summary")
        names = ",".join(f"?{name}" for name in OPENS | STATS)
        tracer = ["strace", "-f", "--seccomp-bpf", "-c", "-e", f"trace={names}", "-o", str(summary)]
        _run([*tracer, sys.executable, __file__, "--folder", str(root), "--measure", way])
        rows = [line.split() for line in summary.read_text().splitlines()]
    calls = {row[-1]: int(row[3]) for row in rows if len(row) > 4 and row[3].isdigit()}
    sums = (("opens", OPENS), ("stats", STATS))
    return {what: sum(calls.get(name, 0) for name in wanted) for what, wanted in sums}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def report(args: argparse.Namespace, root: Path) -> None:
    """Make the files if they are not there, and print the table."""
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        make(root, args.images)
        (root / "made").touch()
    packed = any((root / "run").glob("*/pack.sqlite"))
    print("| | seconds | of CPU | MiB | opens | stats |\n|---|--:|--:|--:|--:|--:|", flush=True)
    if packed != args.packed:
        way = "pack" if args.packed else "undo"
        found = start_process(way, root)
        print(f"| {WAYS[way]} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['added']:,.0f} | | |", flush=True)
    base = count_calls("nothing", root)
    for way, label in list(WAYS.items())[3:]:
        rounds = [start_process(way, root) for _ in range(args.repeats)]
        seconds, spent, added = (min(found[key] for found in rounds) for key in ("seconds", "cpu", "added"))
        counts = count_calls(way, root)
        told = ["-", "-"] if counts is None or base is None else [f"{counts[k] - base[k]:,}" for k in counts]
        print(f"| {label} | {seconds:.1f} | {spent:.1f} | {added:,.0f} | {' | '.join(told)} |", flush=True)


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/many_photos.py --folder out --repeats 3")
    target.add_argument("--images", type=int, default=118_000)
    target.add_argument("--folder", type=Path, help="where the files lie, or go (default: a temporary folder)")
    target.add_argument("--packed", action="store_true", help="stores of one file each")
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
            report(args, Path(folder) / "many")


if __name__ == "__main__":
    sys.exit(run(main))
