"""Choose among pseudo labels: a threshold on the score and other choices; a checked copy is written."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from pydantic import ValidationError

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.schema import Config, ExportConfig
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.core.locks import hold
from cim.evaluation.coco_results import load_ground_truth
from cim.labels.export import choose, chosen_path, label_path, uncompressed
from cim.labels.label_files import read_labels, sweep, sweep_table, validate_labels

SWEEP = tuple(k / 20 for k in range(20))  # 0, 0.05, ..., 0.95


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

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
    with hold(config.work_dir) if args.output is None else nullcontext():
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

    path = args.annotations or build_dataset(config.data, args.split or config.data.train_split).annotations
    truth = load_ground_truth(path) if path is not None else None
    print(sweep_table(sweep(content, SWEEP, truth)))
    if truth is None:
        print("no masks to compare with: data.train_annotations or --annotations gives precision and recall")
