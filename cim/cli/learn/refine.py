"""Train Mask R-CNN on pseudo labels, or continue a stopped run; then evaluate it where there are masks."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from cim.cli.judge.intervals import Entry
from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.locks import hold
from cim.engine.checkpoints import FRESH_RUN
from cim.evaluation.bootstrap import MULTI, Difference, differences
from cim.evaluation.metrics_file import load_rows, markdown
from cim.evaluation.verdicts import Verdict, save_verdict
from cim.labels.export import chosen_path, label_path
from cim.mask_rcnn.detect import ROW, evaluate_mask_rcnn
from cim.mask_rcnn.train import train_mask_rcnn
from cim.storage.photos import remember_photos, tell_replaced
from cim.storage.store import PHOTOS

STAGE = "Mask R-CNN"  # in verdicts.json


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)

    main_process = os.environ.get("RANK", "0") == "0"
    if not main_process:
        logging.disable(logging.INFO)  # one process speaks for all
    labels = args.labels or chosen_path(label_path(config, config.data.train_split), config.export)
    if not labels.is_file():
        raise CimError("no pseudo labels", path=labels, fix="cim export CONFIG")
    with hold(RunPaths(config).owner(args.run or RunPaths(config).refine_dir)):
        _refine(args, config, labels, main_process)


def _see_photos(config: Config, run_dir: Path) -> None:
    """Remember the photos that the labels are of; or tell which of them a finished network has seen as they were."""
    if not (run_dir / "final.pth").is_file():
        remember_photos(run_dir, RunPaths(config).proposals(config.data.train_split))
    elif (run_dir / PHOTOS).is_file():
        tell_replaced(run_dir, build_dataset(config.data, config.data.train_split), "Mask R-CNN", FRESH_RUN)


def _refine(args: argparse.Namespace, config: Config, labels: Path, main_process: bool) -> None:
    if main_process and args.labels is None:
        _see_photos(config, args.run or RunPaths(config).refine_dir)
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
    name, paths = args.name or ROW, RunPaths(config)
    evaluate_mask_rcnn(config, checkpoint, dataset, split, name)
    print(markdown(load_rows(paths.metrics)))
    verdict = against_cim(paths, name)
    if verdict is not None:
        print(f"\n{verdict.line(STAGE)}")
        save_verdict(paths.verdicts, STAGE, verdict)


def against_cim(paths: RunPaths, name: str, cim: str = "CIM") -> Verdict | None:
    """Is it better than the CIM that it learnt from, by more than chance (95 % of paired draws of the photos)?

    None where CIM has no row to compare with.
    """
    content = read_json(paths.metrics)
    rows, settings = content["rows"], content.get("settings", {})
    if cim not in rows:
        return None
    entries = [Entry(paths.work_dir, rows[row], settings.get(row, {})) for row in (cim, name)]
    try:
        first, second = (entry.judged(None) for entry in entries)
        found = differences([first], [second])
    except (CimError, ValueError) as error:
        return Verdict("doubtful", f"not compared with CIM: {error}", "cim evaluate CONFIG, then the same command")
    return judge_difference(found)


def judge_difference(found: dict[str, Difference]) -> Verdict:
    """Fine only when nothing of what both have (mAP at 50 and 75, also on photos with several instances; box mAP where
    there are boxes alone) is worse or might be."""
    shown = [key for key in (f"{of}mAP@{at}" for of in ("", MULTI) for at in ("0.50", "0.75")) if key in found]
    shown = shown or [key for key in ("box_mAP",) if key in found]
    told = ", ".join(
        f"{key} {found[key].second - found[key].first:+.1f} ({found[key].low:+.1f} to {found[key].high:+.1f})"
        for key in shown
    )
    if shown and all(found[key].low > 0 for key in shown):
        return Verdict("fine", f"better than CIM: {told}")
    return Verdict("doubtful", f"not surely better than CIM: {told}", "CIM's own masks (RUN/train), or --budget long")
