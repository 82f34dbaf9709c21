"""How weakly supervised detection is judged: box mAP of VOC 2007, CorLoc, and what became of every object's box.

METHOD section 8; Everingham et al., IJCV 2010 (average precision), Deselaers et al., IJCV 2012 (CorLoc). All values
are percent, means are over the classes that have objects. Boxes are xyxy, exclusive, pixels of the photo. An object
marked ``difficult`` neither counts nor hurts: whoever hits it is left out, however often. In CorLoc it is an object
like any other, as in the programs whose numbers are published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cim.evaluation.diagnosis import share_of_fates
from cim.evaluation.ranked import VOC2007_RECALLS, Ranked, every_photo_once
from cim.evaluation.relations import Relations, fates_of


@dataclass(frozen=True)
class BoxRules:
    """What counts as a hit; the defaults are those of the VOC 2007 development kit.

    Attributes:
        iou: overlap from which a box is right.
        plus_one: add one pixel to every width and height. The kit's corners are inclusive pixels, so it must; ours are
            exclusive already, and a box of either kind has the same area. True: as programs that hand exclusive
            corners to the kit's code.
        strict: the overlap must exceed ``iou``, as in the Python port that PCL and OICR use; False: or equal it.
    """

    iou: float = 0.5
    plus_one: bool = False
    strict: bool = False


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated boxes of a split.

    Attributes:
        image_ids: ids of the I photos.
        classes: C names.
        photo: int64 [M], row in ``image_ids``.
        class_ids: int64 [M], 0..C-1.
        boxes: float64 [M, 4].
        difficult: bool [M].
    """

    image_ids: tuple[int | str, ...]
    classes: tuple[str, ...]
    photo: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    difficult: NDArray[np.bool_]

    def beside_others(self) -> NDArray[np.bool_]:
        """Which objects stand beside another one of their class, bool [M]; difficult ones neither count nor do."""
        key = self.photo * max(len(self.classes), 1) + self.class_ids
        count = np.bincount(key[~self.difficult], minlength=int(key.max(initial=0)) + 1)
        return ~self.difficult & (count[key] >= 2)


@dataclass(frozen=True, eq=False)
class Guesses:
    """Detected boxes: photo int64 [n], class_ids int64 [n], score float64 [n], boxes float64 [n, 4]."""

    photo: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def of_class(self, class_id: int) -> Guesses:
        """Those of a class, best first; equal scores keep their order."""
        chosen = np.flatnonzero(self.class_ids == class_id)
        chosen = chosen[np.argsort(-self.score[chosen], kind="stable")]
        return Guesses(self.photo[chosen], self.class_ids[chosen], self.score[chosen], self.boxes[chosen])


def box_row(
    objects: Objects, guesses: Guesses, rules: BoxRules | None = None, score_threshold: float | None = None
) -> dict[str, Any]:
    """``box_mAP``, ``box_CorLoc``, counts, the fates of the objects (``score_threshold``: see :func:`box_fates`),
    ``box_beside`` (of those beside others of their class) and ``per_class`` {name: values, None without objects}.
    """
    rules = rules or BoxRules()
    once = every_photo_once(len(objects.image_ids))
    columns: dict[str, list[float | None]] = {"box_AP": [], "box_CorLoc": []}
    for k in range(len(objects.classes)):
        precision = float(rank_class(objects, guesses, k, rules).average_precision(once, VOC2007_RECALLS)[0])
        located = localised(objects, guesses, k, rules)
        columns["box_AP"].append(None if np.isnan(precision) else 100 * precision)
        columns["box_CorLoc"].append(100 * float(located.mean()) if located.size else None)
    fates = box_fates(objects, guesses, rules, score_threshold)
    beside = objects.beside_others()
    counted = ~objects.difficult
    per_class: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(objects.classes):
        mine = counted & (objects.class_ids == k)
        per_class[name] = {key: values[k] for key, values in columns.items()}
        per_class[name] |= {"box_objects": int(mine.sum()), **share_of_fates(fates[mine], "box_")}
    return {
        "box_mAP": _mean(columns["box_AP"]),
        "box_CorLoc": _mean(columns["box_CorLoc"]),
        "box_photos": len(objects.image_ids),
        "box_objects": int(counted.sum()),
        "box_difficult": int(objects.difficult.sum()),
        "box_detections": len(guesses.score),
        **share_of_fates(fates[counted], "box_"),
        "box_beside": {"instances": int(beside.sum()), **share_of_fates(fates[beside], "")},
        "per_class": per_class,
    }


def rank_class(objects: Objects, guesses: Guesses, class_id: int, rules: BoxRules) -> Ranked:
    """The kit's matching of one class.

    Each detection belongs to the object of its photo and class that it overlaps most (the first of equals), taken or
    not. A second hit of an object is false. Detections that belong to a difficult object are left out.
    """
    mine, found = objects.class_ids == class_id, guesses.of_class(class_id)
    index = np.flatnonzero(mine)
    owner, overlap = _best_overlap(found, objects, index, rules)
    right = overlap > rules.iou if rules.strict else overlap >= rules.iou
    right &= owner >= 0
    ignored = right & objects.difficult[owner] if len(index) else np.zeros(len(owner), bool)
    hit = np.zeros(len(owner), bool)
    taking = np.flatnonzero(right & ~ignored)
    hit[taking[np.unique(owner[taking], return_index=True)[1]]] = True  # the best-scored one of each object
    positives = np.bincount(objects.photo[mine & ~objects.difficult], minlength=len(objects.image_ids))
    return Ranked(found.photo[~ignored], hit[~ignored], positives)


def localised(objects: Objects, guesses: Guesses, class_id: int, rules: BoxRules) -> NDArray[np.bool_]:
    """For each photo that shows the class, in order: does its best-scored box hit an object? bool [photos]."""
    return located_of_photos(objects, guesses, class_id, rules)[_shows(objects, class_id)]


def located_of_photos(objects: Objects, guesses: Guesses, class_id: int, rules: BoxRules) -> NDArray[np.bool_]:
    """The same for all photos, bool [I]; False where the class is not shown."""
    found = guesses.of_class(class_id)
    photos, first = np.unique(found.photo, return_index=True)
    best = Guesses(photos, found.class_ids[first], found.score[first], found.boxes[first])
    owner, overlap = _best_overlap(best, objects, np.flatnonzero(objects.class_ids == class_id), rules)
    right = (owner >= 0) & (overlap > rules.iou if rules.strict else overlap >= rules.iou)
    located = np.zeros(len(objects.image_ids), bool)
    located[photos] = right
    return located


def _shows(objects: Objects, class_id: int) -> NDArray[np.bool_]:
    shows = np.zeros(len(objects.image_ids), bool)
    shows[objects.photo[objects.class_ids == class_id]] = True
    return shows


def box_fates(
    objects: Objects, guesses: Guesses, rules: BoxRules | None = None, score_threshold: float | None = None
) -> NDArray[np.str_]:
    """What became of every object, judged on boxes by the rules of ``cim.evaluation.diagnosis``, str [M].

    Detections that hit a difficult object are left out first; then the best ones of each photo count, as many as it
    has objects that are not difficult (or all above a score). Difficult objects are ``missed``; leave them out.
    """
    rules = rules or BoxRules()
    fates = np.full(len(objects.photo), "missed", dtype="<U11")
    order = np.lexsort((-guesses.score, guesses.photo))
    ends = np.searchsorted(guesses.photo[order], np.arange(len(objects.image_ids) + 1))
    for photo in np.unique(objects.photo[~objects.difficult]):
        own = np.flatnonzero((objects.photo == photo) & ~objects.difficult)
        hard = np.flatnonzero((objects.photo == photo) & objects.difficult)
        found = order[ends[photo] : ends[photo + 1]]
        if len(hard):
            found = found[~_hits_difficult(objects, guesses, found, own, hard, rules)]
        found = found[: len(own)] if score_threshold is None else found[guesses.score[found] > score_threshold]
        if len(found):
            relations = relate(guesses.boxes[found], objects.boxes[own], rules.plus_one)
            same = guesses.class_ids[found][:, None] == objects.class_ids[own]
            fates[own] = fates_of(relations, same)
    return fates


def _hits_difficult(
    objects: Objects,
    guesses: Guesses,
    found: NDArray[np.int64],
    own: NDArray[np.int64],
    hard: NDArray[np.int64],
    rules: BoxRules,
) -> NDArray[np.bool_]:
    def hit(index: NDArray[np.int64]) -> NDArray[np.bool_]:
        same = guesses.class_ids[found][:, None] == objects.class_ids[index]
        overlap = relate(guesses.boxes[found], objects.boxes[index], rules.plus_one).iou
        return np.asarray((same & (overlap >= rules.iou)).any(1))

    return np.asarray(hit(hard) & ~hit(own))


def relate(first: NDArray[np.float64], second: NDArray[np.float64], plus_one: bool = False) -> Relations:
    """Overlaps of all pairs of boxes [n, 4] and [m, 4], each [n, m]."""
    more = float(plus_one)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low + more).clip(min=0).prod(-1)
    one, two = ((boxes[:, 2:] - boxes[:, :2] + more).prod(-1) for boxes in (first, second))
    one, two = one[:, None], two[None]
    tiny = np.finfo(float).tiny
    return Relations(
        iou=shared / np.maximum(one + two - shared, tiny),
        inside=shared / np.maximum(one, tiny),
        covered=shared / np.maximum(two, tiny),
    )


def _best_overlap(
    found: Guesses, objects: Objects, index: NDArray[np.int64], rules: BoxRules
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each detection the object among ``index`` in its photo that it overlaps most (-1: none), and that IoU."""
    owner, best = np.full(len(found.score), -1), np.full(len(found.score), -1.0)
    by_photo = index[np.argsort(objects.photo[index], kind="stable")]
    begins = np.searchsorted(objects.photo[by_photo], found.photo, side="left")
    counts = np.searchsorted(objects.photo[by_photo], found.photo, side="right") - begins
    for k in range(int(counts.max(initial=0))):  # the k-th object of every photo at once
        rows = np.flatnonzero(counts > k)
        other = by_photo[begins[rows] + k]
        overlap = _paired_iou(found.boxes[rows], objects.boxes[other], float(rules.plus_one))
        better = overlap > best[rows]
        best[rows[better]], owner[rows[better]] = overlap[better], other[better]
    return owner, best


def _paired_iou(first: NDArray[np.float64], second: NDArray[np.float64], more: float) -> NDArray[np.float64]:
    """IoU of each row with its partner, float64 [n]."""
    shared = (np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]) + more).clip(min=0)
    inner = shared.prod(-1)
    areas = (first[:, 2:] - first[:, :2] + more).prod(-1) + (second[:, 2:] - second[:, :2] + more).prod(-1)
    return np.asarray(inner / np.maximum(areas - inner, np.finfo(float).tiny))


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0
