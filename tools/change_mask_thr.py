#!/usr/bin/env python
"""Choose among pseudo labels: a threshold on the score and other choices; a checked copy is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from cim.cli import add_config_args, parser, run
from cim.config import Config, ExportConfig, load_config
from cim.errors import CimError

SWEEP = tuple(k / 20 for k in range(20))  # 0, 0.05, ..., 0.95


def get_parser() -> argparse.ArgumentParser:
    target = parser(
        f"{__doc__} Choices that are not given here come from the config's export section.",
        "python tools/change_mask_thr.py resnet50_voc --threshold 0.4\n"
        "  python tools/change_mask_thr.py resnet50_voc --sweep   # what each threshold would keep",
    )
    add_config_args(target)
    target.add_argument("--input", type=Path, help="labels (default: those of the config's run)")
    target.add_argument("--output", type=Path, help="default: beside the input, with the threshold in its name")
    target.add_argument("--split", help="default: data.train_split")
    target.add_argument("--threshold", type=float, help="keep scores from here on; a share with --kind quantile")
    choices = {name: get_args(field.annotation) for name, field in ExportConfig.model_fields.items()}
    target.add_argument("--kind", choices=choices["threshold_kind"], dest="threshold_kind")
    target.add_argument("--keep-best-per-tag", action="store_true", default=None, help="at least one per image and tag")
    target.add_argument("--min-area", type=int, help="pixels")
    target.add_argument("--mask-nms", type=float, metavar="IOU", help="drop what overlaps a better one of its class")
    target.add_argument("--empty-images", choices=choices["empty_images"], help="photos left without instances")
    target.add_argument("--scores", choices=choices["scores"], help="weight: adds the score over the class's best")
    target.add_argument("--rle", choices=("compressed", "uncompressed"), default="compressed", help="form of the masks")
    target.add_argument("--sweep", action="store_true", help="only print what each threshold would keep")
    target.add_argument("--annotations", type=Path, help="COCO json with true masks for the sweep")
    return target


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from cim.export import choose, chosen_path, label_path, uncompressed
    from cim.files import write_json
    from cim.labels import read_labels, validate_labels

    path = args.input or label_path(config, args.split or config.data.train_split)
    content = read_labels(path, scored=True)
    if args.sweep:
        _sweep(args, config, content)
        return
    options = _options(args, config)
    chosen = choose(content, options)
    if args.rle == "uncompressed":
        for line in chosen["annotations"]:
            line["segmentation"] = uncompressed(line["segmentation"])
    output = args.output or chosen_path(path, options)
    _refuse_nothing(chosen, content, options)
    write_json(output, chosen)
    counts = validate_labels(output)
    print(f"{counts['annotations']} of {len(content['annotations'])} instances, {counts['images']} photos: {output}")
    used = {line["category_id"] for line in chosen["annotations"]}
    without = [c["name"] for c in chosen["categories"] if c["id"] not in used]
    if without:
        print(f"classes without any pseudo label: {', '.join(without)}")


def _options(args: argparse.Namespace, config: Config) -> ExportConfig:
    given = {name: getattr(args, name, None) for name in ExportConfig.model_fields}
    values = config.export.model_dump() | {name: value for name, value in given.items() if value is not None}
    try:
        return ExportConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("threshold_kind", "kind").replace("_", "-")
        raise CimError(f"bad {name}", expected=first["msg"], found=first["input"]) from None


def _refuse_nothing(chosen: dict[str, Any], content: dict[str, Any], options: ExportConfig) -> None:
    if not chosen["annotations"]:
        best = max(line["score"] for line in content["annotations"])
        raise CimError(
            "no instance is left",
            expected=f"scores from {options.threshold:g} ({options.threshold_kind})",
            found=f"best score {best:.3f}",
            fix="--threshold or --min-area lower, or --keep-best-per-tag; --sweep shows what each keeps",
        )


def _sweep(args: argparse.Namespace, config: Config, content: dict[str, Any]) -> None:
    from cim.build import build_dataset
    from cim.coco_results import load_ground_truth
    from cim.labels import sweep, sweep_table

    path = args.annotations or build_dataset(config.data, args.split or config.data.train_split).annotations
    truth = load_ground_truth(path) if path is not None else None
    print(sweep_table(sweep(content, SWEEP, truth)))
    if truth is None:
        print("no masks to compare with: data.train_annotations or --annotations gives precision and recall")


if __name__ == "__main__":
    sys.exit(run(main))
