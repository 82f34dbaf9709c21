"""The whole flow on a folder of tagged photos: masks, pseudo labels, a trained model, overlays and a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cim.build import resolve_device
from cim.cli import parser, run
from cim.coco_results import load_ground_truth
from cim.config import load_config, override, save_config
from cim.errors import CimError
from cim.export import chosen_path, label_path
from cim.flow import TOOLS, Stage, preparation, pseudo_labels, run_stages, stage

BUDGETS = {  # changes to the light schedule
    "quick": {"train.updates": 500, "train.step": [360]},  # and no Mask R-CNN: a short one is worse than its labels
    "normal": {},
    "long": {"train.updates": 2000, "train.step": [1500], "refine.updates": 4000, "refine.step": [3000]},
}


def get_parser() -> argparse.ArgumentParser:
    result = parser(
        f"{__doc__} Every stage is skipped when done: the same command continues after a stop.",
        "bash scripts/run_folder.sh --images photos --tags tags.csv --output runs/mine\n"
        "  bash scripts/run_folder.sh --images photos/train --output runs/mine --val photos/val --val-masks val.json",
    )
    result.add_argument("--images", type=Path, required=True, help="folder of training photos")
    result.add_argument(
        "--tags", type=Path, help="tags.csv (image,labels) or COCO json; default: one sub-folder a class"
    )
    result.add_argument("--output", type=Path, required=True, help="run folder")
    result.add_argument("--val", type=Path, help="folder of photos to evaluate on")
    result.add_argument("--val-tags", type=Path, help="their tags (default: from --val-masks)")
    result.add_argument("--val-masks", type=Path, help="their COCO json with masks; only evaluation reads it")
    result.add_argument("--weights", type=Path, help="ImageNet weights of the trunk (default: downloaded once)")
    result.add_argument("--budget", choices=BUDGETS, default="normal", help="how much training (quick: no Mask R-CNN)")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    result.add_argument("--config", default="folder_mobilenet", help="yaml file or name (default: folder_mobilenet)")
    result.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="override settings")
    result.add_argument("--no-refine", action="store_true", help="leave Mask R-CNN out")
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = write_config(args)
    masks, refined = bool(args.val_masks), not args.no_refine and args.budget != "quick"
    stages = preparation(config, masks) + training(config, masks) + pseudo_labels(config)
    stages += [stage("Mask R-CNN", "train_mask_rcnn.py", config, *([] if masks else ["--no-evaluation"]))] * refined
    inputs = config.read_text(encoding="utf-8") + state_of(args)
    run_stages(stages + presentation(config, masks), args.output, inputs)
    best = args.output / ("mask_rcnn" if refined else "train") / "final.pth"
    print(f"\nreport:        {args.output / 'report.html'}")
    print(f"pseudo labels: {args.output / 'pseudo_labels'}, painted: {args.output / 'pictures' / 'pseudo_labels'}")
    predict = [sys.executable, str(TOOLS / "predict.py"), "PHOTO_OR_FOLDER", "--checkpoint", str(best)]
    print(f"new photos:    {shlex.join(predict)}")


def write_config(args: argparse.Namespace) -> Path:
    """RUN/config.yaml with everything resolved.

    Raises:
        CimError: files that are not there or cannot be used, or options that do not go together.
    """
    for path in (args.images, args.tags, args.val, args.val_tags, args.val_masks, args.weights):
        if path is not None and not path.exists():
            raise CimError("no such file or folder", path=path)
    if args.val is None and (args.val_tags or args.val_masks):
        raise CimError("no photos to evaluate on", expected="--val FOLDER beside --val-tags or --val-masks")
    if any(setting.startswith("work_dir=") for setting in args.set):
        raise CimError("the run folder is --output", fix="leave work_dir out of --set")
    resolve_device(args.device)
    if args.val_masks:
        load_ground_truth(args.val_masks)  # a damaged file is told now, not after training
    data = {
        "dataset": "folder",
        "train_split": "train",
        "eval_split": "val",
        "images": args.images,
        "tags": args.tags,
        "val_images": args.val,
        "val_tags": args.val_tags,
        "val_annotations": args.val_masks,
    }
    settings = {f"data.{key}": str(value) for key, value in data.items() if value is not None}
    settings |= {"work_dir": str(args.output), "name": args.output.name, "device": args.device}
    if args.weights:
        weights = str(args.weights.resolve())  # the networks are used from other folders, too
        settings |= {f"{section}.weights": weights for section in ("proposals", "prm", "model", "refine")}
    settings |= BUDGETS[args.budget]
    config = load_config(args.config, [*(override(key, value) for key, value in settings.items()), *args.set])
    path = args.output / "config.yaml"
    save_config(config, path)
    return path


def state_of(args: argparse.Namespace) -> str:
    """Photos and tags as they are now: when they change, finished stages look again."""
    files = [path for path in (args.tags, args.val_tags, args.val_masks) if path]
    for folder in filter(None, (args.images, args.val)):
        files += sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"\n{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


def training(config: Path, masks: bool) -> list[Stage]:
    """CIM, and its numbers where there are masks."""
    stages = [stage("CIM training", "train.py", config)]
    if masks:
        results = config.parent / "prm_instances" / "val" / "results.json"
        stages += [
            stage("CIM on the validation photos", "test.py", config),
            stage("metrics of CIM", "evaluation.py", config, "--name", "CIM", "--oracle"),
            stage("metrics of WSDDN", "evaluation.py", config, "--branch", "mil", "--name", "WSDDN"),
            stage("PRM on the validation photos", "prm_instances.py", config, "--output", results),
            stage("metrics of PRM", "evaluation.py", config, "--results", results, "--name", "PRM"),
        ]
    return stages


def presentation(config: Path, masks: bool) -> list[Stage]:
    """Pictures and the report."""
    settings = load_config(config)
    labels = chosen_path(label_path(settings, settings.data.train_split), settings.export)
    painted = config.parent / "pictures" / "pseudo_labels"
    shown = [
        stage(
            "overlays of the pseudo labels",
            "visualize.py",
            config,
            *("--split", settings.data.train_split, "--results", labels, "--score-threshold", 0),
            *("--max-images", 50, "--output", painted),
        )
    ]
    if masks:
        shown += [stage("overlays of the validation photos", "visualize.py", config, "--max-images", 50)]
    return [*shown, stage("report", "report.py", config.parent)]


if __name__ == "__main__":
    sys.exit(run(main))
