"""Options of what comes before training."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.cli.common import add_config_args, add_stage_args, describe, positive
from cim.cli.options.share import FORMATS

DATASETS = ("coco", "voc")  # in the published tree
PROPOSALS = ("mat", "rle", "pickle")  # that already exist
PURPOSES = ("training", "evaluation", "export")
COUNTS = (10, 30, 100, 300, 1000)  # of proposals, at which their recall is measured


def check(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Tell what a config needs on disk for training, evaluation and export: there, missing or damaged. "
        "Exit code 2 when something required is absent.",
        "cim check resnet50_voc --for training",
    )
    add_config_args(target, optional=True)
    target.add_argument("--config", dest="option", metavar="CONFIG", help="the same, as an option")
    target.add_argument("--for", dest="purposes", nargs="+", choices=PURPOSES, default=PURPOSES, help="default: all")
    target.add_argument("--deep", action="store_true", help="decode every photo, open every artefact")
    target.add_argument("--workers", type=positive, default=4, help="processes (default: %(default)s)")


def draw(target: argparse.ArgumentParser) -> None:
    describe(target, "Write the demo data set: drawn objects of five classes with exact masks.", "cim draw data/demo")
    target.add_argument("root", type=Path, help="new folder")
    target.add_argument("--train", type=int, default=200, help="training pictures (default: 200)")
    target.add_argument("--val", type=int, default=60, help="validation pictures (default: 60)")
    target.add_argument("--seed", type=int, default=0)


def voc(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "From VOCdevkit/VOC2012 and, if there is one, an SBD copy: voc_2012_trainaug.json and voc_2012_val.json. From "
        "VOCdevkit/VOC2007: voc_2007_trainval.json and voc_2007_test.json with boxes, and voc_2007_..._masks.json of "
        "the photos that have masks. The year is that of the folder's name, else of its annotations.",
        "cim voc --devkit VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset\n  cim voc --devkit VOCdevkit/VOC2007",
    )
    target.add_argument("--devkit", type=Path, required=True, help="VOCdevkit/VOC2012 or VOCdevkit/VOC2007")
    target.add_argument(
        "--sbd", type=Path, help="folder with inst/*.mat, train.txt, val.txt; without it: VOC's own train"
    )
    target.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 (default: %(default)s)")
    target.add_argument("--overwrite", action="store_true", help="make files again that are there")


def proposals(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Proposals for any photos: a region store for a config's split or a folder, and COB's .mat files on request.",
        "cim proposals resnet50_voc --split trainaug\n"
        "  cim proposals --images photos --output proposals --max-proposals 300\n"
        "  cim proposals --images photos --output proposals --method sam --checkpoint facebook/sam-vit-base",
    )
    add_config_args(target, optional=True)
    target.add_argument("--split", help="split of the config's data set (default: data.train_split)")
    target.add_argument("--images", type=Path, help="instead of a config: a folder of photos")
    target.add_argument("--method", choices=("grouping", "sam"), help="default: proposals.method (grouping)")
    target.add_argument("--max-proposals", type=int, help="at most so many (default: proposals.max_proposals, 1000)")
    target.add_argument("--weights", help="ImageNet weights file of the grouping cue (default: proposals.weights)")
    target.add_argument("--no-deep-features", action="store_true", help="group by colour and texture only")
    target.add_argument("--checkpoint", help="SAM checkpoint: hub name or folder (default: proposals.sam_checkpoint)")
    target.add_argument(
        "--prompts",
        choices=("grid", "peaks", "both"),
        help="what SAM is asked about (default: proposals.prompts, grid)",
    )
    target.add_argument("--output", type=Path, help="store to write (default: where the config expects it)")
    target.add_argument("--export-mat", type=Path, metavar="FOLDER", help="also COB .mat files")
    target.add_argument("--mat-layout", choices=("voc", "coco"), default="voc", help="default: voc")
    target.add_argument(
        "--device", help="auto, cpu, cuda, ... (default: cpu, in every worker; SAM: the config's device)"
    )
    add_stage_args(target)
    target.set_defaults(workers=None)  # one beside a GPU


def import_(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Proposals that already exist - COB .mat files, a COCO-RLE json, a published cob/*.pkl - into a store of ours. "
        "Labels of other programs into a COCO json: masks, boxes or tags, as far as they go (docs/EXPORT.md).",
        "cim import --from mat --dataset voc --data-root data --split trainaug\n"
        "  cim import --from labelme --input corrected --output corrected.json\n"
        "  cim import --from cvat --input annotations.xml --images photos --output corrected.json",
    )
    target.add_argument("--from", dest="source_kind", choices=(*PROPOSALS, *FORMATS), required=True)
    target.add_argument(
        "--input", type=Path, help="folder of .mat files, json, or pickle (mat: default of the data set); of labels"
    )
    target.add_argument("--images", type=Path, help="labels: folder of their photos (default: where they say)")
    target.add_argument("--dataset", choices=DATASETS, help="data set in the published tree")
    target.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 and coco2017")
    target.add_argument("--config", help="instead of --dataset: a config, for folders of photos")
    target.add_argument("--split", help="split of the data set (default: the training split; labels: all)")
    target.add_argument("--maker", help="who made the proposals (default for mat and pickle: COB)")
    target.add_argument(
        "--trained-on-masks",
        choices=("false", "true", "unknown"),
        help="was their maker trained on masks (COB: true; else: unknown)",
    )
    target.add_argument("--allow-empty", action="store_true", help="keep masks without a pixel")
    target.add_argument(
        "--output", type=Path, help="store to write (default: where the config expects it); json of labels"
    )
    add_stage_args(target)


def recall(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Recall, composition and oracle mAP of a region store against annotated masks, as tables, json and a plot.",
        "cim recall --proposals runs/mine/proposals/val --annotations val.json",
    )
    target.add_argument("--proposals", type=Path, required=True, help="region store")
    target.add_argument("--annotations", type=Path, required=True, help="COCO json with masks")
    target.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="numbers of proposals")
    target.add_argument("--output", type=Path, help="folder of recall.json and recall.png (default: the store)")
    target.add_argument("--allow-missing", action="store_true", help="leave out photos without proposals")
    target.add_argument("--no-oracle", action="store_true", help="without the oracle mAP")


def pack(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "All files of a store (proposals, peaks, first labels, features, scores, scenes) in one, for file systems that "
        "suffer from many small ones. Every command reads and writes either form; --set data.packed=true begins new "
        "stores so.",
        "cim pack runs/mine/proposals/train runs/mine/first_labels\n  cim pack --undo runs/mine/first_labels",
    )
    target.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="folder with a manifest.json")
    target.add_argument("--undo", action="store_true", help="a file for each photo again")


def grids(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Boxes and 7x7 mask grids of all proposals of a split, as the published cob/*.pkl. Per image only N x 49 bytes "
        "of grids and N x 8 of boxes are kept, so the one pickle that the format asks for fits in memory (train2017 "
        "with 1,000 proposals per image: about 7 GB; masks themselves never accumulate).",
        "cim grids --dataset voc --data-root data --split trainaug",
    )
    _published(target, "pickle to write (default: data/cob/<data set>_<split>.pkl)")


def overlaps(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "All pairs of proposals, float16 [N, N] per image. iou: as the published cob_iou/<set>/<image>.pkl. "
        "containment: as cob_asy_iou/<set>/<image>.pkl; row i, column j says how much of proposal j lies inside "
        "proposal i. Training with this project needs no such files: it computes both when it needs them.",
        "cim overlaps iou --dataset voc --data-root data --split trainaug",
    )
    target.add_argument("which", choices=("iou", "containment"))
    _published(target, "folder to write (default: data/cob_iou or data/cob_asy_iou, and VOC2012 or coco2017 in it)")


def _published(target: argparse.ArgumentParser, output: str) -> None:
    target.add_argument("--dataset", choices=DATASETS, required=True)
    target.add_argument("--data-root", type=Path, default=Path("data"), help="folder of VOC2012 and coco2017")
    target.add_argument("--split", help="trainaug (default), val; train2017 (default), val2017, test-dev2017")
    target.add_argument("--mat-dir", type=Path, help="COB files (default: COB_SBD_<split> or COB-COCO)")
    target.add_argument("--regions", type=Path, help="read this region store instead of .mat files")
    target.add_argument("--allow-empty", action="store_true", help="keep masks without a pixel")
    target.add_argument("--output", type=Path, help=output)
    add_stage_args(target)
