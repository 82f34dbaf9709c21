"""What a round of corrections brings on the demo's pictures: numbers before, and after a person looked at some photos.

The person is played. Which photos: those that ``worth_a_look.json`` names first, or as many drawn by lot. Per photo,
with the pictures' truth before the eyes: a mask with an IoU of 0.75 or more is accepted, any other deleted; for an
instance without a mask the best proposal is clicked on where it has 0.5 or more (``drawn``: its true mask is drawn
instead); then it is said how many there are. What is decided goes through the review's own functions into
``corrections.json``, and the same ``cim run`` goes on from there. Every seed trains CIM anew, before and after;
proposals and response network are shared.

What is finished in the folder stays: a killed call goes on with the same command. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from cim.cli.common import parser, run
from cim.config.loading import load_config
from cim.config.run_paths import CORRECTIONS, WORTH_A_LOOK
from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.core.regions import RegionSet
from cim.core.run_lengths import compressed
from cim.core.types import Rle
from cim.evaluation.coco_results import load_ground_truth
from cim.evaluation.metrics_file import load_rows
from cim.review import decisions as edits
from cim.review.corrections import photo_name, write_corrections
from cim.review.decisions import NOTHING, SHARED, Decision, Shape
from cim.review.desk import Sheet, open_desk

GOOD, FAIR = 0.75, 0.5  # mask IoU with the truth from which a mask is accepted, a proposal clicked on
SHARED_STAGES = ("proposals", "prm", "peaks", "first_labels", "features")  # of all seeds
COLUMNS = ("mAP@0.25", "mAP@0.50", "mAP@0.70", "mAP@0.75")
WAYS = {  # which photos, whether truth is drawn, further settings
    "doubtful": ("the most doubtful photos", True, False, ()),
    "random": ("photos drawn by lot", False, False, ()),
    "undeleted": ("the most doubtful photos, deleted masks not heeded", True, False, ("data.rejected=false",)),
    "drawn": ("the most doubtful photos, masks drawn", True, True, ()),
    "random-drawn": ("photos drawn by lot, masks drawn", False, True, ()),
}


# ---------------------------------------------------------------------- the person


def corrected(sheet: Sheet, regions: RegionSet, truth: Sequence[Shape], drawn: bool) -> Decision:
    """What a person decides who knows the truth of a photo."""
    decision, found, size = NOTHING, sheet.found, sheet.record.size
    proposals = [] if drawn else compressed(regions.rles(range(len(regions))), regions.size)
    for class_id in sheet.record.tags:
        left = [shape for shape in truth if shape.class_id == class_id]
        number = len(left)
        for shape in [one for one in found.scores if one.class_id == class_id]:
            ious = _ious(_rle(shape, size), [_rle(one, size) for one in left])
            if ious.max(initial=0) >= GOOD:
                decision = edits.accept(decision, found, [shape])
                left.pop(int(ious.argmax()))
            else:
                decision = edits.delete(decision, found, shape)
        for one in left:
            shape = one if drawn else _clicked(one, proposals, decision.of(class_id), size)
            if shape is not None:
                decision = edits.add(decision, found, shape)
        decision = edits.set_number(decision, class_id, number)
    return decision


def _clicked(truth: Shape, proposals: Sequence[Rle], there: Sequence[Shape], size: tuple[int, int]) -> Shape | None:
    """The best proposal that takes no accepted mask's place; None: it is too bad."""
    ious = _ious(_rle(truth, size), proposals)
    for row in np.argsort(-ious):
        if ious[row] < FAIR:
            break
        if all(_shared(proposals[row], _rle(other, size)) < SHARED for other in there):
            return Shape(truth.class_id, str(proposals[row]["counts"]))
    return None


def _ious(one: Rle, others: Sequence[Rle]) -> np.ndarray:
    return np.asarray(coco_mask.iou([one], list(others), [0] * len(others)), np.float64).reshape(-1)


def _shared(one: Rle, other: Rle) -> float:
    """Share of the smaller of two masks."""
    both = float(coco_mask.area(coco_mask.merge([one, other], intersect=True)))
    return both / max(min(float(coco_mask.area(one)), float(coco_mask.area(other))), 1.0)


def _rle(shape: Shape, size: tuple[int, int]) -> Rle:
    return {"size": [int(size[0]), int(size[1])], "counts": shape.mask}


def review(before: Path, after: Path, names: Sequence[str], drawn: bool) -> None:
    """Write the corrections of these photos, and beside them how much work they were."""
    config = load_config(before / "config.yaml")
    desk = open_desk(config, after / CORRECTIONS)
    truth = load_ground_truth(str(config.data.train_annotations))
    number = {name: k for k, name in enumerate(desk.dataset.classes)}
    decisions, work = {}, dict.fromkeys(("accepted", "added", "deleted", "instances"), 0)
    sheets = {photo_name(sheet.record, desk.images): sheet for sheet in desk.sheets}
    for sheet in (sheets[name] for name in names):
        image_id = sheet.record.image_id
        lines = truth.by_image[image_id]
        shapes = [Shape(number[truth.categories[line["category_id"]]], line["rle"]["counts"]) for line in lines]
        decision = decisions[image_id] = corrected(sheet, desk.regions(sheet), shapes, drawn)
        kept = sum(shape in sheet.found.scores for shape in decision.accepted)
        for key, count in zip(work, (kept, len(decision.accepted) - kept, len(decision.deleted), len(shapes))):
            work[key] += count
    write_json(after / "work.json", work)
    write_corrections(after / CORRECTIONS, decisions, desk.dataset, desk.images)


# ---------------------------------------------------------------------- the rounds


def cim(*words: object) -> None:
    """Run a command.

    Raises:
        CimError: it failed.
    """
    command = [sys.executable, "-m", "cim", *map(str, words)]
    if code := subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode:
        raise CimError("a command failed", found=f"exit code {code}", fix="see above; the same call goes on")


def go(pictures: Path, output: Path, seed: int, *settings: str) -> None:
    """The same command before and after."""
    given = ["--images", pictures / "images" / "train", "--tags", pictures / "train_tags.csv"]
    given += ["--val", pictures / "images" / "val", "--val-masks", pictures / "val_instances.json"]
    data = [f"data.train_annotations={pictures / 'train_instances.json'}"]  # whose masks only the played person sees
    data += [f"data.val_tags={pictures / 'val_tags.csv'}", f"train.seed={seed}"]
    cim("run", *given, "--config", "demo", "--no-refine", "--output", output, "--set", *data, *settings)


def copied(source: Path, target: Path, names: Sequence[str] | None = None) -> None:
    """A run folder, or some of its stages, under another name, unless that is there; times of files stay."""
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in source.iterdir() if names is None else [source / name for name in names if (source / name).exists()]:
        if path.is_dir():
            shutil.copytree(path, part / path.name)
        else:
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, part / path.name)
    part.rename(target)


def rounds(args: argparse.Namespace, way: str, seed: int) -> None:
    """One round of one seed: before, which is shared by all ways, the person, after."""
    pictures, (_, doubtful, drawn, settings) = args.folder / "pictures", WAYS[way]
    before, after = args.folder / f"before_{seed}", args.folder / f"{way}_{args.photos}_{seed}"
    if seed != args.seeds[0]:
        copied(args.folder / f"before_{args.seeds[0]}", before, SHARED_STAGES)
    if not (before / WORTH_A_LOOK).is_file():
        go(pictures, before, seed)
    if (after / "done").is_file():
        return
    copied(before, after)
    if not (after / CORRECTIONS).is_file():
        names = [photo["image"] for photo in read_json(before / WORTH_A_LOOK)["photos"]]
        chosen = names[: args.photos] if doubtful else random.Random(seed).sample(sorted(names), args.photos)
        review(before, after, chosen, drawn)
    go(pictures, after, seed, *settings)
    (after / "done").touch()


def row(title: str, runs: Sequence[Path]) -> str:
    """Mean over seeds, and from the lowest to the highest."""
    values = np.array([[load_rows(path)["CIM"][column] for column in COLUMNS] for path in runs])
    means = " / ".join(f"{value:.1f}" for value in values.mean(0))
    spread = " / ".join(f"{low:.0f}-{high:.0f}" for low, high in zip(values.min(0), values.max(0)))
    return f"| {title} | {means} | {spread} |"


def get_parser() -> argparse.ArgumentParser:
    target = parser(__doc__, "python benchmarks/review_round.py --folder out --photos 20")
    target.add_argument("--folder", type=Path, required=True, help="where the pictures and all runs go")
    target.add_argument("--photos", type=int, default=20, help="how many the person looks at")
    target.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    target.add_argument("--ways", nargs="+", choices=WAYS, default=["doubtful", "random"])
    target.add_argument("--train", type=int, default=200, help="training pictures")
    target.add_argument("--val", type=int, default=60, help="validation pictures")
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = get_parser().parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "pictures").is_dir():
        cim("draw", args.folder / "pictures", "--train", args.train, "--val", args.val)
    for seed in args.seeds:
        for way in args.ways:
            rounds(args, way, seed)
    print("\n| | mAP 25 / 50 / 70 / 75 | of the seeds | accepted, added, deleted, of instances |\n|---|---|---|---|")
    print(row("before", [args.folder / f"before_{seed}" for seed in args.seeds]) + " |")
    for way in args.ways:
        runs = [args.folder / f"{way}_{args.photos}_{seed}" for seed in args.seeds]
        work = [json.loads((path / "work.json").read_text()) for path in runs]
        told = ", ".join(f"{np.mean([one[key] for one in work]):.0f}" for key in work[0])
        print(row(f"{args.photos} photos: {WAYS[way][0]}", runs) + f" {told} |")


if __name__ == "__main__":
    sys.exit(run(main))
