"""Proposals for any photos: a region store for a config's split or a folder, and COB's .mat files on request."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cim.config.build import build_dataset, proposer_options
from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, ProposalConfig
from cim.core.errors import CimError
from cim.core.leftovers import sweep
from cim.core.locks import hold
from cim.core.parallel import run_stage
from cim.datasets.base import Dataset, Record
from cim.datasets.photo_files import PHOTO_SUFFIXES, photos_below
from cim.prm.trained import PeakPrompter, peak_prompter
from cim.proposals.options import provenance
from cim.proposals.published_tree import refuse_shared_names
from cim.proposals.stage import ProposalStage, open_proposer, prompt_counts
from cim.storage.photos import drop_replaced
from cim.storage.store import Store


def main(args: argparse.Namespace) -> int:
    """2 when some photos could not be read; the others are done."""
    config = load_config(args.config, args.set) if args.config is not None else None
    settings, records, output, locked, unlisted = _task(args, config)
    with hold(locked):
        return _make(args, settings, records, output, unlisted, config)


def _make(
    args: argparse.Namespace,
    settings: ProposalConfig,
    records: Sequence[Record],
    output: Path,
    unlisted: list[CimError],
    config: Config | None,
) -> int:
    own = config.device if config is not None and settings.method == "sam" else "cpu"
    device, packed = str(resolve_device(args.device or own)), config is not None and config.data.packed
    options, prompter = proposer_options(settings), _prompter(settings, config, device)
    open_proposer(options, device)  # a missing package, checkpoint or weights file stops here, not in a worker
    if args.export_mat is not None:
        refuse_shared_names(records, args.export_mat)
        sweep(args.export_mat)
    made_from = provenance(options, output, None if prompter is None else prompter.provenance())
    store = Store.create(output, "regions", made_from, args.overwrite, packed)
    tagged = config is not None and args.split in (None, config.data.train_split)
    stage = ProposalStage(store, options, device, args.export_mat, args.mat_layout, prompter, tagged)
    drop_replaced(store, records, stage.depends_on)
    waiting = stage.waiting(records)
    report = run_stage(
        stage,
        waiting,
        names=[str(record.path) for record in waiting],
        description=f"proposals ({settings.method})",
        workers=args.workers or (os.cpu_count() or 1 if device == "cpu" else 1),
        scheduler=args.scheduler,
    )
    report.failed |= {str(error.path): str(error) for error in unlisted}
    code = report.exit_code()
    print(f"{len(records) - len(waiting) + report.done} of {len(records)} photos have proposals: {output}")
    if settings.method == "sam":
        print(_told(prompt_counts(store, records, options), options.grid_side))
    return code


def _prompter(settings: ProposalConfig, config: Config | None, device: str) -> PeakPrompter | None:
    """What says where to look, if anything does.

    Raises:
        CimError: peaks are wanted, and there is no trained response network.
    """
    if not settings.prompted:
        return None
    if config is None:
        raise CimError("peaks are those of a config's response network", expected="CONFIG instead of --images")
    config = config.model_copy(update={"proposals": settings})
    return peak_prompter(config, build_dataset(config.data, config.data.train_split), device)


def _told(counts: Sequence[int], side: int) -> str:
    """How often SAM was asked: what proposals cost, beside looking at each photo once."""
    if not counts:
        return "no prompts: no photo is done"
    grid = f"{side} x {side} of them a grid" if side else "all of them peaks"
    mean = sum(counts) / len(counts)
    return f"{mean:.1f} prompts a photo (at least {min(counts)}, at most {max(counts)}), {grid}"


def _task(
    args: argparse.Namespace, config: Config | None
) -> tuple[ProposalConfig, Sequence[Record], Path, Path, list[CimError]]:
    """Settings, photos, where to write, the folder that is locked meanwhile, and what of a folder was not listed."""
    unlisted: list[CimError] = []
    if (config is None) == (args.images is None):
        raise CimError("which photos", expected="either CONFIG or --images FOLDER")
    if config is not None:
        split = args.split or config.data.train_split
        settings, records = config.proposals, _wanted(build_dataset(config.data, split), split, config)
        output = args.output or RunPaths(config).proposals(split)
        locked = RunPaths(config).owner(output)
    elif args.output is None or args.set or args.split:
        raise CimError("--images goes with --output, and without --set and --split")
    else:
        records, unlisted = _folder(args.images)
        settings, output = ProposalConfig(), args.output
        locked = output
    given: dict[str, Any] = {
        "method": args.method,
        "max_proposals": args.max_proposals,
        "weights": args.weights,
        "sam_checkpoint": args.checkpoint,
        "prompts": args.prompts,
        "deep_features": False if args.no_deep_features else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("max_proposals", 1) < 1:
        raise CimError("--max-proposals starts at 1", found=args.max_proposals)
    return settings.model_copy(update=given), records, output, locked, unlisted


def _wanted(dataset: Dataset, split: str, config: Config) -> Sequence[Record]:
    """Photos that need proposals: of a folder's training photos those with tags, since negatives have no masks."""
    negatives = config.data.dataset == "folder" and split == config.data.train_split
    return dataset.where(lambda record: bool(record.tags) or not negatives).records


def _folder(images: Path) -> tuple[list[Record], list[CimError]]:
    """Every photo under a folder; the file name relative to it, without its ending, is the id. And what of it could
    not be listed."""
    if not images.is_dir():
        raise CimError("no such folder of photos", path=images, fix="check --images")
    photos, unlisted = photos_below(images)
    if not photos:
        raise unlisted[0] if unlisted else CimError("no photos here", path=images, expected=", ".join(PHOTO_SUFFIXES))
    names = [photo.relative_to(images).with_suffix("").as_posix() for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CimError("two photos of one name", path=images, found=twice[0], fix="rename one of them")
    return [Record(name, photo, (0, 0)) for name, photo in zip(names, photos, strict=True)], unlisted
