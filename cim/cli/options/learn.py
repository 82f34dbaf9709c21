"""Options of training."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.cli.common import add_config_args, add_stage_args, describe


def prm(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Train the response network (PRM) of a config from its tags, or continue a run that was stopped. Writes "
        "<work_dir>/prm/final.pth and, where the evaluation split has tags, metrics.json with the average precision "
        "of every class.",
        "cim prm resnet50_voc --set prm.precision=bf16",
    )
    add_config_args(target)


def labels(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "First labels: peaks of the response network for every tag, and the proposals that each peak stands for. With "
        "points (--points, or assign.points in the config), annotated points take the place of peaks (CIM-p): one text "
        "file per photo, lines of `x y class confidence`. The same command continues.",
        "cim labels resnet50_voc\n"
        "  cim labels --dataset voc --checkpoint data/prm_voc.pth "
        "--export data/label_assign/voc_2012_label_assign.pkl\n"
        "  cim labels --dataset voc --points data/VOC2012/Center_points --export data/label_assign/voc_2012_point.pkl",
    )
    add_config_args(target, optional=True)
    target.add_argument("--dataset", choices=("coco", "voc", "folder"), help="instead of a config: which data set")
    target.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 and coco2017")
    target.add_argument("--images", help="folder data set: its photos")
    target.add_argument("--tags", help="folder data set: tags.csv or COCO json (default: one sub-folder per class)")
    target.add_argument("--work-dir", help="where artefacts go (default: the config's, or runs/cim)")
    target.add_argument("--split", help="default: the training split")
    target.add_argument("--from", dest="source", choices=("peaks", "points"), help="default: points when there are any")
    target.add_argument("--checkpoint", type=Path, help="response network, ours or published (default: the config's)")
    target.add_argument("--peaks", type=Path, help="peaks store (default: <work_dir>/peaks/<split>)")
    target.add_argument("--points", type=Path, help="folder of point files (default: the config's assign.points)")
    target.add_argument("--proposals", type=Path, help="region store (default: where the config expects it)")
    target.add_argument("--output", type=Path, help="clusters store (default: where the config expects it)")
    target.add_argument("--export", type=Path, help="also write a published label_assign/*.pkl here")
    target.add_argument("--batch", type=int, default=8, help="photos per pass through the network")
    add_stage_args(target)


def peaks(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Pictures of the first stages: response map, peaks, peak responses and first labels of every tag, a PNG per "
        "photo.",
        "cim peaks resnet50_voc --photos 2007_000032.jpg 2007_000039.jpg",
    )
    add_config_args(target)
    target.add_argument("--split", help="default: the training split")
    target.add_argument("--photos", nargs="+", metavar="NAME", help="file names in the split (default: the first ones)")
    target.add_argument("--limit", type=int, default=20, help="how many without --photos (default: %(default)s)")
    target.add_argument("--checkpoint", type=Path, help="response network (default: the config's)")
    target.add_argument("--proposals", type=Path, help="region store (default: where the config expects it, if there)")
    target.add_argument("--output", type=Path, help="folder (default: <work_dir>/pictures/prm)")


def train(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Train CIM as a config says, or continue a run that was stopped: the same command does both. On several GPUs: "
        "torchrun --nproc_per_node 4 -m cim train CONFIG gives the same updates.",
        "cim train resnet50_voc --set train.workers=8 train.precision=bf16",
    )
    add_config_args(target)
    before = target.add_mutually_exclusive_group()
    before.add_argument("--prepare", action="store_true", help="run the stages that are missing before it, too")
    before.add_argument("--missing", action="store_true", help="only list these stages, one per line")


def scenes(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Scenes of known truth for a second training: instances that a trained CIM is sure of are cut out of their "
        "photos and pasted beside and over others of their class.",
        "cim score runs/animals/config.yaml --split train\n"
        "  cim scenes runs/animals/config.yaml\n"
        "  cim train runs/animals/config.yaml --set work_dir=runs/animals/second train.scenes=2 train.stretch=0.5 "
        "train.start=runs/animals/train/final.pth data.scenes=runs/animals/scenes "
        "data.proposals=runs/animals/proposals/train data.first_labels=runs/animals/first_labels",
    )
    add_config_args(target)
    target.add_argument("--count", type=int, default=300, help="how many (default: 300)")
    target.add_argument("--seed", type=int, default=0, help="default: 0")
    target.add_argument("--checkpoint", help="the network whose scores are used (default: the config's own)")
    target.add_argument("--overwrite", action="store_true", help="make them all again")


def refine(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Train Mask R-CNN on pseudo labels, or continue a stopped run; then evaluate it where there are masks.",
        "cim refine resnet50_voc --set refine.precision=bf16\n  torchrun --nproc_per_node 4 -m cim refine resnet50_voc",
    )
    add_config_args(target)
    target.add_argument("--labels", type=Path, help="COCO json (default: the thresholded pseudo labels of the config)")
    target.add_argument("--images", type=Path, help="folder of the photos (default: what the labels say)")
    target.add_argument("--run", type=Path, help="run folder (default: <work_dir>/mask_rcnn)")
    target.add_argument("--name", help='row in metrics.json (default: "CIM + Mask R-CNN")')
    target.add_argument("--split", help="evaluate on this split (default: data.eval_split)")
    target.add_argument("--no-evaluation", action="store_true", help="train only")
