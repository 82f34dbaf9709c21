"""Marks of several files joined with the photos of a data set and their tags and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cim.core.errors import CimError
from cim.datasets.base import Record
from cim.datasets.known import Mark, know
from cim.datasets.marks.given import Given
from cim.datasets.marks.read import read_marks
from cim.datasets.photo_files import PhotoFinder

Marks = dict[int, tuple[Mark, ...]]  # of one photo, by class; an empty tuple: nothing is known of how many


def with_known(
    records: Sequence[Record],
    counts: Sequence[Mapping[int, int]],
    classes: Sequence[str],
    images: Path,
    files: Sequence[str | Path],
    rejected: bool = True,
) -> tuple[Record, ...]:
    """The records with what is known of them, and without the tags of classes that are said to be absent.

    What a later file says of a class in a photo replaces what an earlier one says, so that a correction is one more
    file.

    Args:
        counts: per record, how many there are of a class 0..C-1; 0: it is not there.
        images: folder that names of photos are relative to.
        files: see :func:`cim.datasets.marks.read.read_marks`.
        rejected: heed masks that somebody deleted; those of classes that are no tags of their photo say nothing new.

    Raises:
        CimError: photos that are not there or not tagged, classes that are none or not among the photo's tags, marks
            outside their photos, more marks than the count says.
    """
    places = {record.path: number for number, record in enumerate(records)}
    marks: list[Marks] = [{} for _ in records]
    refused: list[Marks] = [{} for _ in records]
    numbers: list[dict[int, int]] = [{} for _ in records]  # of files
    sources: list[dict[int, str]] = [{} for _ in records]
    names = _Names(PhotoFinder(images))
    for file in files:
        found: dict[int, dict[int, list[Mark] | None]] = {}  # None: open
        counted: dict[int, dict[int, int]] = {}
        deleted: dict[int, dict[int, tuple[Mark, ...]]] = {}
        for given in read_marks(file):
            number = places.get(names.path(given))
            if number is None:
                raise CimError("marks on a photo that is not tagged", path=given.where, found=given.photo)
            record, class_id = records[number], _class_of(given, classes)
            if given.rejected:
                if rejected and class_id in record.tags:
                    others = deleted.setdefault(number, {}).get(class_id, ())
                    deleted[number][class_id] = (*others, given.mark(class_id, record.size))
                continue
            if class_id not in record.tags and given.count != 0:
                fix = f"add the tag, or take the mark away ({record.path.name} has {_tags(record, classes)})"
                raise CimError(f"'{given.label}' marked on a photo that is not tagged so", path=given.where, fix=fix)
            of_photo = found.setdefault(number, {})
            sources[number][class_id] = given.where
            if given.open:
                of_photo[class_id] = None
            elif given.count is not None:
                of_photo.setdefault(class_id, [])
                counted.setdefault(number, {})[class_id] = given.count
            elif class_id not in of_photo:
                of_photo[class_id] = [given.mark(class_id, record.size)]
            else:
                mark, before = given.mark(class_id, record.size), of_photo[class_id]
                of_photo[class_id] = None if before is None else [*before, mark]
        for number, by_class in found.items():
            marks[number] |= {class_id: tuple(of or ()) for class_id, of in by_class.items()}
            earlier = {class_id: count for class_id, count in numbers[number].items() if class_id not in by_class}
            numbers[number] = earlier | counted.get(number, {})
            refused[number] = {class_id: of for class_id, of in refused[number].items() if class_id not in by_class}
        for number, of_class in deleted.items():
            refused[number] |= of_class
    photos = zip(records, counts, numbers, marks, refused, sources, strict=True)
    return tuple(_known(record, {**told, **of_files}, *others) for record, told, of_files, *others in photos)


def _known(record: Record, counts: Mapping[int, int], marks: Marks, refused: Marks, where: Mapping[int, str]) -> Record:
    if not counts and not marks and not refused:
        return record
    try:
        known = know(counts, marks, refused)
        return replace(record, known=known, tags=tuple(tag for tag in record.tags if tag not in known.absent))
    except CimError as error:
        worst = next(class_id for class_id, found in marks.items() if len(found) > counts.get(class_id, len(found)))
        fix = f"correct the count of {record.path.name}, or leave it out: marks count themselves"
        raise CimError(error.message, path=where[worst], expected=error.expected, found=error.found, fix=fix) from None


def _class_of(given: Given, classes: Sequence[str]) -> int:
    if given.label in classes:
        return classes.index(given.label)
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise CimError("no such class", path=given.where, expected=shown, found=given.label[:40])


def _tags(record: Record, classes: Sequence[str]) -> str:
    return " ".join(classes[tag] for tag in record.tags) or "none"


class _Names:
    """Photos by the names that files of marks use: relative to the photos' folder, or with other folders before it."""

    def __init__(self, finder: PhotoFinder) -> None:
        self._finder, self._found = finder, dict[str, Path]()

    def path(self, given: Given) -> Path:
        """The photo that is meant.

        Raises:
            CimError: none, or more than one.
        """
        if given.photo not in self._found:
            self._found[given.photo] = self._find(given)
        return self._found[given.photo]

    def _find(self, given: Given) -> Path:
        name = given.photo.replace("\\", "/")
        while "/" in name:  # the folders in front, one by one: photos may lie in folders of their own
            try:
                return self._finder.find(name, given.where)
            except CimError:
                name = name.partition("/")[2]
        return self._finder.find(name, given.where)
