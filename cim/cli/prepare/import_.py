"""What already exists elsewhere: proposals into a store of ours, labels of other programs into a COCO json."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cim.cli.prepare.published import stage_runner
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, DataConfig
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.labels.formats.table import FORMATS, write_labels_of
from cim.proposals.published_tree import (
    COB_MAT,
    Tree,
    tasks_from_json,
    tasks_from_mat,
    write_grids,
    write_regions,
)
from cim.storage.published import COB_PROVENANCE, GRIDS_KIND, CobPickle
from cim.storage.store import Store

MASKS = {"true": True, "false": False, "unknown": None}


def main(args: argparse.Namespace) -> int:
    if args.source_kind in FORMATS:
        return _labels(args)
    tree, config = _data(args)
    split = args.split or config.data.train_split
    source = args.input or (tree.mat_dir(split) if tree and args.source_kind == "mat" else None)
    if source is None:
        raise CimError("nothing to import", fix="pass --input")
    output = args.output or RunPaths(config).proposals(split)
    with hold(RunPaths(config).owner(output)):
        return _import(args, config, split, source, output)


def _import(args: argparse.Namespace, config: Config, split: str, source: Path, output: Path) -> int:
    provenance, packed = _provenance(args, source), config.data.packed
    if args.source_kind == "pickle":
        pickle = CobPickle(source)
        store = Store.create(output, GRIDS_KIND, {**provenance, "data_dir": _data_dir(source)}, args.overwrite, packed)
        report = write_grids(pickle, store)
    else:
        dataset = build_dataset(config.data, split)
        tasks = (
            tasks_from_mat(dataset, source, args.allow_empty)
            if args.source_kind == "mat"
            else tasks_from_json(dataset, source)
        )
        store = Store.create(output, "regions", provenance, args.overwrite, packed)
        report = write_regions(tasks, store, stage_runner(args))
    code = report.exit_code()
    print(output)
    return code


def _labels(args: argparse.Namespace) -> int:
    if args.input is None or args.output is None:
        raise CimError("which labels, and where to", fix="pass --input and --output")
    if not args.input.exists():
        raise CimError("nothing to import", path=args.input, fix="pass another --input")
    if args.input.suffix.lower() == ".zip":
        raise CimError("labels in a zip file", path=args.input, fix="unpack it, and pass what was in it")
    if args.output.exists() and not args.overwrite:
        raise CimError("the output is there already", path=args.output, fix="choose another --output, or --overwrite")
    labels = FORMATS[args.source_kind].read(args.input, args.images)
    root, counts = write_labels_of(labels, args.output, args.split)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("masks", "boxes", "tags") if counts[kind])
    print(f"{told} of {len(labels.classes)} classes on {counts['photos']} photos of {root}: {args.output}")
    return 0


def _data(args: argparse.Namespace) -> tuple[Tree | None, Config]:
    if args.config:
        return None, load_config(args.config)
    if not args.dataset:
        raise CimError("which data set", fix="pass --dataset voc|coco or --config CONFIG")
    tree = Tree.find(args.dataset, args.data_root)
    splits = ("trainaug", "val") if args.dataset == "voc" else ("train2017", "val2017")
    data = DataConfig(dataset=args.dataset, root=str(tree.root), train_split=splits[0], eval_split=splits[1])
    return tree, Config(data=data)


def _data_dir(source: Path) -> str:
    return str(source.resolve().parent.parent)


def _provenance(args: argparse.Namespace, source: Path) -> dict[str, Any]:
    known = {"mat": COB_MAT, "pickle": COB_PROVENANCE}.get(args.source_kind, {})
    maker = args.maker or known.get("maker", "unknown")
    trained = known.get("trained_on_masks") if maker == known.get("maker") else None
    if args.trained_on_masks is not None:
        trained = MASKS[args.trained_on_masks]
    return {"source": f"{args.source_kind}: {source.name}", "maker": maker, "trained_on_masks": trained}
