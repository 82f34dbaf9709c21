"""The whole flow on a folder of tagged photos: masks, pseudo labels, a trained model, overlays and a report."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shlex
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from cim.cli.flow import Stage, done_otherwise, preparation, pseudo_labels, run_stages, stage
from cim.cli.jobs.changes import ask
from cim.cli.jobs.rounds import begin_round, has_other_tags, is_new_round
from cim.cli.worker import warm_up
from cim.config.loading import config_text, load_config, override
from cim.config.run_paths import CORRECTIONS
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import file_state, read_json, write_json, write_text
from cim.core.locks import hold
from cim.core.parallel import run_stage
from cim.core.photo import read_photo
from cim.datasets.base import Dataset
from cim.datasets.folder import listed_photos, open_folder
from cim.evaluation.coco_results import load_ground_truth
from cim.evaluation.verdicts import load_verdicts
from cim.labels.export import chosen_path, label_path

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.json"  # photos that cannot be read, and why
BUDGETS: dict[str, dict[str, object]] = {  # changes to the light schedule
    "quick": {"train.stretch": 0.6},  # and no Mask R-CNN: a short one is worse than its labels
    "normal": {},
    "long": {"train.stretch": 3, "refine.stretch": 4},
}


def main(args: argparse.Namespace) -> int:
    """2 when finished stages were made with other settings."""
    warm_up()
    refined = not args.no_refine and args.budget != "quick"
    with hold(args.output):
        code = _run(args, refined)
    if code:
        return code
    print(f"\nreport:        {args.output / 'report.html'}")
    print(f"pseudo labels: {args.output / 'pseudo_labels'}, painted: {args.output / 'pictures' / 'pseudo_labels'}")
    print(on_new_photos(args.output, refined))
    return 0


def _run(args: argparse.Namespace, refined: bool) -> int:
    settings, masks, state = resolve(args), bool(args.val_masks), state_of(args)
    left_out = unreadable_photos(args, state)
    if left_out["photos"]:
        settings.data.leave_out = str(args.output / LEFT_OUT)
    config, text = args.output / "config.yaml", config_text(settings)
    first = preparation(config, masks, prompted=settings.proposals.prompted)
    stages = first + training(config, masks) + pseudo_labels(config)
    if refined:
        stages.append(stage("Mask R-CNN", "refine", config, *([] if masks else ["--no-evaluation"])))
    stages += presentation(config, settings, masks)
    inputs, dataset = text + state, known_photos(args, left_out["photos"])
    known, absent = dataset.known_digest, dataset.absent_digest
    if done_otherwise(stages, args.output, inputs):
        before = settings.model_copy(deep=True)
        if not (args.output / LEFT_OUT).is_file():
            before.data.leave_out = None  # the finished stages knew of none
        learnt, tagged = not is_new_round(args.output, known), not has_other_tags(args.output, absent)
        if code := ask([before], masks, refined, learnt=learnt, tagged=tagged):
            return code
    begin_round(args.output, known, absent, settings.proposals.prompted)
    write_json(args.output / LEFT_OUT, left_out, indent=1)
    write_text(config, text)
    run_stages(stages, args.output, inputs)
    return 0


def on_new_photos(run_dir: Path, refined: bool) -> str:
    """What to run on new photos: Mask R-CNN first only where it was measured to be better than CIM."""
    commands = {
        name: shlex.join(["cim", "predict", "PHOTO_OR_FOLDER", "--checkpoint", str(run_dir / folder / "final.pth")])
        for name, folder in (("CIM", "train"), ("Mask R-CNN", "mask_rcnn"))
    }
    first = f"new photos:    {commands['CIM']}"
    if not refined:
        return first
    verdict = load_verdicts(run_dir / "verdicts.json").get("Mask R-CNN")
    if verdict is not None and verdict.level == "fine":
        return f"new photos:    {commands['Mask R-CNN']}"
    why = "without masks it is not known which is better" if verdict is None else verdict.reason
    return f"{first}\nor Mask R-CNN: {commands['Mask R-CNN']} ({why}; it needs no proposals and is faster)"


def resolve(args: argparse.Namespace) -> Config:
    """The settings of the run; nothing is written.

    Raises:
        CimError: files that are not there or cannot be used, or options that do not go together.
    """
    given = (args.images, args.tags, args.negatives, args.val, args.val_tags, args.val_masks, args.weights)
    for path in (*given, *args.known):
        if path is not None and not path.exists():
            raise CimError("no such file or folder", path=path)
    if args.val is None and (args.val_tags or args.val_masks):
        raise CimError("no photos to evaluate on", expected="--val FOLDER beside --val-tags or --val-masks")
    if any(setting.startswith("work_dir=") for setting in args.set):
        raise CimError("the run folder is --output", fix="leave work_dir out of --set")
    if args.device not in ("auto", "cpu"):
        from cim.config.device import resolve_device  # torch, which this process can do without

        resolve_device(args.device)
    if args.val_masks:
        load_ground_truth(args.val_masks)  # a damaged file is told now, not after training
    data = {
        "dataset": "folder",
        "train_split": "train",
        "eval_split": "val",
        "images": args.images,
        "tags": args.tags,
        "negatives": args.negatives,
        "val_images": args.val,
        "val_tags": args.val_tags,
        "val_annotations": args.val_masks,
    }
    settings: dict[str, object] = {f"data.{key}": str(value) for key, value in data.items() if value is not None}
    if known := [*args.known, *corrections(args)]:
        settings["data.known"] = [str(path) for path in known]
    settings |= {"work_dir": str(args.output), "name": args.output.name, "device": args.device}
    if args.weights:
        weights = str(args.weights.resolve())  # the networks are used from other folders, too
        seeing = ["proposals", "prm", "model"]
        if not load_config(args.config, args.set).model.backbone.startswith("timm:"):  # Mask R-CNN's is another trunk
            seeing.append("refine")
        settings |= {f"{section}.weights": weights for section in seeing}
    settings |= BUDGETS[args.budget]
    return load_config(args.config, [*(override(key, value) for key, value in settings.items()), *args.set])


def unreadable_photos(args: argparse.Namespace, inputs: str) -> dict[str, Any]:
    """What RUN/left_out.json says, or should: ``photos``, path -> what is wrong, of the training photos that cannot be
    read. Every photo is decoded once; nothing is written.

    Args:
        inputs: :func:`state_of` them; where they are as they were, no photo is looked at again.

    Raises:
        CimError: a validation photo that cannot be read (numbers on fewer photos would be other numbers), or tags and
            folders that do not fit.
    """
    path = args.output / LEFT_OUT
    state = hashlib.sha256(inputs.encode(errors="surrogateescape")).hexdigest()
    known = read_json(path, fix="delete it") if path.is_file() else {}
    if known.get("state") != state:
        if args.val:
            val = listed_photos(args.val, args.val_tags, annotations=args.val_masks, training=False)
            bad = undecodable(val, "validation photos")
            for message in bad.values():
                logger.error("cannot be used: %s", message)
            if bad:
                fix = "replace or remove them; the same command continues"
                raise CimError(f"{len(bad)} of {len(val)} validation photos cannot be read", path=args.val, fix=fix)
        photos = undecodable(listed_photos(args.images, args.tags, negatives=args.negatives), "photos")
        known = {"state": state, "photos": photos}
    for message in known["photos"].values():
        logger.warning("left out: %s", message)
    return known


def undecodable(photos: Sequence[Path], title: str) -> dict[str, str]:
    """Path -> what is wrong, of the photos that cannot be read to the last pixel."""
    # Where processes are not forked, one takes as long to start as 200 photos do.
    workers = min(os.cpu_count() or 1, 1 + len(photos) // 200)
    return run_stage(_decode, photos, description=f"looking at the {title}", workers=workers).failed


def _decode(photo: Path) -> None:
    read_photo(photo)


def corrections(args: argparse.Namespace) -> list[Path]:
    """What was said in a review of this run, if there was one."""
    path = args.output / CORRECTIONS
    return [path] if path.is_file() else []


def known_photos(args: argparse.Namespace, left_out: Container[str] = ()) -> Dataset:
    """The photos with what is known of them. ``left_out``: those not to look at."""
    return open_folder(args.images, args.tags, known=[*args.known, *corrections(args)], leave_out=left_out)


def state_of(args: argparse.Namespace) -> str:
    """Photos, tags and what is known as they are now: when they change, finished stages look again. What the run itself
    writes is no input, wherever its folder lies; what a person hands back may lie in there."""
    run_dir = args.output.resolve()
    files = _files_of(args.tags, args.val_tags, args.val_masks, args.images, args.negatives, args.val)
    files = [path for path in files if run_dir not in path.resolve().parents]
    return "".join(f"\n{file_state(path)}" for path in [*files, *_files_of(*args.known), *corrections(args)])


def _files_of(*paths: Path | None) -> list[Path]:
    """Files, and the files in folders."""
    found: list[Path] = []
    for path in paths:
        if path is not None:
            found += [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return found


def training(config: Path, masks: bool) -> list[Stage]:
    """CIM, and its numbers where there are masks."""
    stages = [stage("CIM training", "train", config)]
    if masks:
        results = config.parent / "prm_instances" / "val" / "results.json"
        stages += [
            stage("CIM on the validation photos", "score", config),
            stage("metrics of CIM", "evaluate", config, "--name", "CIM", "--oracle"),
            stage("metrics of WSDDN", "evaluate", config, "--branch", "mil", "--name", "WSDDN"),
            stage("PRM on the validation photos", "retrieve", config, "--output", results),
            stage("metrics of PRM", "evaluate", config, "--results", results, "--name", "PRM"),
        ]
    return stages


def presentation(config: Path, settings: Config, masks: bool) -> list[Stage]:
    """Pictures and the report. Few pictures, made anew: older ones may show labels or masks of before."""
    labels = chosen_path(label_path(settings, settings.data.train_split), settings.export)
    painted = config.parent / "pictures" / "pseudo_labels"
    shown = [
        stage(
            "overlays of the pseudo labels",
            "visualize",
            config,
            *("--split", settings.data.train_split, "--results", labels, "--score-threshold", 0),
            *("--max-images", 50, "--output", painted, "--overwrite"),
        )
    ]
    if masks:
        title = "overlays of the validation photos"
        shown.append(stage(title, "visualize", config, "--max-images", 50, "--overwrite"))
    return [*shown, stage("report", "report", config.parent)]
