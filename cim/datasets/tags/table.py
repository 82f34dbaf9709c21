"""The images and tags of a COCO json as a few arrays: 118,000 of them take 5 MB, and a process that gets them copies
arrays, not objects. Rows become :class:`Record` when somebody asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from cim.datasets.base import Record
from cim.datasets.photo_files import leads_outside


class TaggedImage(NamedTuple):
    """One entry of the json's ``images``: id, file name as written there, (H, W) or None, classes 0..C-1."""

    image_id: int | str
    file_name: str
    size: tuple[int, int] | None
    tags: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Texts:
    """n strings.

    Attributes:
        data: uint8 [b], all of them in UTF-8.
        ends: whole numbers [n + 1], where each begins and the last one ends.
    """

    data: np.ndarray
    ends: np.ndarray

    def __post_init__(self) -> None:
        _check_ends(self.ends, self.data)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(parts), np.uint8), _ends(map(len, parts)))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogatepass")


Column = np.ndarray | Texts  # whole numbers [n] of the smallest type; anything else (names, huge ones) as json texts


@dataclass(frozen=True, eq=False)
class TagTable:
    """n images, in the order of the json.

    Attributes:
        ids: image ids.
        heights, widths: pixels; 0 where the json gives none.
        names: file names.
        tags: whole numbers [t], the classes 0..C-1 of all images, each image's sorted.
        tag_ends: whole numbers [n + 1], where each image's begin and the last one's end.
    """

    ids: Column
    heights: Column
    widths: Column
    names: Texts
    tags: np.ndarray
    tag_ends: np.ndarray

    def __post_init__(self) -> None:
        _check_ends(self.tag_ends, self.tags)
        lengths = {len(self.ids), len(self.heights), len(self.widths), len(self.names), len(self.tag_ends) - 1}
        if len(lengths) > 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")

    @classmethod
    def of(cls, images: Iterable[TaggedImage]) -> TagTable:
        """The same images as a table."""
        images = list(images)
        sizes = [image.size or (0, 0) for image in images]
        return cls(
            _column([image.image_id for image in images]),
            _column([height for height, _ in sizes]),
            _column([width for _, width in sizes]),
            Texts.of(image.file_name for image in images),
            _small(np.array([tag for image in images for tag in image.tags], np.int64)),
            _ends(len(image.tags) for image in images),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> TaggedImage:
        index = range(len(self))[index]  # counts from the end where negative
        height, width = _value(self.heights, index), _value(self.widths, index)
        tags = self.tags[self.tag_ends[index] : self.tag_ends[index + 1]].tolist()
        size = (height, width) if height and width else None
        return TaggedImage(_value(self.ids, index), self.names[index], size, tuple(tags))

    def __iter__(self) -> Iterator[TaggedImage]:
        return map(self.__getitem__, range(len(self)))

    def leading_outside(self) -> TaggedImage | None:
        """The first image whose file name leads out of its folder; a look at the bytes clears most files."""
        data, starts = self.names.data, self.names.ends[:-1]
        if b".." in data.tobytes() or np.isin(data[starts[starts < len(data)]], (ord("/"), ord("\\"))).any():
            return next((image for image in self if leads_outside(image.file_name)), None)
        return None

    def without_size(self) -> TaggedImage | None:
        """The first image whose size the json does not give."""
        if isinstance(self.heights, np.ndarray) and isinstance(self.widths, np.ndarray):
            rows = np.flatnonzero((self.heights == 0) | (self.widths == 0))
            return self[int(rows[0])] if len(rows) else None
        return next((image for image in self if image.size is None), None)


@dataclass(frozen=True)
class TagFile:
    """What training may know of a COCO json.

    Attributes:
        path: the json.
        classes: C names, in order of their category ids.
        category_ids: C ids.
        images: every image of the file, with its tags.
        annotated: whether the file has an ``annotations`` list (test sets have none).
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: TagTable
    annotated: bool


@dataclass(frozen=True, eq=False)
class TableRecords(Sequence[Record]):
    """Some rows of a table as records, each made when it is asked for; equal to a tuple of the same records.

    Attributes:
        table: the images, each with its size.
        photos: the folder that their names are relative to.
        rows: which, in order.
    """

    table: TagTable
    photos: Path
    rows: Sequence[int]

    @classmethod
    def of(cls, table: TagTable, photos: Path) -> TableRecords:
        """All rows."""
        return cls(table, photos, range(len(table)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> TableRecords: ...
    def __getitem__(self, index: int | slice) -> Record | TableRecords:
        if isinstance(index, slice):
            return TableRecords(self.table, self.photos, self.rows[index])
        return self._record(self.rows[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TableRecords | tuple):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def _record(self, row: int) -> Record:
        image_id, name, size, tags = self.table[row]
        assert size is not None
        return Record(image_id, self.photos / name, size, tags)


def _column(values: list[Any]) -> Column:
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in values):
        return _small(np.array(values, np.int64))
    return Texts.of(map(json.dumps, values))


def _value(column: Column, index: int) -> Any:
    return json.loads(column[index]) if isinstance(column, Texts) else int(column[index])


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """[n + 1]: 0 and the running sums."""
    return _small(np.cumsum([0, *lengths], dtype=np.int64))


def _small(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in as few bytes as hold them."""
    lowest, highest = np.min_scalar_type(values.min(initial=0)), np.min_scalar_type(values.max(initial=0))
    kind = np.result_type(lowest, highest)
    return values.astype(kind) if kind.kind in "iu" else values


def _check_ends(ends: np.ndarray, values: np.ndarray) -> None:
    """Do the ends part these values?"""
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or values.ndim != 1:
        raise ValueError("ends or values that are no lists of numbers")
    if not (len(ends) and ends[0] == 0 and ends[-1] == len(values) and (ends[1:] >= ends[:-1]).all()):
        raise ValueError("ends that do not fit their values")
