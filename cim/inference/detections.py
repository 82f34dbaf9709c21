"""Detections of a data set out of stored scores: selection in parallel, COCO result files (METHOD section 8)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from tqdm import tqdm

from cim.config.schema import InferConfig
from cim.core.errors import CimError
from cim.core.files import as_json, atomic, read_json, write_json
from cim.core.parallel import map_in_order
from cim.core.regions import RegionSet
from cim.core.types import Instances
from cim.datasets.base import Dataset, Record
from cim.evaluation.coco_results import to_coco
from cim.inference.selection import select
from cim.mining.groups import member_strength
from cim.mining.told import told_of
from cim.storage.photos import refuse_replaced
from cim.storage.published import RegionSource, read_detections_pickle
from cim.storage.store import Store
from cim.training.scenes import certain_instance

logger = logging.getLogger(__name__)

Branch = Literal["scores", "mil", "both"]
"""The mean of the refinement branches (CIM), cls * det (WSDDN), or the geometric mean of the two."""


class ScoreSource(Protocol):
    """Scores by image id; picklable."""

    def load(self, image_id: int | str) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredScores:
    """One branch of a detections store.

    Attributes:
        presence: power of the probability that a class is in the photo, in the scores of its regions
            (:mod:`cim.inference.presence`). A store of training photos, whose tags are known, has none.
    """

    store: Store
    branch: Branch = "scores"
    presence: float = 0.0

    def load(self, image_id: int | str) -> np.ndarray:
        """float32 [N, C].

        Raises:
            CimError: not there, damaged, or without that branch.
        """
        arrays = self.store.load(image_id)
        wanted = ("scores", "mil") if self.branch == "both" else (self.branch,)
        for name in wanted:
            if name not in arrays:
                raise CimError(f"no {name} in these detections", path=self.store.path(image_id), found=list(arrays))
        found = [arrays[name] for name in wanted]
        fix = "delete it and run again"
        if any(array.ndim != 2 or array.dtype.kind != "f" or array.shape != found[0].shape for array in found):
            raise CimError("damaged detections file", path=self.store.path(image_id), expected="[N, C]", fix=fix)
        scores = np.prod(found, axis=0) ** np.float32(1 / len(wanted))
        if not self.presence or "presence" not in arrays:
            return scores
        there = arrays["presence"]
        if there.dtype.kind != "f" or there.shape != scores.shape[1:]:
            expected = f"presence of {scores.shape[1]} classes"
            raise CimError("damaged detections file", path=self.store.path(image_id), expected=expected, fix=fix)
        return scores * there ** np.float32(self.presence)


class PublishedScores:
    """A published ``detections.pkl`` or ``discovery.pkl``; background columns are dropped."""

    def __init__(self, path: str | Path, num_classes: int) -> None:
        self.path, self.num_classes = Path(path), num_classes
        self._scores = {key: value["scores"] for key, value in read_detections_pickle(path).items()}

    def load(self, image_id: int | str) -> np.ndarray:
        """float32 [N, C].

        Raises:
            CimError: no such image, or another number of classes.
        """
        if image_id not in self._scores:
            raise CimError(f"no detections of image {image_id}", path=self.path)
        scores = np.asarray(self._scores[image_id], np.float32)
        if scores.ndim != 2 or scores.shape[1] not in (self.num_classes, self.num_classes + 1):
            expected = f"[N, {self.num_classes}] or one more"
            raise CimError(f"scores of image {image_id}", path=self.path, expected=expected, found=list(scores.shape))
        return scores[:, -self.num_classes :]


@dataclass(frozen=True)
class Selection:
    """Settings of :func:`cim.inference.selection.select`."""

    score_threshold: float = 1e-5
    nms: Literal["box", "mask"] = "box"
    nms_iou: float = 0.3
    max_per_image: int | None = 100
    group_ratio: float | None = None

    @classmethod
    def of(cls, infer: InferConfig) -> Selection:
        return cls(infer.score_threshold, infer.nms, infer.nms_iou, infer.max_per_image, infer.group_ratio)


def select_dataset(
    dataset: Dataset,
    source: RegionSource,
    scores: ScoreSource,
    selection: Selection,
    *,
    tagged_classes_only: bool = False,
    known: bool = False,
    doubts: bool = False,
    workers: int = 1,
) -> Iterator[list[dict[str, Any]]]:
    """COCO results of one image after the other, in the data set's order; memory stays flat.

    Args:
        tagged_classes_only: keep the classes that the image is said to show (pseudo labels).
        known: heed what is known of the images beyond tags; of an image of which anything is known, the tags, too.
        doubts: also say of every result how well separate regions inside it score (``members``, see
            :func:`cim.mining.groups.member_strength`), and whether it is surely one whole instance (``certain``, see
            :func:`cim.training.scenes.certain_instance`).
        workers: processes at most.

    Raises:
        CimError: no scores, no proposals, or scores of other proposals, for the first such image; a worker was killed.
    """

    slim = replace(dataset, records=())  # the records travel one by one
    one = partial(_select_image, slim, source, scores, selection, tagged_classes_only, known, doubts)
    yield from map_in_order(one, dataset, min(workers, len(dataset)))


def _select_image(
    dataset: Dataset,
    source: RegionSource,
    scores: ScoreSource,
    selection: Selection,
    tagged_classes_only: bool,
    known: bool,
    doubts: bool,
    record: Record,
) -> list[dict[str, Any]]:
    regions = with_masks(source.load(record.image_id), record.image_id)
    values = scores.load(record.image_id)
    if values.shape != (len(regions), len(dataset.classes)):
        raise CimError(
            f"scores of image {record.image_id} belong to other proposals or classes",
            expected=[len(regions), len(dataset.classes)],
            found=list(values.shape),
            fix="cim score CONFIG --overwrite",
        )
    told = told_of(record.known, regions, len(dataset.classes)) if known else None
    tags = record.tags if tagged_classes_only or told is not None else None
    found = select(regions, values, record.image_id, **vars(selection), tags=tags, told=told)
    results = to_coco(found, dataset)
    if doubts:
        _add_doubts(results, found, regions, values)
    return results


def _add_doubts(results: list[dict[str, Any]], found: Instances, regions: RegionSet, scores: np.ndarray) -> None:
    shared = regions.intersections(regions.members)
    for class_id in np.unique(found.class_ids):
        strength = member_strength(scores[:, class_id], shared)
        certain = certain_instance(regions, scores[:, class_id])
        for index in np.flatnonzero(found.class_ids == class_id):
            proposal = int(found.proposal[index])
            if proposal < 0:  # a mask that somebody drew
                results[index] |= {"members": 0.0, "certain": True}
            else:
                results[index] |= {"members": round(float(strength[proposal]), 4), "certain": proposal == certain}


def write_results(path: str | Path, images: Iterable[list[dict[str, Any]]], total: int | None = None) -> int:
    """A COCO result file, one detection per line, written as the detections come; how many there were.

    Only this function knows all images, and it holds one at a time.
    """
    written = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for lines in tqdm(images, total=total, desc="selection", unit="image"):
            for line in lines:
                file.write((",\n" if written else "\n") + json.dumps(line))
                written += 1
        file.write("\n]\n")
    return written


def detect(
    dataset: Dataset,
    source: RegionSource,
    store: Store,
    path: Path,
    selection: Selection,
    *,
    branch: Branch = "scores",
    presence: float = 0.0,
    known: bool = False,
    workers: int = 1,
) -> Path:
    """Selection of all images into the COCO result file ``path``, unless it is there with the same settings.

    What it was made with lies beside it (``<name>.settings.json``). Images without scores are left out, with a
    warning. ``presence`` is that of :class:`StoredScores`; other branches than CIM's own, and selections that are told
    what is known of the photos (``known``), do without.
    """
    presence = presence if branch == "scores" and not known else 0.0
    refuse_replaced(store, dataset, fix="cim score CONFIG, with the --split of these photos")
    has = store.seen()
    scored = dataset.where(lambda record: has(record.image_id))
    if len(scored) < len(dataset):
        logger.warning("%d of %d images have no scores", len(dataset) - len(scored), len(dataset))
    dataset = scored
    settings: dict[str, Any] = {"selection": vars(selection), "branch": branch, "scores": store.provenance}
    if known:
        settings["known"] = dataset.known_digest
    if presence:
        settings["presence"] = presence
    settings |= {"images": len(scored), "newest": store.entries.newest(), "classes": list(dataset.classes)}
    note = path.with_suffix(".settings.json")
    there = path.is_file() and note.is_file()
    if there and read_json(note) == as_json(settings | {"bytes": path.stat().st_size}):
        logger.info("detections are there already: %s", path)
        return path
    note.unlink(missing_ok=True)
    scores = StoredScores(store, branch, presence)
    images = select_dataset(dataset, source, scores, selection, known=known, workers=workers)
    count = write_results(path, images, len(dataset))
    write_json(note, settings | {"bytes": path.stat().st_size}, indent=1)
    logger.info("%d detections of %d images: %s", count, len(dataset), path)
    return path


def upload_name(split: str) -> str:
    """File name that COCO's evaluation server asks for."""
    return f"detections_{split}_cim_results.json"


def write_upload(results: Path, path: Path) -> None:
    """Copy of a result file with only what the COCO server reads."""
    wanted = ("image_id", "category_id", "segmentation", "score")
    with open(results, encoding="utf-8") as file:
        lines = (json.loads(text.rstrip().rstrip(",")) for text in file if text.startswith("{"))
        write_results(path, ([{key: line[key] for key in wanted}] for line in lines))


def with_masks(regions: Any, image_id: int | str) -> RegionSet:
    """The regions, if they have masks.

    Raises:
        CimError: published 7x7 grids: nothing to show or evaluate comes out of those.
    """
    if isinstance(regions, RegionSet):
        return regions
    raise CimError(
        f"proposals of image {image_id} are 7x7 grids without masks",
        expected="a region store",
        fix="cim import on the .mat files, then data.proposals / data.val_proposals",
    )
