"""What a person has decided about one photo, and every change of it: plain functions from one decision to the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.types import Rle
from cim.datasets.known import MOST

ALIKE = 0.9  # mask IoU from which a found mask is one that was decided before
SHARED = 0.5  # of the smaller of two masks: one instance, or a part of one, and not two


@dataclass(frozen=True, slots=True)
class Shape:
    """A mask of a class 0..C-1; ``mask``: COCO's compressed run lengths (``counts``) over the whole photo."""

    class_id: int
    mask: str


@dataclass(frozen=True)
class Found:
    """What a run found on a photo.

    Attributes:
        size: (H, W) of the photo.
        scores: its masks with their scores, best first.
        told: how many there are of a class, where tags or other files say so.
    """

    size: tuple[int, int]
    scores: Mapping[Shape, float]
    told: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What a person said of one photo.

    Attributes:
        accepted: masks that are right.
        deleted: found masks that are not.
        numbers: how many there are, of every class that was looked at; 0: it is not there; None: not known yet.
    """

    accepted: tuple[Shape, ...] = ()
    deleted: tuple[Shape, ...] = ()
    numbers: Mapping[int, int | None] = field(default_factory=dict)

    def of(self, class_id: int) -> tuple[Shape, ...]:
        """The accepted masks of a class."""
        return tuple(shape for shape in self.accepted if shape.class_id == class_id)


NOTHING = Decision()


def undecided(decision: Decision, found: Found) -> tuple[Shape, ...]:
    """Found masks of which nothing was said; none of a class that has as many accepted masks as instances."""
    left = []
    for shape in found.scores:
        number, known = decision.numbers.get(shape.class_id), decision.of(shape.class_id)
        if number is not None and len(known) >= number:
            continue
        decided = [*known, *(other for other in decision.deleted if other.class_id == shape.class_id)]
        if shape not in decided and not (_iou(shape, decided, found.size) > ALIKE).any():
            left.append(shape)
    return tuple(left)


def accept(decision: Decision, found: Found, shapes: Iterable[Shape]) -> Decision:
    """These masks are right; what was deleted by mistake may be accepted, too."""
    shapes = tuple(shape for shape in shapes if shape not in decision.accepted)
    deleted = tuple(shape for shape in decision.deleted if shape not in shapes)
    changed = replace(decision, accepted=decision.accepted + shapes, deleted=deleted)
    return _counted(changed, decision, found, {shape.class_id for shape in shapes})


def accept_all(decision: Decision, found: Found) -> Decision:
    """All that is shown is right, and where no number was given, it is all that there is."""
    return accept(decision, found, undecided(decision, found))


def delete(decision: Decision, found: Found, shape: Shape) -> Decision:
    """This mask is wrong."""
    accepted = tuple(other for other in decision.accepted if other != shape)
    changed = replace(decision, accepted=accepted, deleted=_with_found(decision.deleted, (shape,), found))
    return _counted(changed, decision, found, {shape.class_id})


def add(decision: Decision, found: Found, shape: Shape) -> Decision:
    """This mask is right; it takes the place of those of its class that share half of it, or half of themselves."""
    shown = [other for other in (*decision.accepted, *undecided(decision, found)) if other.class_id == shape.class_id]
    shared = _shared(shape, shown, found.size)
    gone = {other for other, share in zip(shown, shared, strict=True) if share >= SHARED} - {shape}
    kept = tuple(other for other in decision.accepted if other not in gone and other != shape)
    deleted = tuple(other for other in _with_found(decision.deleted, gone, found) if other != shape)
    changed = replace(decision, accepted=(*kept, shape), deleted=deleted)
    return _counted(changed, decision, found, {shape.class_id})


def set_number(decision: Decision, class_id: int, number: int | None) -> Decision:
    """How many there are of a class; 0: it is not there; None: not known.

    Raises:
        CimError: beyond reason, or fewer than accepted masks.
    """
    accepted = len(decision.of(class_id))
    if number is not None and not 0 <= number <= MOST:
        raise CimError("a count beyond reason", expected=f"0 to {MOST}", found=number)
    if number is not None and number < accepted:
        expected, fix = f"{accepted} or more", "delete the masks that are wrong"
        raise CimError("fewer instances than accepted masks", expected=expected, found=number, fix=fix)
    return replace(decision, numbers={**decision.numbers, class_id: number})


def settled(decision: Decision, tags: Iterable[int]) -> bool:
    """Is it known of every class how many there are?"""
    return all(decision.numbers.get(tag) is not None for tag in tags)


def _counted(decision: Decision, before: Decision, found: Found, classes: Iterable[int]) -> Decision:
    """With numbers that follow the masks: one that was met stays met, one that was not is still to be met.

    Where no number was given, the masks are all there is as soon as each was decided and one is right.
    """
    numbers = dict(decision.numbers)
    for class_id in classes:
        number = before.numbers.get(class_id, found.told.get(class_id))
        had, has = len(before.of(class_id)), len(decision.of(class_id))
        if number is not None:
            numbers[class_id] = max(number, has) if had < number else has or None
        else:
            left = any(shape.class_id == class_id for shape in undecided(decision, found))
            numbers[class_id] = has if has and not left else None
    return replace(decision, numbers=numbers)


def _with_found(deleted: tuple[Shape, ...], shapes: Iterable[Shape], found: Found) -> tuple[Shape, ...]:
    """Only what was found needs remembering; what a person put there is simply gone."""
    return (*deleted, *(shape for shape in shapes if shape in found.scores and shape not in deleted))


def _iou(shape: Shape, others: Iterable[Shape], size: tuple[int, int]) -> np.ndarray:
    """Mask IoU with each of the others, float64 [n]."""
    rles = [_rle(other, size) for other in others]
    return np.asarray(coco_mask.iou([_rle(shape, size)], rles, [0] * len(rles)), np.float64).reshape(-1)


def _shared(shape: Shape, others: Iterable[Shape], size: tuple[int, int]) -> np.ndarray:
    """Pixels shared with each of the others, as a share of the smaller of the two, float64 [n]."""
    mine, rles = _rle(shape, size), [_rle(other, size) for other in others]
    area = float(coco_mask.area(mine))
    inter = [float(coco_mask.area(coco_mask.merge([mine, rle], intersect=True))) for rle in rles]
    least = [max(min(area, float(coco_mask.area(rle))), 1.0) for rle in rles]
    return np.array(inter, np.float64) / np.array(least, np.float64)


def _rle(shape: Shape, size: tuple[int, int]) -> Rle:
    return {"size": [int(size[0]), int(size[1])], "counts": shape.mask}
