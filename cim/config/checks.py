"""What a config needs on disk: there, missing or damaged, and the command that fills each gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cim.config.build import build_dataset
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.parallel import run_stage
from cim.core.photo import photo_size, read_photo
from cim.core.regions import RegionSet
from cim.datasets.base import Dataset, Record
from cim.datasets.known import share_known
from cim.evaluation.box_files import objects_of
from cim.evaluation.coco_results import load_ground_truth
from cim.storage.photos import PhotoTable, tags_of
from cim.storage.published import (
    ClusterSource,
    CobPickle,
    PublishedProposals,
    RegionSource,
    StoredClusters,
    StoredRegions,
    open_clusters,
    open_regions,
)

State = Literal["ok", "missing", "damaged", "stale", "note"]
PURPOSES = ("training", "evaluation", "export")
_SAMPLE = 25  # artefacts opened, evenly spread, unless all are asked for


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        purposes: what it is needed for, some of :data:`PURPOSES`.
        what: the thing, e.g. "proposals of trainaug".
        state: "ok"; "missing", "damaged", "stale" (its photos were replaced, or tags edited, since): the purposes
            cannot go on; "note": worth knowing only.
        detail: how much, or what is wrong.
        fix: command that fills the gap.
    """

    purposes: tuple[str, ...]
    what: str
    state: State
    detail: str = ""
    fix: str = ""

    @property
    def blocks(self) -> bool:
        return self.state in ("missing", "damaged", "stale")


@dataclass(frozen=True)
class Thoroughness:
    """How hard to look: ``deep`` decodes every photo and opens every artefact, with ``workers`` processes."""

    deep: bool = False
    workers: int = 1


def check_data(
    config: Config, name: str, purposes: Collection[str] = PURPOSES, how: Thoroughness | None = None
) -> list[Finding]:
    """Look at everything that a config points to; nothing is written.

    Args:
        config: the settings.
        name: how the user calls the config, for the commands.
        purposes: some of training, evaluation, export.
        how: header and sample checks by default.

    Returns:
        findings in the order in which gaps are to be filled.
    """
    how = how or Thoroughness()
    data, findings = config.data, []
    splits = {data.train_split: ("training", "export"), data.eval_split: ("evaluation",)}
    for split, needed in splits.items():
        wanted = tuple(purpose for purpose in needed if purpose in purposes)
        if not wanted:
            continue
        found, dataset = _check_tags(config, split, wanted)
        findings.append(found)
        if dataset is None:
            continue
        findings += _known(dataset, wanted)
        findings.append(_check_photos(dataset, wanted, how))
        if split == data.eval_split and "evaluation" in wanted:
            findings.append(_check_annotations(dataset, name))
        proposals = _check_proposals(config, dataset, split, name, wanted, how)
        if proposals.blocks and config.proposals.prompted:  # by the peaks of a network that has to be there first
            findings += _check_network(config, name, wanted)
        findings.append(proposals)
        if split == data.train_split and "training" in wanted:
            findings += _check_first_labels(config, dataset, name, how)
        findings += _check_made(config, dataset, split, name, wanted)
    return list(dict.fromkeys(findings + _check_models(config, name, purposes, how)))


# ---------------------------------------------------------------------- photos and tags


def _check_tags(config: Config, split: str, wanted: tuple[str, ...]) -> tuple[Finding, Dataset | None]:
    what = f"tags and list of {split}"
    try:
        dataset = build_dataset(config.data, split)
    except CimError as error:
        return _failure(error, wanted, what, "see docs/DATASET.md"), None
    untagged = sum(not record.tags for record in dataset)
    detail = f"{len(dataset)} photos, {len(dataset.classes)} classes"
    if "training" in wanted:
        used = {tag for record in dataset for tag in record.tags}
        unused = [label for index, label in enumerate(dataset.classes) if index not in used]
        if len(used) == 0:
            return Finding(wanted, what, "missing", f"{detail}, none with a tag", "tag the training photos"), dataset
        use = "negatives" if config.prm.fit == "converge" else "not trained on"
        detail += f", {untagged} without a tag ({use})" if untagged else ""
        detail += f", no photo of {', '.join(unused)}" if unused else ""
    return Finding(wanted, what, "ok", detail), dataset


def _known(dataset: Dataset, wanted: tuple[str, ...]) -> list[Finding]:
    """What is known beyond tags, if anything."""
    known = [record.known for record in dataset if record.known]
    if not known:
        return []
    marks = sum(len(one.marks) for one in known)
    kinds = ", ".join(f"{kind} of {count}" for kind, count in share_known(known).items() if count)
    detail = f"of {len(known)} of {len(dataset)} photos ({kinds}), {marks} instances marked"
    return [Finding(wanted, f"known of {dataset.name} beyond tags", "ok", detail)]


def _check_photos(dataset: Dataset, wanted: tuple[str, ...], how: Thoroughness) -> Finding:
    what = f"photos of {dataset.name}"
    records = dataset.records
    report = run_stage(
        partial(check_photo, deep=how.deep),
        records,
        names=[str(record.path) for record in records],
        description=what,
        workers=how.workers,
    )
    missing = sum(message.startswith("missing photo") for message in report.failed.values())
    looked = "decoded" if how.deep else "looked at the headers; --deep decodes them"
    if not report.failed:
        return Finding(wanted, what, "ok", f"all {len(records)} {looked}")
    state: State = "missing" if missing == len(report.failed) else "damaged"
    detail = (
        f"{missing} of {len(records)} missing, {len(report.failed) - missing} damaged: {_few(report.failed.values())}"
    )
    return Finding(wanted, what, state, detail, f"put the photos into {records[0].path.parent} (docs/DATASET.md)")


def check_photo(record: Record, deep: bool = False) -> None:
    """Is the photo there, readable (``deep``: to the last pixel) and of the size its record says?

    Raises:
        CimError: it is not.
    """
    size = read_photo(record.path).shape[:2] if deep else photo_size(record.path)
    if tuple(size) != tuple(record.size):
        raise CimError("photo of another size than listed (H, W)", path=record.path, expected=record.size, found=size)


def _check_annotations(dataset: Dataset, name: str) -> Finding:
    """The json that evaluation reads: does every annotation have a mask of its image's size?"""
    wanted, what = ("evaluation",), f"masks of {dataset.name}"
    path = dataset.annotations
    if path is None:
        fix = "set data.val_annotations, or upload the results" if dataset.name == "val" else "upload the results"
        return Finding(wanted, what, "note", "none: there is nothing to compare results with", fix)
    content = read_json(path)
    entries = content["annotations"]
    if entries and not any(entry.get("segmentation") for entry in entries):
        return _check_boxes(content, dataset, path)
    faults: Counter[str] = Counter()
    for entry in entries:
        mask = entry.get("segmentation")
        if not mask:
            faults["without a mask"] += 1
        elif isinstance(mask, dict) and tuple(mask.get("size", ())) != tuple(dataset.by_id[entry["image_id"]].size):
            faults["with a mask of another size than the photo"] += 1
        elif "area" not in entry or "bbox" not in entry:
            faults["without area or bbox"] += 1
    if faults:
        detail = ", ".join(f"{count} of {len(entries)} annotations {fault}" for fault, count in faults.items())
        return Finding(wanted, what, "damaged", f"{path}: {detail}", "replace the annotation file (docs/DATASET.md)")
    try:
        load_ground_truth(content)
    except CimError as error:
        error.path = path  # it saw the content alone
        return _failure(error, wanted, what, "replace the annotation file (docs/DATASET.md)")
    return Finding(wanted, what, "ok" if entries else "note", f"{len(entries)} instances")


def _check_boxes(content: dict[str, Any], dataset: Dataset, path: Path) -> Finding:
    """Annotations that have boxes alone, as VOC 2007's."""
    wanted, what = ("evaluation",), f"boxes of {dataset.name}"
    try:
        objects = objects_of(content, path)
    except CimError as error:
        return _failure(error, wanted, what, "replace the annotation file (docs/DATASET.md)")
    hard = int(objects.difficult.sum())
    return Finding(wanted, what, "ok", f"{len(objects.boxes)} objects, {hard} of them difficult; no masks")


# ---------------------------------------------------------------------- artefacts


def _check_proposals(
    config: Config, dataset: Dataset, split: str, name: str, wanted: tuple[str, ...], how: Thoroughness
) -> Finding:
    what = f"proposals of {split}"
    path = RunPaths(config).proposals(split)
    fix = f"cim proposals {name} --split {split}"
    if split in ("trainval", "test"):
        fix += f", or cim import --config {name} --split {split} --from mat --input FOLDER"
    elif config.data.dataset != "folder":
        fix += f", or cim import --dataset {config.data.dataset} --split {split} --from mat"
    if not path.exists():
        return Finding(wanted, what, "missing", str(path), fix)
    try:
        source = open_regions(path)
        negatives = config.data.dataset == "folder" and split == config.data.train_split
        dataset = dataset.where(lambda record: bool(record.tags) or not negatives)
        there = source.seen()
        absent = [record for record in dataset if not there(record.image_id)]
    except CimError as error:
        return _failure(error, wanted, what, fix)
    if absent:
        detail = f"{len(absent)} of {len(dataset)} images have none in {path}, e.g. {absent[0].image_id}"
        return Finding(wanted, what, "missing", detail, fix)
    besides = tags_of if config.proposals.prompted and split == config.data.train_split else None
    if isinstance(source, StoredRegions) and (stale := _stale(path, dataset, besides)):
        return Finding(wanted, what, "stale", stale, fix)
    # A published pickle is one object of gigabytes: not to be sent to other processes.
    workers = 1 if isinstance(source, CobPickle) else how.workers
    return _open_some(
        dataset.records, partial(_check_regions, source), wanted, what, fix, Thoroughness(how.deep, workers)
    )


def _check_regions(source: RegionSource, record: Record) -> None:
    regions = source.load(record.image_id)
    if isinstance(regions, RegionSet):
        fits = regions.size == tuple(record.size)
        found = f"masks of {regions.size}"
    else:
        fits = _inside(regions, record.size)
        found = f"boxes up to {regions.boxes.max(0)[[3, 2]].tolist() if len(regions) else 0}"
    if not fits:
        raise CimError(f"proposals of image {record.image_id} do not fit it", expected=f"{record.size}", found=found)


def _inside(regions: PublishedProposals, size: tuple[int, int]) -> bool:
    return not len(regions) or bool((regions.boxes.max(0)[[3, 2]] <= np.array(size)).all())


def _check_first_labels(config: Config, dataset: Dataset, name: str, how: Thoroughness) -> list[Finding]:
    if not config.loss.first_labels:
        return []
    wanted, what, paths = ("training",), "first labels", RunPaths(config)
    fix = f"cim labels {name}"
    if not paths.first_labels.exists():
        return [*_check_peaks(config, name), Finding(wanted, what, "missing", str(paths.first_labels), fix)]
    try:
        labels = open_clusters(paths.first_labels)
        regions = open_regions(paths.proposals(config.data.train_split))
        labelled, proposed = labels.seen(), regions.seen()
        absent = [record for record in dataset if record.tags and not labelled(record.image_id)]
    except CimError as error:
        return [_failure(error, wanted, what, fix)]
    if absent:
        detail = f"{len(absent)} tagged images have none in {paths.first_labels}, e.g. {absent[0].image_id}"
        return [*_check_peaks(config, name), Finding(wanted, what, "missing", detail, fix)]
    if isinstance(labels, StoredClusters) and (stale := _stale(paths.first_labels, dataset, tags_of)):
        return [Finding(wanted, what, "stale", stale, fix)]
    check = partial(_check_clusters, labels, regions, len(dataset.classes))
    able = dataset.where(lambda record: bool(record.tags) and proposed(record.image_id))
    return [_open_some(able.records, check, wanted, what, fix, Thoroughness(how.deep, 1))]


def _check_clusters(labels: ClusterSource, regions: RegionSource, classes: int, record: Record) -> None:
    found, proposals = labels.load(record.image_id), regions.load(record.image_id)
    if len(found) != len(proposals):
        raise CimError(
            f"first labels of image {record.image_id} are for other proposals",
            expected=len(proposals),
            found=len(found),
        )
    if len(found) and found.class_ids.max() > classes:
        raise CimError(
            f"first labels of image {record.image_id} name an unknown class",
            expected=f"1 to {classes}",
            found=found.class_ids.max(),
        )


def _check_peaks(config: Config, name: str) -> list[Finding]:
    """What first labels are made from, asked only while they are missing."""
    if config.assign.points is not None:
        there = Path(config.assign.points).is_dir()
        detail = config.assign.points
        return [
            Finding(("training",), "points", "ok" if there else "missing", detail, "" if there else "set assign.points")
        ]
    return _check_network(config, name, ("training",))


def _check_network(config: Config, name: str, wanted: tuple[str, ...]) -> list[Finding]:
    path = RunPaths(config).prm_checkpoint
    if path.is_file():
        return [Finding(wanted, "response network", "ok", str(path))]
    fix = "set prm.checkpoint to an existing file" if config.prm.checkpoint else f"cim prm {name}"
    return [Finding(wanted, "response network", "missing", str(path), fix)]


def _stale(root: Path, dataset: Dataset, besides: Callable[[Record], str] | None = None) -> str:
    """What was made there before photos were replaced, or tags edited, in words; empty when nothing was."""
    replaced = PhotoTable(root).replaced(dataset, besides)
    told = "replaced" if besides is None else "replaced or tagged anew"
    return f"{len(replaced)} of {len(dataset)} photos {told} since, e.g. {replaced[0].path.name}" if replaced else ""


def _check_made(config: Config, dataset: Dataset, split: str, name: str, wanted: tuple[str, ...]) -> list[Finding]:
    """What was made from photos that were replaced since, further down the flow."""
    paths, findings = RunPaths(config), []
    needing = tuple(purpose for purpose in wanted if purpose != "training")
    if needing and (stale := _stale(paths.detections(split), dataset)):
        findings.append(Finding(needing, f"detections of {split}", "stale", stale, f"cim score {name} --split {split}"))
    if split == config.data.train_split:
        networks = (("response network", paths.prm_dir), ("CIM", paths.train_dir), ("Mask R-CNN", paths.refine_dir))
        for what, folder in networks:
            if (folder / "final.pth").is_file() and (stale := _stale(folder, dataset)):
                detail = f"{stale}; kept, delete {folder} to train it anew"
                findings.append(Finding(wanted, f"training of {what}", "note", detail))
    return findings


def _check_models(config: Config, name: str, purposes: Collection[str], how: Thoroughness) -> list[Finding]:
    findings = []
    weights = config.model.weights
    if "training" in purposes and weights not in (None, "none", "prm"):
        there = Path(weights).is_file()
        fix = "" if there else "set model.weights to an existing file, or leave it out"
        findings.append(Finding(("training",), "trunk's weights", "ok" if there else "missing", str(weights), fix))
    wanted = tuple(purpose for purpose in ("evaluation", "export") if purpose in purposes)
    if not wanted:
        return findings
    path, fix = RunPaths(config).checkpoint, f"cim train {name}"
    if not path.is_file():
        return [*findings, Finding(wanted, "trained CIM", "missing", str(path), fix)]
    if how.deep:
        from cim.engine.checkpoints import load_checkpoint  # imports torch

        try:
            load_checkpoint(path)
        except CimError as error:
            return [*findings, _failure(error, wanted, "trained CIM", fix)]
    return [*findings, Finding(wanted, "trained CIM", "ok", str(path))]


# ---------------------------------------------------------------------- helpers


def _open_some(
    records: Sequence[Record],
    check: Callable[[Record], None],
    wanted: tuple[str, ...],
    what: str,
    fix: str,
    how: Thoroughness,
) -> Finding:
    """Open the artefacts of all records (deep) or of a sample."""
    step = 1 if how.deep else max(1, len(records) // _SAMPLE)
    chosen = records[::step]
    names = [str(record.image_id) for record in chosen]
    report = run_stage(check, chosen, names=names, description=what, workers=how.workers if how.deep else 1)
    if report.failed:
        detail = f"{len(report.failed)} of {len(chosen)} opened are damaged: {_few(report.failed.values())}"
        return Finding(wanted, what, "damaged", detail, f"{fix} --overwrite")
    opened = "all opened" if step == 1 else f"{len(chosen)} opened; --deep opens all"
    return Finding(wanted, what, "ok", f"for all {len(records)} images, {opened}")


def _failure(error: CimError, wanted: tuple[str, ...], what: str, fix: str = "") -> Finding:
    """A finding from an error; its own advice counts before ``fix``."""
    absent = error.message.startswith(("missing", "no "))
    detail = error.message if error.path is None else f"{error.message}: {error.path}"
    if error.found is not None:
        expected = "" if error.expected is None else f"expected {error.expected}, "
        detail += f" ({expected}found {error.found})"
    return Finding(wanted, what, "missing" if absent else "damaged", detail, error.fix or fix)


def _few(messages: Collection[str], limit: int = 3) -> str:
    shown = [message.split("; to fix")[0] for message in list(messages)[:limit]]
    return " | ".join(shown) + (f" | and {len(messages) - limit} more" if len(messages) > limit else "")
