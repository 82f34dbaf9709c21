"""Run a trained network over a split: scores of all proposals, then detections as a COCO result file."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from cim import distributed
from cim.build import build_dataset, resolve_device
from cim.cli import add_config_args, parser, run
from cim.config import load_config
from cim.detections import Selection, detect, upload_name, write_upload
from cim.errors import CimError
from cim.inference import detection_store, evaluation_dir, find_checkpoint, load_trained, score_dataset
from cim.layout import Layout
from cim.published import having_proposals, open_regions

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(
        __doc__, "python tools/test.py resnet50_voc\n  torchrun --nproc_per_node 4 tools/test.py resnet50_voc"
    )
    add_config_args(target)
    target.add_argument("--checkpoint", help="a checkpoint or a run folder (default: that of the config)")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--output", type=Path, help="folder (default: <work_dir>/detections/<split>)")
    target.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the selection")
    target.add_argument("--overwrite", action="store_true", help="score again what is already there")
    return target


def main(argv: list[str] | None = None) -> int:
    """2 when some images failed; the others are done."""
    args = get_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    layout, split = Layout(config), args.split or config.data.eval_split
    checkpoint = find_checkpoint(args.checkpoint, layout)
    dataset = build_dataset(config.data, split)
    source = open_regions(layout.proposals(split))
    with distributed.session(resolve_device(config.device)) as device:
        trained = load_trained(checkpoint, device)
        if trained.classes != dataset.classes:
            raise CimError(
                "network and data set have different classes",
                path=checkpoint,
                expected=", ".join(dataset.classes[:5]),
                found=", ".join(trained.classes[:5]),
                fix="pass the config that the network was trained with",
            )
        folder = args.output or evaluation_dir(layout, checkpoint) / "detections" / split
        store = detection_store(folder, checkpoint, config.infer, source.provenance, args.overwrite)
        dataset = having_proposals(dataset, source)
        report = score_dataset(trained.model, dataset, source, store, config.infer, device)
        if distributed.is_main():
            results = folder / "results.json"
            detect(dataset, source, store, results, Selection.of(config.infer), workers=args.workers)
            if config.data.dataset == "coco" and "test" in split:
                write_upload(results, folder / upload_name(split))
                logger.info("for the COCO server: %s", folder / upload_name(split))
            elif dataset.annotations is not None:
                logger.info("next: python tools/evaluation.py %s", args.config)
        return report.exit_code()


if __name__ == "__main__":
    sys.exit(run(main))
