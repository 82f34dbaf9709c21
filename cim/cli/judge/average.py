"""Several trained networks as one: the mean of their scores, then detections as a COCO result file."""

from __future__ import annotations

import argparse

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.inference.averaging import average_scores
from cim.inference.detections import Selection, detect
from cim.storage.published import having_proposals, open_regions
from cim.storage.store import Store


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)
    split = args.split or config.data.eval_split
    if len(args.runs) < 2:
        raise CimError("nothing to average", expected="two or more --runs", found=str(args.runs[0]))
    with hold(args.output):
        _average(args, config, split)


def _average(args: argparse.Namespace, config: Config, split: str) -> None:
    fix = f"cim score {args.config} --split {split}, with that run's work_dir"
    runs = [Store.open(path / "detections" / split, "detections", fix=fix) for path in args.runs]
    folder = args.output / "detections" / split
    provenance = {"mean_of": [store.provenance for store in runs]}
    output = Store.create(folder, "detections", provenance, args.overwrite, config.data.packed)
    source = open_regions(RunPaths(config).proposals(split))
    dataset = having_proposals(build_dataset(config.data, split), source)
    average_scores(runs, output, dataset.records)
    results = folder / ("results.json" if args.branch == "scores" else f"results_{args.branch}.json")
    selection, presence = Selection.of(config.infer), config.infer.presence
    detect(dataset, source, output, results, selection, branch=args.branch, presence=presence, workers=args.workers)
