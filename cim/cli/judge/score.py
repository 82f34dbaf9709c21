"""Run a trained network over a split: scores of all proposals, then detections as a COCO result file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from cim.cli.common import command_line
from cim.config.build import build_dataset
from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.engine.fit import distributed
from cim.evaluation.verdicts import judge_masks, keep_verdict
from cim.inference.best_masks import best_masks
from cim.inference.detections import Selection, detect, upload_name, write_upload
from cim.inference.scores import (
    asks_presence,
    detection_store,
    evaluation_dir,
    find_checkpoint,
    load_trained,
    presence_checkpoint,
    score_dataset,
)
from cim.prm.trained import open_net
from cim.storage.published import having_proposals, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> int:
    """2 when some images failed; the others are done."""
    config = load_config(args.config, args.set)
    paths, split = RunPaths(config), args.split or config.data.eval_split
    checkpoint = find_checkpoint(args.checkpoint, paths)
    dataset = build_dataset(config.data, split)
    source = open_regions(paths.proposals(split))
    base = evaluation_dir(paths, checkpoint)
    folder = args.output or base / "detections" / split
    with (
        hold(paths.owner(args.output) if args.output else base),
        distributed.session(resolve_device(config.device)) as device,
    ):
        trained = load_trained(checkpoint, device)
        if trained.classes != dataset.classes:
            raise CimError(
                "network and data set have different classes",
                path=checkpoint,
                expected=", ".join(dataset.classes[:5]),
                found=", ".join(trained.classes[:5]),
                fix="pass the config that the network was trained with",
            )
        response = presence_checkpoint(config, split)
        net = None if response is None else open_net(config, dataset)
        if net is None and asks_presence(config, split):
            path = paths.prm_checkpoint  # prm.checkpoint names another
            logger.warning("no response network at %s: scores are those of regions alone (infer.presence)", path)
        made_from, packed = source.provenance, config.data.packed
        store = detection_store(folder, checkpoint, config.infer, made_from, args.overwrite, packed, response)
        dataset = having_proposals(dataset, source)
        report = score_dataset(trained.model, dataset, source, store, config.infer, device, net)
        if distributed.is_main():
            results = folder / "results.json"
            known = config.known.evaluation and dataset.known_digest is not None
            selection, presence = Selection.of(config.infer), config.infer.presence
            detect(dataset, source, store, results, selection, presence=presence, known=known, workers=args.workers)
            if config.data.dataset == "coco" and "test" in split:
                write_upload(results, folder / upload_name(split))
                logger.info("for the COCO server: %s", folder / upload_name(split))
            elif dataset.annotations is not None:
                logger.info("next: %s", _next(args, results))
            if split == config.data.train_split:
                peaks = _peaks(paths.peaks(split))
                of = f"{dataset.digest}, {store.entries.newest()}, {peaks and peaks.entries.newest()}"
                verdict = keep_verdict(
                    paths.verdicts,
                    "CIM",
                    of,
                    lambda: judge_masks(best_masks(dataset, source, store, peaks), dataset.classes),
                )
                logger.info("%s", verdict.line("CIM"))
        return report.exit_code()


def _next(args: argparse.Namespace, results: Path) -> str:
    """The command that judges what was found, wherever that is."""
    split = ["--split", args.split] if args.split else []
    if args.output:
        return command_line("evaluate", args, *split, "--results", results)
    return command_line("evaluate", args, *split, *(["--checkpoint", args.checkpoint] if args.checkpoint else []))


def _peaks(path: Path) -> Store | None:
    return Store.open(path, "peaks") if Store.kind_at(path) == "peaks" else None
