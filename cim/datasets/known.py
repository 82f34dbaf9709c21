"""What is known of a photo beyond its tags: how many, where, which outline, or none. Empty with tags alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cim.core.errors import CimError

MOST = 1000  # instances of one class in one photo; more is a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Mark:
    """One instance that somebody marked; pixels of the upright photo.

    Attributes:
        class_id: 0..C-1.
        points: (x, y) each, inside the instance.
        box: x1, y1, x2, y2, exclusive; None: not given.
        mask: its outline as COCO's compressed run lengths (``counts`` of :class:`cim.core.types.Rle`, over the whole
            photo); None: not given. A mask is certain.
    """

    class_id: int
    points: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one photo; of classes that are not named here, only whether they are tagged.

    Attributes:
        counts: (class 0..C-1, how many there are), by class. A class that is marked has a count: that of its marks,
            unless a larger one was given, in which case the others are still to be found.
        marks: instances that somebody marked, by class, each class's in the order of its source.
        absent: classes that somebody said are not there; sorted, and none of the photo's tags.
        rejected: masks that somebody deleted: what looks like one of them is no instance of its class.
    """

    counts: tuple[tuple[int, int], ...] = ()
    marks: tuple[Mark, ...] = ()
    absent: tuple[int, ...] = field(default=(), repr=False)
    rejected: tuple[Mark, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.counts or self.absent or self.rejected)

    def __str__(self) -> str:
        """All of it, as text that stays the same where later kinds of knowledge are not used."""
        later = {"absent": self.absent, "rejected": self.rejected}
        return repr(self) + "".join(f" {name} {value}" for name, value in later.items() if value)

    def number(self, class_id: int) -> int | None:
        """How many instances of a class there are; None: not known."""
        return dict(self.counts).get(class_id)

    def marked(self) -> Known:
        """The same without the numbers of classes of which nothing is marked."""
        marked = {mark.class_id for mark in self.marks}
        return replace(self, counts=tuple(pair for pair in self.counts if pair[0] in marked))


NOTHING = Known()


def know(
    counts: Mapping[int, int], marks: Mapping[int, tuple[Mark, ...]], rejected: Mapping[int, tuple[Mark, ...]]
) -> Known:
    """Counts, marks and rejected masks of one photo put together; a count of 0 says that a class is not there.

    Raises:
        CimError: more marks of a class than its count says (without a path: the caller knows where).
    """
    numbers = {class_id: len(found) for class_id, found in marks.items() if found} | dict(counts)
    for class_id, found in marks.items():
        if len(found) > numbers.get(class_id, 0):
            raise CimError("more marks than instances", expected=f"{numbers[class_id]} at most", found=len(found))
    ordered = tuple(mark for class_id in sorted(marks) for mark in marks[class_id])
    absent = tuple(sorted(class_id for class_id, number in numbers.items() if number == 0))
    counted = tuple(sorted((class_id, n) for class_id, n in numbers.items() if n))
    refused = tuple(mark for class_id in sorted(rejected) if class_id not in absent for mark in rejected[class_id])
    return Known(counted, ordered, absent, refused)


def share_known(known: list[Known]) -> dict[str, int]:
    """How many photos have each kind of knowledge: counts, points, boxes, masks, absent classes, deleted masks."""
    kinds = {"counts": 0, "points": 0, "boxes": 0, "masks": 0, "absent classes": 0, "deleted masks": 0}
    for one in known:
        marked = {mark.class_id for mark in one.marks}
        kinds["counts"] += any(class_id not in marked for class_id, _ in one.counts)
        kinds["points"] += any(mark.points for mark in one.marks)
        kinds["boxes"] += any(mark.box for mark in one.marks)
        kinds["masks"] += any(mark.mask for mark in one.marks)
        kinds["absent classes"] += bool(one.absent)
        kinds["deleted masks"] += bool(one.rejected)
    return kinds
