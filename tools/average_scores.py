"""Several trained networks as one: the mean of their scores, then detections as a COCO result file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from cim.averaging import average_scores
from cim.build import build_dataset
from cim.cli import add_config_args, parser, run
from cim.config import load_config
from cim.detections import Branch, Selection, detect
from cim.errors import CimError
from cim.layout import Layout
from cim.published import having_proposals, open_regions
from cim.store import Store


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(
        f"{__doc__} All must have scored the same proposals (tools/test.py).",
        "python tools/average_scores.py runs/a/config.yaml --runs runs/a runs/b runs/c --output runs/mean\n"
        "  python tools/evaluation.py runs/a/config.yaml --results runs/mean/detections/val/results.json --name mean",
    )
    add_config_args(target)
    target.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders (work_dir) to average")
    target.add_argument("--output", type=Path, required=True, help="gets detections/<split>")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--branch", choices=get_args(Branch), default="scores", help="as in tools/evaluation.py")
    target.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the selection")
    target.add_argument("--overwrite", action="store_true", help="average again what is already there")
    return target


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    split = args.split or config.data.eval_split
    if len(args.runs) < 2:
        raise CimError("nothing to average", expected="two or more --runs", found=str(args.runs[0]))
    fix = f"python tools/test.py {args.config} --split {split}, with that run's work_dir"
    runs = [Store.open(path / "detections" / split, "detections", fix=fix) for path in args.runs]
    folder = args.output / "detections" / split
    provenance = {"mean_of": [store.provenance for store in runs]}
    output = Store.create(folder, "detections", provenance, args.overwrite)
    source = open_regions(Layout(config).proposals(split))
    dataset = having_proposals(build_dataset(config.data, split), source)
    average_scores(runs, output, dataset.records)
    results = folder / ("results.json" if args.branch == "scores" else f"results_{args.branch}.json")
    detect(dataset, source, output, results, Selection.of(config.infer), branch=args.branch, workers=args.workers)


if __name__ == "__main__":
    sys.exit(run(main))
