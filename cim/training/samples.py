"""One image as the networks eat it: photo, proposals and first labels -> Sample, for training and inference alike."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import Overlaps, RegionSet, nearest, overlaps
from cim.core.types import Clusters, Sample
from cim.datasets.base import Record
from cim.mining.told import told_of
from cim.models.preprocess import normalise
from cim.storage.published import PublishedProposals
from cim.training.pooled_cache import Kept


def make_sample(
    record: Record,
    regions: RegionSet | PublishedProposals,
    clusters: Clusters | None,
    side: int,
    flip: bool,
    num_classes: int,
    max_proposals: int | None = None,
    rng: np.random.Generator | None = None,
    photo: np.ndarray | None = None,
) -> Sample:
    """Resize, flip, normalise and put together (METHOD section 7).

    Args:
        record: which photo, its tags, and what is known beyond them, for which proposals need masks.
        regions: N proposals of the photo; published ones come without masks, so their overlaps are read.
        clusters: first labels of these proposals; None: nothing is labelled.
        side: length of the photo's long side afterwards, pixels.
        flip: mirror left to right.
        num_classes: C.
        max_proposals: cap on N, see :func:`keep_best`; None: all.
        rng: breaks ties among equal scores when the cap cuts; None always gives the same choice.
        photo: uint8 [H, W, 3] when it is in memory already; read from ``record.path`` otherwise.

    Returns:
        the sample on the CPU; rows are in the stored order, ``proposal`` says which are left.

    Raises:
        CimError: unreadable photo; proposals, first labels or tags that do not belong to it.
    """
    photo = read_photo(record.path) if photo is None else photo
    _check(record, photo, regions, clusters, num_classes)
    rows = keep_best(regions.scores, max_proposals, rng)
    image = resized_pixels(photo, side)
    height, width = image.shape[:2]
    boxes = regions.boxes[rows] * np.array([width / photo.shape[1], height / photo.shape[0]] * 2, np.float32)
    grids = regions.grids[rows].astype(np.float32)
    if isinstance(regions, RegionSet):
        members, areas, pairs = regions.members[rows], regions.atom_areas.astype(np.float32), None
        told = told_of(record.known, regions, num_classes)
        atoms = regions.atoms[nearest(height, regions.size[0])[:, None], nearest(width, regions.size[1])]
    else:
        members, areas, told = np.zeros((len(rows), 0), bool), np.zeros(0, np.float32), None
        atoms = np.zeros((height, width), np.int32)
        full = regions.overlaps()
        pairs = Overlaps(*(torch.from_numpy(matrix[np.ix_(rows, rows)]) for matrix in full))
    if flip:
        image, atoms, grids = image[:, ::-1], atoms[:, ::-1], grids[:, :, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return Sample(
        image_id=record.image_id,
        image=normalise(image),
        boxes=torch.from_numpy(boxes),
        grids=_tensor(grids),
        members=torch.from_numpy(members),
        atom_areas=torch.from_numpy(areas),
        atoms=_tensor(atoms),
        overlaps=pairs,
        told=None if told is None else told.select(rows),
        **_labelled(record, clusters, rows, num_classes),
    )


def make_pooled_sample(record: Record, kept: Kept, clusters: Clusters | None, num_classes: int) -> Sample:
    """The same from what a light head has made of all proposals before, without the photo: ``image``, ``boxes``,
    ``grids`` and ``atoms`` are empty, and nothing is known beyond tags.

    Raises:
        CimError: first labels or tags that do not belong to it.
    """
    count = len(kept.members)
    _check_labels(record, count, clusters, num_classes)
    nothing = torch.zeros(0)
    return Sample(
        image_id=record.image_id,
        image=nothing,
        boxes=nothing,
        grids=nothing,
        members=kept.members,
        atom_areas=kept.atom_areas,
        atoms=nothing,
        pooled=kept.pooled,
        **_labelled(record, clusters, np.arange(count), num_classes),
    )


def _labelled(record: Record, clusters: Clusters | None, rows: np.ndarray, num_classes: int) -> dict[str, Any]:
    """What a sample says of tags and first labels, and which proposals its rows are."""
    if clusters is None:
        class_ids, cluster = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.int64)
    else:
        class_ids, cluster = clusters.class_ids[rows], clusters.cluster[rows]
    evidence = None if clusters is None or clusters.evidence is None else clusters.evidence[rows]
    tags = np.zeros(num_classes, np.float32)
    tags[list(record.tags)] = 1
    return {
        "proposal": torch.from_numpy(rows),
        "tags": torch.from_numpy(tags),
        "class_ids": _tensor(class_ids),
        "cluster": _tensor(cluster),
        "evidence": None if evidence is None else _tensor(evidence),
    }


def overlaps_of(sample: Sample) -> Overlaps:
    """IoU and containment [N, N] of a sample's proposals, float32, where the sample is (METHOD section 1)."""
    if sample.overlaps is not None:
        return sample.overlaps
    with torch.autocast(sample.members.device.type, enabled=False):  # pixel counts must stay whole numbers
        return overlaps(sample.members.float(), sample.atom_areas)


def frame(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) scaled so that the long side has ``side`` pixels; no side shorter than 1."""
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def resized_pixels(photo: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w, 3], the long side ``side`` pixels."""
    height, width = frame(photo.shape[:2], side)
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR)


def resized(photo: np.ndarray, side: int) -> torch.Tensor:
    """The photo as a trunk takes it at that scale, float32 [3, h, w]."""
    return normalise(resized_pixels(photo, side))


def keep_best(scores: np.ndarray, limit: int | None, rng: np.random.Generator | None = None) -> np.ndarray:
    """Rows int64, ascending, of the ``limit`` highest scores; equal ones (makers without scores) are drawn."""
    count = len(scores)
    if limit is None or count <= limit:
        return np.arange(count)
    tie = np.arange(count) if rng is None else rng.permutation(count)
    return np.sort(np.lexsort((tie, -scores))[:limit])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _check(
    record: Record,
    photo: np.ndarray,
    regions: RegionSet | PublishedProposals,
    clusters: Clusters | None,
    num_classes: int,
) -> None:
    what = f"of image {record.image_id}"
    if isinstance(regions, RegionSet) and regions.size != photo.shape[:2]:
        raise CimError(
            f"proposals {what} were made for another size of the photo",
            path=record.path,
            expected=photo.shape[:2],
            found=regions.size,
            fix="delete its file among the proposals, then make them again",
        )
    _check_labels(record, len(regions), clusters, num_classes)


def _check_labels(record: Record, count: int, clusters: Clusters | None, num_classes: int) -> None:
    what = f"of image {record.image_id}"
    if clusters is not None and len(clusters) != count:
        raise CimError(
            f"first labels {what} belong to other proposals",
            expected=f"{count} rows",
            found=len(clusters),
            fix="make the first labels again: cim labels",
        )
    highest = int(clusters.class_ids.max(initial=0)) if clusters is not None else 0
    if highest > num_classes or max(record.tags, default=-1) >= num_classes:
        raise CimError(
            f"class numbers {what} do not fit the data set",
            expected=f"{num_classes} classes",
            found=f"tags {record.tags}, first labels up to {highest}",
            fix="check data.tags and make the first labels again",
        )
