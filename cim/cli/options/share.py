"""Options of what goes to others: masks on new photos, pseudo labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from cim.cli.common import add_config_args, add_workers, describe, positive

RLE = ("compressed", "uncompressed")
KINDS = ("absolute", "quantile")  # the next three as in export's settings
EMPTY_IMAGES = ("keep", "drop")
PHOTOS = ("link", "copy")
SCORES = ("keep", "weight", "drop")
FORMATS = ("coco", "mmdet", "yolo", "voc", "labelme", "cvat", "label-studio")  # cim/labels/formats/table.py
CORRECTING = FORMATS[-3:]


def predict(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Instance masks on any photos with a trained network: a COCO json and overlays; nothing else is needed.",
        "cim predict holiday/ --checkpoint runs/resnet50_voc --tags dog person --output masks",
    )
    target.add_argument("photos", nargs="+", type=Path, metavar="PHOTO|FOLDER|PATTERN")
    target.add_argument("--checkpoint", required=True, help="a checkpoint, a run folder, or an ONNX file")
    tags = target.add_mutually_exclusive_group()
    tags.add_argument("--tags", nargs="+", help="only these classes, when you know what is in the pictures")
    tags.add_argument("--tags-file", type=Path, metavar="CSV", help="the same for each photo: a csv image,labels")
    target.add_argument("--output", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    target.add_argument("--score-threshold", type=float, default=0.3, help="default: 0.3")
    target.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    target.add_argument("--weights", type=Path, help="ImageNet weights for the proposals, if they have moved since")
    target.add_argument("--no-overlays", action="store_true", help="only predictions.json")
    target.add_argument("--jsonl", action="store_true", help="print a json line per photo as soon as it is done")
    target.add_argument("--batch", type=positive, default=8, help="photos looked at together (default: 8)")


def export_model(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "A trained Mask R-CNN as an ONNX file: onnxruntime runs it on photos of any size, without PyTorch.",
        "cim export-model runs/resnet50_voc/mask_rcnn --output model.onnx\n"
        "  cim predict holiday/ --checkpoint model.onnx --output masks",
    )
    target.add_argument("checkpoint", help="a checkpoint of cim refine, or its run folder")
    target.add_argument("--output", type=Path, default=Path("model.onnx"), help="default: model.onnx")


def export(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Pseudo labels for Mask R-CNN: detections on the training photos, of the classes each is said to show. With "
        "--format: labels that are there, for the programs that others train and correct with.",
        "cim score resnet50_voc --split trainaug   # scores first\n"
        "  cim export resnet50_voc\n"
        "  cim export resnet50_voc --from-mask-rcnn   # one more round\n"
        "  cim export runs/animals/config.yaml --format mmdet yolo --val 0.2\n"
        "  cim export runs/animals/config.yaml --review 30 --format labelme\n"
        "  cim export --labels predictions/predictions.json --images holiday --format labelme --output holiday_labels",
    )
    add_config_args(target, optional=True)
    target.add_argument("--checkpoint", help="whose scores: a checkpoint or a run folder (default: that of the config)")
    target.add_argument("--scores", type=Path, help="a folder of scores, e.g. RUN/detections/SPLIT, instead")
    target.add_argument(
        "--from-mask-rcnn",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="label with a trained Mask R-CNN instead (default: that of the config)",
    )
    target.add_argument("--split", help="default: data.train_split")
    target.add_argument("--output", type=Path, help="default: <work_dir>/pseudo_labels/msrcnn_pseudo_label.json")
    target.add_argument("--rle", choices=RLE, default="compressed", help="form of the masks (without --format)")
    add_workers(target)
    others = target.add_argument_group("for other programs (docs/EXPORT.md)")
    others.add_argument(
        "--format", nargs="+", action="extend", choices=FORMATS, help="each in its folder below --output"
    )
    others.add_argument(
        "--review",
        nargs="?",
        type=positive,
        const=50,
        metavar="N",
        help=f"only the N (50) most doubtful training photos, to be corrected in {', '.join(CORRECTING)}, "
        "in <work_dir>/to_review (docs/ANNOTATE.md)",
    )
    others.add_argument("--labels", type=Path, help="COCO json (default: the thresholded pseudo labels of the config)")
    others.add_argument("--images", type=Path, help="folder of their photos (default: what the labels say)")
    others.add_argument("--photos", choices=PHOTOS, default="link", help="default: %(default)s")
    others.add_argument("--val", type=float, metavar="SHARE", help="share of the photos to validate on")
    others.add_argument("--val-labels", type=Path, help="COCO json of other photos to validate on")
    others.add_argument("--val-images", type=Path, help="folder of their photos (default: what the labels say)")
    others.add_argument("--seed", type=int, default=0, help="of the choice of --val (default: %(default)s)")
    others.add_argument(
        "--empty-images", choices=EMPTY_IMAGES, help="photos without instances (default: kept where people correct)"
    )
    others.add_argument("--overwrite", action="store_true", help="replace what is there")


def threshold(target: argparse.ArgumentParser) -> None:
    describe(
        target,
        "Choose among pseudo labels: a threshold on the score and other choices; a checked copy is written. Choices "
        "that are not given here come from the config's export section.",
        "cim threshold resnet50_voc --threshold 0.4\n"
        "  cim threshold resnet50_voc --sweep   # what each threshold would keep",
    )
    add_config_args(target)
    target.add_argument("--input", type=Path, help="labels (default: those of the config's run)")
    target.add_argument("--output", type=Path, help="default: beside the input, with the threshold in its name")
    target.add_argument("--split", help="default: data.train_split")
    target.add_argument("--threshold", type=float, help="keep scores from here on; a share with --kind quantile")
    target.add_argument("--kind", choices=KINDS, dest="threshold_kind")
    target.add_argument("--keep-best-per-tag", action="store_true", default=None, help="at least one per image and tag")
    target.add_argument("--min-area", type=int, help="pixels")
    target.add_argument("--mask-nms", type=float, metavar="IOU", help="drop what overlaps a better one of its class")
    target.add_argument("--empty-images", choices=EMPTY_IMAGES, help="photos left without instances")
    target.add_argument("--scores", choices=SCORES, help="weight: adds the score over the class's best")
    target.add_argument("--rle", choices=RLE, default="compressed", help="form of the masks")
    target.add_argument("--sweep", action="store_true", help="only print what each threshold would keep")
    target.add_argument("--annotations", type=Path, help="COCO json with true masks for the sweep")
