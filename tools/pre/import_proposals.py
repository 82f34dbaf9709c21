"""Proposals that already exist - COB .mat files, a COCO-RLE json, a published cob/*.pkl - into a store of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cim.build import build_dataset
from cim.cli import run
from cim.config import Config, DataConfig, load_config
from cim.errors import CimError
from cim.layout import Layout
from cim.preparation import (
    COB_MAT,
    SETS,
    Tree,
    prepare_parser,
    stage_runner,
    tasks_from_json,
    tasks_from_mat,
    write_grids,
    write_regions,
)
from cim.published import COB_PROVENANCE, GRIDS_KIND, CobPickle
from cim.store import Store

MASKS = {"true": True, "false": False, "unknown": None}


def get_parser() -> argparse.ArgumentParser:
    example = "python tools/pre/import_proposals.py --from mat --dataset voc --data-root data --split trainaug"
    result = prepare_parser(__doc__, example, "store to write (default: where the config expects it)", tree=False)
    result.add_argument("--from", dest="source_kind", choices=("mat", "rle", "pickle"), required=True)
    result.add_argument(
        "--input", type=Path, help="folder of .mat files, json, or pickle (mat: default of the data set)"
    )
    result.add_argument("--dataset", choices=sorted(SETS), help="data set in the published tree")
    result.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 and coco2017")
    result.add_argument("--config", help="instead of --dataset: a config, for folders of photos")
    result.add_argument("--split", help="split of the data set (default: the training split)")
    result.add_argument("--maker", help="who made the proposals (default for mat and pickle: COB)")
    result.add_argument(
        "--trained-on-masks", choices=sorted(MASKS), help="was their maker trained on masks (COB: true; else: unknown)"
    )
    result.add_argument("--allow-empty", action="store_true", help="keep masks without a pixel")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    tree, config = _data(args)
    split = args.split or config.data.train_split
    source = args.input or (tree.mat_dir(split) if tree and args.source_kind == "mat" else None)
    if source is None:
        raise CimError("nothing to import", fix="pass --input")
    output = args.output or Layout(config).proposals(split)
    provenance = _provenance(args, source)
    if args.source_kind == "pickle":
        pickle = CobPickle(source)
        store = Store.create(output, GRIDS_KIND, {**provenance, "data_dir": _data_dir(source)}, args.overwrite)
        report = write_grids(pickle, store)
    else:
        dataset = build_dataset(config.data, split)
        tasks = (
            tasks_from_mat(dataset, source, args.allow_empty)
            if args.source_kind == "mat"
            else tasks_from_json(dataset, source)
        )
        store = Store.create(output, "regions", provenance, args.overwrite)
        report = write_regions(tasks, store, stage_runner(args))
    code = report.exit_code()
    print(output)
    return code


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


def _provenance(args: argparse.Namespace, source: Path) -> dict:
    known = {"mat": COB_MAT, "pickle": COB_PROVENANCE}.get(args.source_kind, {})
    maker = args.maker or known.get("maker", "unknown")
    trained = known.get("trained_on_masks") if maker == known.get("maker") else None
    if args.trained_on_masks is not None:
        trained = MASKS[args.trained_on_masks]
    return {"source": f"{args.source_kind}: {source.name}", "maker": maker, "trained_on_masks": trained}


if __name__ == "__main__":
    sys.exit(run(main))
