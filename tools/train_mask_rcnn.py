#!/usr/bin/env python
"""Train Mask R-CNN on pseudo labels, or continue a stopped run; then evaluate it where there are masks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from cim.cli import add_config_args, parser, run
from cim.config import load_config


def get_parser() -> argparse.ArgumentParser:
    target = parser(
        __doc__,
        "python tools/train_mask_rcnn.py resnet50_voc --set refine.precision=bf16\n"
        "  torchrun --nproc_per_node 4 tools/train_mask_rcnn.py resnet50_voc",
    )
    add_config_args(target)
    target.add_argument("--labels", type=Path, help="COCO json (default: the thresholded pseudo labels of the config)")
    target.add_argument("--images", type=Path, help="folder of the photos (default: what the labels say)")
    target.add_argument("--run", type=Path, help="run folder (default: <work_dir>/mask_rcnn)")
    target.add_argument("--name", help='row in metrics.json (default: "CIM + Mask R-CNN")')
    target.add_argument("--split", help="evaluate on this split (default: data.eval_split)")
    target.add_argument("--no-evaluation", action="store_true", help="train only")
    return target


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from cim.build import build_dataset  # torch is slow to import, --help need not wait for it
    from cim.errors import CimError
    from cim.export import chosen_path, label_path
    from cim.layout import Layout
    from cim.mask_detector import ROW, evaluate_mask_rcnn
    from cim.metrics_file import load_rows, markdown
    from cim.refine import train_mask_rcnn

    main_process = os.environ.get("RANK", "0") == "0"
    if not main_process:
        logging.disable(logging.INFO)  # one process speaks for all
    labels = args.labels or chosen_path(label_path(config, config.data.train_split), config.export)
    if not labels.is_file():
        raise CimError("no pseudo labels", path=labels, fix="bash scripts/generate_msrcnn_label.sh CONFIG")
    checkpoint = train_mask_rcnn(config, labels, args.images, args.run)
    if not main_process:
        return
    print(checkpoint)
    if args.no_evaluation:
        return
    split = args.split or config.data.eval_split
    data = config.data
    if data.dataset == "folder" and split == "val" and data.val_annotations is None:
        print("no masks to evaluate with: data.val_annotations")
        return
    dataset = build_dataset(data, split)
    if dataset.annotations is None:
        print(f"no masks to evaluate with in {dataset.name}")
        return
    evaluate_mask_rcnn(config, checkpoint, dataset, split, args.name or ROW)
    print(markdown(load_rows(Layout(config).metrics)))


if __name__ == "__main__":
    sys.exit(run(main))
