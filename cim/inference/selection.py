"""From proposal scores to detections: threshold, NMS per class, at most so many per image (METHOD section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cim.core.regions import RegionSet
from cim.core.run_lengths import compressed, mask_box
from cim.core.types import Instances, Rle
from cim.mining.groups import lower_groups
from cim.mining.told import Told, shares_of

_BLOCK = 512  # candidates looked at together while walking down the ranking


def select(
    regions: RegionSet,
    scores: np.ndarray,
    image_id: int | str,
    *,
    score_threshold: float = 1e-5,
    nms: Literal["box", "mask"] = "box",
    nms_iou: float = 0.3,
    max_per_image: int | None = 100,
    group_ratio: float | None = None,
    tags: Sequence[int] | None = None,
    told: Told | None = None,
) -> Instances:
    """The detections of one image, best first.

    Args:
        regions: N proposals.
        scores: float32 [N, C], class scores without background.
        image_id: id in the data set.
        score_threshold: only scores above it count.
        nms: which overlap suppresses, that of boxes (published) or that of masks.
        nms_iou: a proposal that overlaps a better one of its class by more is dropped.
        max_per_image: over all classes; scores equal to the last one stay too. None: no limit.
        group_ratio: lower the scores of groups first (:func:`cim.mining.groups.lower_groups`); None: as published.
        tags: classes 0..C-1 to keep; None keeps all.
        told: of a class whose number is known, exactly so many instances: the best disjoint set
            (:meth:`cim.mining.told.Told.choose`), certain masks as they are, with a score of 1. Of no class anything
            like a mask of it that was deleted.

    Raises:
        ValueError: ``scores`` does not have one row per proposal.
    """
    if scores.ndim != 2 or len(scores) != len(regions):
        raise ValueError(f"scores must be [{len(regions)}, C]; found {list(scores.shape)}")
    raw = scores
    if group_ratio is not None:
        scores = lower_groups(regions, scores, group_ratio)
    if told is not None:
        scores = np.where(told.barred.T, 0, scores)
        free = np.flatnonzero(told.numbers < 0).tolist()
        tags = free if tags is None else [tag for tag in tags if tag in free]
    proposal, class_ids = select_index(
        regions, scores, score_threshold=score_threshold, nms=nms, nms_iou=nms_iou, limit=max_per_image, tags=tags
    )
    found = _instances(regions, scores, image_id, proposal, class_ids)
    return found if told is None else _with_told(found, regions, raw, told)


def _instances(
    regions: RegionSet, scores: np.ndarray, image_id: int | str, proposal: np.ndarray, class_ids: np.ndarray
) -> Instances:
    return Instances(
        image_id=image_id,
        size=(int(regions.size[0]), int(regions.size[1])),
        class_ids=class_ids,
        score=scores[proposal, class_ids].astype(np.float32),
        boxes=regions.boxes[proposal],
        rles=compressed_rles(regions, proposal),
        proposal=proposal,
    )


def _with_told(found: Instances, regions: RegionSet, scores: np.ndarray, told: Told) -> Instances:
    """The instances of the classes whose number is known beside those found of the others, best first."""
    shares = shares_of(regions)
    pairs = [
        (int(row), int(class_id))
        for class_id in np.flatnonzero(told.numbers > 0)
        for row in told.choose(int(class_id), scores[:, class_id], shares)
        if row >= 0
    ]
    proposal, class_ids = np.array(pairs, np.int64).reshape(-1, 2).T
    chosen = _instances(regions, scores, found.image_id, proposal, class_ids)
    masks: list[Rle] = [{"size": list(found.size), "counts": mask} for mask in told.masks]
    boxes = np.array([mask_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    score = np.concatenate([found.score, chosen.score, np.ones(len(masks), np.float32)])
    order = np.argsort(-score, kind="stable")
    rles = [*found.rles, *chosen.rles, *masks]
    return Instances(
        image_id=found.image_id,
        size=found.size,
        class_ids=np.concatenate([found.class_ids, class_ids, told.class_ids[told.certain]])[order],
        score=score[order],
        boxes=np.concatenate([found.boxes, chosen.boxes, boxes])[order],
        rles=[rles[k] for k in order],
        proposal=np.concatenate([found.proposal, proposal, np.full(len(masks), -1, np.int64)])[order],
        known=np.concatenate([np.zeros(len(found), bool), np.ones(len(chosen) + len(masks), bool)])[order],
    )


def select_index(
    regions: RegionSet,
    scores: np.ndarray,
    *,
    score_threshold: float,
    nms: Literal["box", "mask"],
    nms_iou: float,
    limit: int | None,
    tags: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Proposal and class index, int64 [n] each, of the detections; see :func:`select`."""
    allowed = scores > score_threshold
    if tags is not None:
        unwanted = np.ones(scores.shape[1], bool)
        unwanted[list(tags)] = False
        allowed[:, unwanted] = False
    if not allowed.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    iou = box_iou_published(regions.boxes, regions.size) if nms == "box" else regions.iou()
    return greedy_nms(iou > nms_iou, scores, allowed, limit)


def greedy_nms(
    suppresses: np.ndarray, scores: np.ndarray, allowed: np.ndarray, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy NMS of every class at once, best first.

    All (proposal, class) pairs are walked in one ranking. Classes do not disturb each other, so this equals one
    NMS per class followed by the limit, but it can stop at the limit: 100 steps instead of N x C.

    Args:
        suppresses: bool [N, N], whether keeping i drops j of the same class.
        scores: [N, C].
        allowed: bool [N, C], the candidates.
        limit: stop after so many; pairs that tie with the last one are still taken. None: no limit.

    Returns:
        (proposal, class) int64 [n] each; ties in order of class, then proposal.
    """
    alive = np.ascontiguousarray(allowed.T)  # [C, N]: a class is one row
    ranked = np.flatnonzero(alive)
    values = np.ascontiguousarray(scores.T).ravel()[ranked]
    order = np.argsort(-values, kind="stable")
    ranked, values = ranked[order], values[order]
    flat, spares, count = alive.ravel(), ~suppresses, len(scores)
    kept: list[int] = []
    for begin in range(0, len(ranked), _BLOCK):
        block = ranked[begin : begin + _BLOCK]
        position = 0
        while True:
            left = flat[block[position:]]
            step = int(left.argmax()) if len(left) else 0
            if not len(left) or not left[step]:
                break
            position += step
            if limit is not None and len(kept) >= limit and values[begin + position] < values[kept[limit - 1]]:
                return _pairs(ranked, kept, count)
            kept.append(begin + position)
            class_id, proposal = divmod(int(block[position]), count)
            alive[class_id] &= spares[proposal]
            position += 1
    return _pairs(ranked, kept, count)


def box_iou_published(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Box IoU as the published program has it, float32 [N, N].

    Corners are clipped to W - 1 and H - 1 and taken as inclusive pixels (widths are x2 - x1 + 1), although
    the proposals' x2, y2 are exclusive.

    Args:
        boxes: float32 [N, 4], xyxy.
        size: (H, W).
    """
    height, width = size
    clipped = np.clip(boxes, 0, np.array([width - 1, height - 1] * 2, boxes.dtype))
    low, high = clipped[:, :2], clipped[:, 2:] + 1
    shared = np.ones((len(boxes), len(boxes)), boxes.dtype)
    for axis in range(2):
        side = np.minimum.outer(high[:, axis], high[:, axis]) - np.maximum.outer(low[:, axis], low[:, axis])
        shared *= np.maximum(side, 0)
    area = (high - low).prod(1)
    return shared / (area[:, None] + area[None, :] - shared)


def compressed_rles(regions: RegionSet, index: np.ndarray) -> list[Rle]:
    """COCO run lengths (``counts`` as str) of the proposals at ``index``; repeated ones are encoded once."""
    unique, where = np.unique(index, return_inverse=True)
    if not len(unique):
        return []
    rles = compressed(regions.rles(unique), regions.size)
    return [rles[i] for i in where]


def _pairs(ranked: np.ndarray, kept: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    class_ids, proposal = np.divmod(ranked[kept].astype(np.int64), count)
    return proposal, class_ids
