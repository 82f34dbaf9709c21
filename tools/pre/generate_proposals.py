"""Proposals for any photos: a region store for a config's split or a folder, and COB's .mat files on request."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cim.build import build_dataset, build_proposer, resolve_device
from cim.cli import add_stage_args, parser, run
from cim.config import ProposalConfig, load_config
from cim.datasets.base import Record
from cim.datasets.photo_files import PHOTO_SUFFIXES
from cim.errors import CimError
from cim.generation import ProposalStage, provenance
from cim.layout import Layout
from cim.parallel import run_stage
from cim.store import Store


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(
        __doc__,
        "python tools/pre/generate_proposals.py resnet50_voc --split trainaug\n"
        "  python tools/pre/generate_proposals.py --images photos --output proposals --max-proposals 300\n"
        "  python tools/pre/generate_proposals.py --images photos --output proposals --method sam "
        "--checkpoint facebook/sam-vit-base",
    )
    target.add_argument("config", nargs="?", help="a yaml file, or the name of one in configs/")
    target.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="override settings")
    target.add_argument("--split", help="split of the config's data set (default: data.train_split)")
    target.add_argument("--images", type=Path, help="instead of a config: a folder of photos")
    target.add_argument("--method", choices=("grouping", "sam"), help="default: proposals.method (grouping)")
    target.add_argument("--max-proposals", type=int, help="at most so many (default: proposals.max_proposals, 1000)")
    target.add_argument("--weights", help="ImageNet weights file of the grouping cue (default: proposals.weights)")
    target.add_argument("--no-deep-features", action="store_true", help="group by colour and texture only")
    target.add_argument("--checkpoint", help="SAM checkpoint: hub name or folder (default: proposals.sam_checkpoint)")
    target.add_argument("--output", type=Path, help="store to write (default: where the config expects it)")
    target.add_argument("--export-mat", type=Path, metavar="FOLDER", help="also COB .mat files")
    target.add_argument("--mat-layout", choices=("voc", "coco"), default="voc", help="default: voc")
    target.add_argument("--device", default="cpu", help="auto, cpu, cuda, ... (default: cpu, in every worker)")
    add_stage_args(target)
    return target


def main(argv: list[str] | None = None) -> int:
    """2 when some photos could not be read; the others are done."""
    args = get_parser().parse_args(argv)
    settings, records, output = _task(args)
    device = str(resolve_device(args.device))
    build_proposer(settings, device)  # a missing package, checkpoint or weights file stops here, not in a worker
    if args.export_mat is not None:
        _refuse_shared_names(records)
    store = Store.create(output, "regions", provenance(settings), args.overwrite)
    stage = ProposalStage(store, settings, device, args.export_mat, args.mat_layout)
    waiting = [record for record in records if not stage.done(record)]
    report = run_stage(
        stage,
        waiting,
        names=[str(record.path) for record in waiting],
        description=f"proposals ({settings.method})",
        workers=args.workers,
        scheduler=args.scheduler,
    )
    code = report.exit_code()
    print(f"{len(records) - len(report.failed)} of {len(records)} photos have proposals: {output}")
    return code


def _refuse_shared_names(records: list[Record]) -> None:
    stems = Counter(record.path.stem for record in records)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise CimError(f"two photos would share one .mat file: {twice}", fix="give photos unique names")


def _task(args: argparse.Namespace) -> tuple[ProposalConfig, list[Record], Path]:
    if (args.config is None) == (args.images is None):
        raise CimError("which photos", expected="either CONFIG or --images FOLDER")
    if args.config is not None:
        config = load_config(args.config, args.set)
        split = args.split or config.data.train_split
        settings, records = config.proposals, list(build_dataset(config.data, split))
        output = args.output or Layout(config).proposals(split)
    elif args.output is None or args.set or args.split:
        raise CimError("--images goes with --output, and without --set and --split")
    else:
        settings, records, output = ProposalConfig(), _folder(args.images), args.output
    given: dict[str, Any] = {
        "method": args.method,
        "max_proposals": args.max_proposals,
        "weights": args.weights,
        "sam_checkpoint": args.checkpoint,
        "deep_features": False if args.no_deep_features else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("max_proposals", 1) < 1:
        raise CimError("--max-proposals starts at 1", found=args.max_proposals)
    return settings.model_copy(update=given), records, output


def _folder(images: Path) -> list[Record]:
    """Every photo under a folder; the file name relative to it, without its ending, is the id."""
    if not images.is_dir():
        raise CimError("no such folder of photos", path=images, fix="check --images")
    photos = sorted(path for path in images.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise CimError("no photos here", path=images, expected=", ".join(PHOTO_SUFFIXES))
    names = [photo.relative_to(images).with_suffix("").as_posix() for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CimError("two photos of one name", path=images, found=twice[0], fix="rename one of them")
    return [Record(name, photo, (0, 0)) for name, photo in zip(names, photos, strict=True)]


if __name__ == "__main__":
    sys.exit(run(main))
