"""Train Mask R-CNN on pseudo labels, or continue a stopped run; then evaluate it where there are masks."""

from __future__ import annotations

import argparse
import logging
import os

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.evaluation.metrics_file import load_rows, markdown
from cim.labels.export import chosen_path, label_path
from cim.mask_rcnn.detect import ROW, evaluate_mask_rcnn
from cim.mask_rcnn.train import train_mask_rcnn


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

    main_process = os.environ.get("RANK", "0") == "0"
    if not main_process:
        logging.disable(logging.INFO)  # one process speaks for all
    labels = args.labels or chosen_path(label_path(config, config.data.train_split), config.export)
    if not labels.is_file():
        raise CimError("no pseudo labels", path=labels, fix="cim export CONFIG")
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
    print(markdown(load_rows(RunPaths(config).metrics)))
