"""What the two first-label tools share: which config is meant, and the stages they run."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from cim.build import build_dataset, resolve_device
from cim.cli import add_stage_args, parser
from cim.config import Config, DataConfig, load_config
from cim.datasets.base import Dataset
from cim.errors import CimError
from cim.first_labels import AssignOptions, LabelStage, export_label_assign, peak_provenance, store_peaks
from cim.layout import Layout
from cim.parallel import StageReport, run_stage
from cim.preparation import SETS, Tree
from cim.prm import ResponseNet, load_response_net
from cim.published import having_proposals, open_regions
from cim.store import Store

logger = logging.getLogger(__name__)


def label_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Options of both tools."""
    result = parser(description, example)
    result.add_argument("config", nargs="?", help="a yaml file, or the name of one in configs/")
    result.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="override settings")
    result.add_argument("--dataset", choices=(*sorted(SETS), "folder"), help="instead of a config: which data set")
    result.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 and coco2017")
    result.add_argument("--images", help="folder data set: its photos")
    result.add_argument("--tags", help="folder data set: tags.csv or COCO json (default: one sub-folder per class)")
    result.add_argument("--work-dir", help="where artefacts go (default: the config's, or runs/cim)")
    result.add_argument("--split", help="default: the training split")
    result.add_argument("--proposals", type=Path, help="region store (default: where the config expects it)")
    result.add_argument("--output", type=Path, help="clusters store (default: where the config expects it)")
    result.add_argument("--export", type=Path, help="also write a published label_assign/*.pkl here")
    add_stage_args(result)
    return result


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


def open_net(config: Config, dataset: Dataset, checkpoint: Path | None = None) -> ResponseNet:
    """The trained response network of a config, in eval mode on its device.

    Raises:
        CimError: missing, damaged, or trained for other classes.
    """
    path = checkpoint or Layout(config).prm_checkpoint
    net = load_response_net(path, len(dataset.classes), image_size=config.prm.image_size)
    if net.classes and net.classes != dataset.classes:
        raise CimError(
            "response network for other classes",
            path=path,
            expected=", ".join(dataset.classes[:5]),
            found=", ".join(net.classes[:5]),
        )
    return net.to(resolve_device(config.device))


def label_from_peaks(args: argparse.Namespace, config: Config) -> int:
    """Peaks, then first labels; the exit code."""
    split = args.split or config.data.train_split
    dataset = build_dataset(config.data, split)
    checkpoint = args.checkpoint or Layout(config).prm_checkpoint
    net = open_net(config, dataset, checkpoint)
    provenance = peak_provenance(net, checkpoint, config.assign.peak_threshold)
    store = Store.create(args.peaks or Layout(config).peaks(split), "peaks", provenance, args.overwrite)
    unreadable = store_peaks(
        net,
        dataset.records,
        store,
        config.assign.peak_threshold,
        batch=args.batch,
        workers=min(args.workers, config.prm.workers),
    )
    return _label(args, config, dataset, {"peaks": provenance}, peaks=store, unreadable=unreadable)


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
    source: dict,
    *,
    peaks: Store | None = None,
    points: Path | None = None,
    unreadable: dict[str, str] | None = None,
) -> int:
    layout, assign = Layout(config), config.assign
    regions = open_regions(args.proposals or layout.proposals(args.split or config.data.train_split))
    options = AssignOptions(assign.mean_mask_threshold, assign.iou)
    provenance = {
        **source,
        "mean_mask_threshold": options.mean_mask_threshold,
        "iou": options.iou,
        "proposals": regions.provenance,
    }
    output = args.output or layout.first_labels
    store = Store.create(output, "clusters", provenance, args.overwrite)
    stage = LabelStage(regions, store, options, len(dataset.classes), peaks, points)
    unreadable = unreadable or {}
    able = having_proposals(dataset, regions)
    waiting = [r for r in able if not store.has(r.image_id) and r.path.name not in unreadable]
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
    return code
