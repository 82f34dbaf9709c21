"""First labels from peaks of the response network, or from annotated points."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from cim.config.build import build_dataset
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import AssignConfig, Config, DataConfig
from cim.core.errors import CimError
from cim.core.locks import hold
from cim.core.parallel import StageReport, run_stage
from cim.datasets.base import Dataset
from cim.evaluation.verdicts import judge_first_labels, keep_verdict
from cim.prm.evidence import PeakOptions
from cim.prm.first_labels import (
    AssignOptions,
    LabelStage,
    export_label_assign,
    labelled_tags,
    peak_provenance,
    store_peaks,
)
from cim.prm.trained import open_net
from cim.proposals.published_tree import Tree
from cim.storage.photos import drop_replaced, tags_of
from cim.storage.published import RegionSource, having_proposals, open_clusters, open_regions
from cim.storage.store import Store

logger = logging.getLogger(__name__)

STAGE = "first labels"  # in verdicts.json


def main(args: argparse.Namespace) -> int:
    """2 when some photos could not be done; the others are."""
    config = config_of(args)
    points = args.points or (Path(config.assign.points) if config.assign.points else None)
    source = args.source or ("peaks" if points is None else "points")
    with hold(config.work_dir):
        if source == "peaks":
            return label_from_peaks(args, config)
        if points is None:
            raise CimError("no points given", fix="pass --points or set assign.points")
        return label_from_points(args, config, points)


def config_of(args: argparse.Namespace) -> Config:
    """The config named, or the default one for ``--dataset``.

    Raises:
        CimError: neither or both are given; a bad config.
    """
    if (args.config is None) == (args.dataset is None):
        raise CimError("which data set", expected="CONFIG or --dataset, one of them")
    config = load_config(args.config, args.set) if args.config else _default(args)
    return config.model_copy(update={"work_dir": args.work_dir}) if args.work_dir else config


def _default(args: argparse.Namespace) -> Config:
    if args.set:
        raise CimError("--set changes a config", fix="name a CONFIG instead of --dataset")
    if args.dataset == "folder":
        return Config(data=DataConfig(dataset="folder", train_split="train", images=args.images, tags=args.tags))
    split = "trainaug" if args.dataset == "voc" else "train2017"
    root = Tree.find(args.dataset, args.data_root).root
    return Config(data=DataConfig(dataset=args.dataset, root=str(root), train_split=split))


def label_from_peaks(args: argparse.Namespace, config: Config) -> int:
    """Peaks, then first labels; the exit code."""
    split = args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    checkpoint = args.checkpoint or RunPaths(config).prm_checkpoint
    net = open_net(config, dataset, checkpoint)
    options = PeakOptions.of(config.assign)
    provenance, packed = peak_provenance(net, checkpoint, options), config.data.packed
    store = Store.create(args.peaks or RunPaths(config).peaks(split), "peaks", provenance, args.overwrite, packed)
    unreadable = store_peaks(
        net,
        dataset.records,
        store,
        options,
        batch=args.batch,
        workers=min(args.workers, config.prm.workers),
    )
    return _label(args, config, dataset, {"peaks": provenance}, peaks=store, unreadable=unreadable)


def check_labels(config: Config, dataset: Dataset) -> None:
    """Whether the stage would keep the peaks and first labels that are there; nothing is written.

    Raises:
        CimError: they were made with other settings, of other proposals or by another response network.
    """
    paths, split = RunPaths(config), config.data.train_split
    points, proposals = config.assign.points, paths.proposals(config.data.train_split)
    if Store.kind_at(paths.first_labels) is None or not proposals.exists():
        return
    source: dict[str, Any] = {"points": Path(points or "").name}
    if points is None:
        if not paths.prm_checkpoint.is_file():
            return
        net = open_net(config, dataset)
        source = {"peaks": peak_provenance(net, paths.prm_checkpoint, PeakOptions.of(config.assign))}
        Store.agreeing(paths.peaks(split), "peaks", source["peaks"])
    known = dataset.known_digest if points is None and config.known.first_labels else None
    provenance = label_provenance(config.assign, source, open_regions(proposals), known)
    Store.agreeing(paths.first_labels, "clusters", provenance)


def label_provenance(
    assign: AssignConfig, source: dict[str, Any], regions: RegionSource, known: str | None
) -> dict[str, Any]:
    """What first labels depend on; ``source`` says which "peaks" or "points" they are made from, ``known`` is the
    digest of what is known of the photos and used."""
    return {
        **source,
        "mean_mask_threshold": assign.mean_mask_threshold,
        "iou": assign.iou,
        **({"background": assign.background} if assign.background != "touching" else {}),
        **({"evidence": True} if "peaks" in source and assign.evidence else {}),
        **({"known": known} if known is not None else {}),
        "proposals": regions.provenance,
    }


def label_from_points(args: argparse.Namespace, config: Config, points: Path) -> int:
    """First labels from annotated points; the exit code."""
    if not points.is_dir():
        raise CimError("no folder of points", path=points, fix="pass --points or set assign.points")
    dataset = build_dataset(config.data, args.split or config.data.train_split)
    return _label(args, config, dataset, {"points": points.name}, points=points)


def _label(
    args: argparse.Namespace,
    config: Config,
    dataset: Dataset,
    source: dict[str, Any],
    *,
    peaks: Store | None = None,
    points: Path | None = None,
    unreadable: dict[str, str] | None = None,
) -> int:
    paths, assign = RunPaths(config), config.assign
    known = peaks is not None and config.known.first_labels and dataset.known_digest is not None
    regions = open_regions(args.proposals or paths.proposals(args.split or config.data.train_split))
    options = AssignOptions(assign.mean_mask_threshold, assign.iou, assign.background)
    provenance = label_provenance(assign, source, regions, dataset.known_digest if known else None)
    output = args.output or paths.first_labels
    store = Store.create(output, "clusters", provenance, args.overwrite, config.data.packed)
    able = having_proposals(dataset, regions)
    drop_replaced(store, able, tags_of)
    evidence = peaks is not None and assign.evidence
    if peaks is not None and assign.background == "negative" and not evidence:
        raise CimError("negative background is read from class maps", fix="--set assign.evidence=true")
    stage = LabelStage(regions, store, options, len(dataset.classes), peaks, points, evidence, known)
    unreadable = unreadable or {}
    there = store.seen()
    waiting = [r for r in able if not there(r.image_id) and r.path.name not in unreadable]
    report: StageReport = run_stage(
        stage,
        waiting,
        names=[record.path.name for record in waiting],
        description="first labels",
        workers=args.workers,
        scheduler=args.scheduler,
    )
    report.failed.update(unreadable)
    if args.export:
        logger.info("%d images in %s", export_label_assign(output, dataset, args.export), args.export)
    code = report.exit_code()
    logger.info("%s", output)
    if (args.split or config.data.train_split) == config.data.train_split:
        of = f"{dataset.digest}, {store.entries.newest()}"
        verdict = keep_verdict(
            paths.verdicts, STAGE, of, lambda: judge_first_labels(*labelled_tags(dataset, open_clusters(output)))
        )
        logger.info("%s", verdict.line(STAGE))
    return code
