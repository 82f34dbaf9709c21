"""Options of what turns networks into masks, numbers and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.cli.common import add_config_args, add_stage_args, add_workers, describe

BRANCHES = ("scores", "mil", "both")
BRANCH_HELP = "scores: CIM; mil: the anti-noise branch alone; both: their geometric mean"
MODES = ("predictions", "truth", "both")


def score(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Run a trained network over a split: scores of all proposals, then detections as a COCO result file.",
        "cim score resnet50_voc\n  torchrun --nproc_per_node 4 -m cim score resnet50_voc",
    )
    add_config_args(target)
    target.add_argument("--checkpoint", help="a checkpoint or a run folder (default: that of the config)")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--output", type=Path, help="folder (default: <work_dir>/detections/<split>)")
    add_workers(target)
    target.add_argument("--overwrite", action="store_true", help="score again what is already there")


def evaluate(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Metrics and diagnosis of detections: those of a config's run, or any COCO result file.",
        "cim evaluate resnet50_voc --oracle\n"
        "  cim evaluate resnet50_voc --branch mil          # row WSDDN, no second run of the network\n"
        "  cim evaluate --results results.json --annotations val.json --output out\n"
        "  cim evaluate --results pseudo_labels.json --annotations train_boxes.json --output out    # boxes only",
    )
    add_config_args(target, optional=True)
    target.add_argument(
        "--results", type=Path, help="a COCO result file, or pseudo labels, instead of the run's detections"
    )
    target.add_argument(
        "--annotations", type=Path, help="COCO json with masks, or with boxes alone (default: that of the data set)"
    )
    target.add_argument(
        "--listed-only",
        action="store_true",
        help="leave out results of photos that the annotations do not list (always so for boxes and pseudo labels)",
    )
    target.add_argument("--detections", type=Path, help="a published detections.pkl or discovery.pkl")
    target.add_argument("--checkpoint", help="evaluate the detections of this checkpoint or run folder")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--branch", choices=BRANCHES, default="scores", help=BRANCH_HELP)
    target.add_argument("--nms", choices=("box", "mask"), help="default: infer.nms")
    target.add_argument("--nms-iou", type=float, help="default: infer.nms_iou")
    target.add_argument("--name", help="name of the row in metrics.json (default: the method's)")
    target.add_argument("--oracle", action="store_true", help="also the rows of the best proposals")
    target.add_argument("--metric", choices=("voc", "coco"), help="default: coco for COCO, voc otherwise")
    target.add_argument(
        "--box-plus-one", action="store_true", help="boxes: one pixel more per side (docs/DIFFERENCES.md)"
    )
    target.add_argument("--box-strict", action="store_true", help="boxes: IoU above 0.5, not 0.5 or above")
    target.add_argument("--corloc", action="store_true", help="also CorLoc (always on the training split)")
    target.add_argument("--backend", choices=("faster", "pycocotools"), default="faster")
    target.add_argument("--score-threshold", type=float, help="diagnose all detections above it")
    target.add_argument("--output", type=Path, help="folder of metrics.json and diagnosis.json (default: work_dir)")
    target.add_argument("--workers", type=int, default=1, help="processes of the selection")
    target.add_argument("--if-annotated", action="store_true", help="do nothing for a split without masks")


def average(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Several trained networks as one: the mean of their scores, then detections as a COCO result file. All must "
        "have scored the same proposals (cim score).",
        "cim average runs/a/config.yaml --runs runs/a runs/b runs/c --output runs/mean\n"
        "  cim evaluate runs/a/config.yaml --results runs/mean/detections/val/results.json --name mean",
    )
    add_config_args(target)
    target.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders (work_dir) to average")
    target.add_argument("--output", type=Path, required=True, help="gets detections/<split>")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--branch", choices=BRANCHES, default="scores", help="as in cim evaluate")
    add_workers(target)
    target.add_argument("--overwrite", action="store_true", help="average again what is already there")


def retrieve(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Instance masks from peak responses alone (PRM), as a COCO result file beside CIM's. Classes are those whose "
        "image score is above 0, or with --use-tags the photo's tags.",
        "cim retrieve resnet50_voc --use-tags --output runs/prm_instances.json",
    )
    add_config_args(target)
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--checkpoint", type=Path, help="response network (default: the config's)")
    target.add_argument("--proposals", type=Path, help="region store (default: where the config expects it)")
    target.add_argument("--use-tags", action="store_true", help="look for the tagged classes only")
    target.add_argument("--limit", type=int, help="the first photos only")
    target.add_argument("--output", type=Path, help="default: <work_dir>/prm_instances/<split>/results.json")


def compare(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Runs side by side: the rows of their metrics.json as Markdown tables and as a plot, and for every metric the "
        "difference between methods with its 95 % interval (paired bootstrap over photos, and over seeds where a "
        "method has several runs). Rows of one name are compared, each with that of the first run.",
        "cim compare runs/resnet50_voc runs/mist --plot compare.png\n"
        "  cim compare old=runs/old_0,runs/old_1,runs/old_2 new=runs/new_0,runs/new_1,runs/new_2",
    )
    target.add_argument(
        "runs", nargs="+", metavar="RUN", help="work folder or metrics.json; [NAME=]RUN,RUN,...: seeds of one method"
    )
    target.add_argument("--multi", action="store_true", help="on the pictures with two or more instances")
    target.add_argument("--plot", type=Path, help="png, pdf or svg to draw")
    target.add_argument("--resamples", type=int, default=1000, help="draws of the intervals (1000); 0: no intervals")
    target.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    target.add_argument("--annotations", type=Path, help="COCO json for the intervals (default: that of each row)")


def visualize(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Photos with their instances painted on: predictions, ground truth, or both side by side.",
        "cim visualize resnet50_voc --mode both\n"
        "  cim visualize --results results.json --annotations val.json --images photos --output pictures",
    )
    add_config_args(target, optional=True)
    target.add_argument("--results", type=Path, help="COCO result file (default: the run's detections)")
    target.add_argument("--annotations", type=Path, help="COCO json: sizes, classes, masks (default: the data set's)")
    target.add_argument("--images", type=Path, help="folder of the photos that --annotations names")
    target.add_argument("--split", help="default: data.eval_split")
    target.add_argument("--mode", choices=MODES, help="default: both with annotated masks, predictions without")
    target.add_argument("--score-threshold", type=float, default=0.3, help="leave out weaker detections (0.3)")
    target.add_argument("--max-images", type=int, help="only so many, spread evenly over the split")
    target.add_argument("--output", type=Path, help="folder (default: <work_dir>/pictures/<split>_<mode>)")
    add_stage_args(target)


def report(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "One self-contained report.html about a run: numbers, curves, diagnosis, pictures.",
        "cim report runs/resnet50_voc",
    )
    target.add_argument("run", type=Path, help="the run folder (work_dir of its config)")
    target.add_argument("--config", help="yaml file or name (default: RUN/config.yaml or RUN/train/config.yaml)")
    target.add_argument("--split", help="evaluated split (default: data.eval_split)")
    target.add_argument("--results", type=Path, help="COCO result file (default: RUN/detections/SPLIT/results.json)")
    target.add_argument("--annotations", type=Path, help="COCO json with masks, with --images (default: the config's)")
    target.add_argument("--images", type=Path, help="folder of the photos that --annotations names")
    target.add_argument("--output", type=Path, help="default: RUN/report.html")
    target.add_argument("--each", type=int, default=6, help="best, worst and random photos each (6)")
    target.add_argument("--seed", type=int, default=0, help="of the random photos")


def review(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "One page in the browser, for this machine alone: the photos of a run, most doubtful first, with their masks "
        "to accept, delete and replace. All is saved at once in RUN/corrections.json, for the same cim run to heed.",
        "cim review runs/mine",
    )
    target.add_argument("run", type=Path, help="the run folder (work_dir of its config)")
    target.add_argument("--config", help="yaml file or name (default: RUN/config.yaml or RUN/train/config.yaml)")
    target.add_argument("--port", type=int, default=0, help="of the page's address (default: any that is free)")
