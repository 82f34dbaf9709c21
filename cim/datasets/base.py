"""One record type for every data set. Training sees tags; masks stay in a file that evaluation opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cim.datasets.known import NOTHING, Known

_BLOCK = 1024  # records turned into text at once


@dataclass(frozen=True, slots=True)
class Record:
    """One photo.

    Attributes:
        image_id: unique in its data set.
        path: the photo.
        size: (H, W) in pixels, after EXIF rotation.
        tags: classes said to be in it, each 0..C-1, sorted; empty when unknown.
        known: what is said of it beyond its tags; of classes among them, but for those that are said to be absent.
    """

    image_id: int | str
    path: Path
    size: tuple[int, int]
    tags: tuple[int, ...] = ()
    known: Known = NOTHING


@dataclass(frozen=True)
class Dataset:
    """A split of a data set.

    Attributes:
        name: for messages, e.g. "voc trainaug".
        classes: C names.
        category_ids: C ids that these classes carry in COCO json.
        records: the photos; a tuple, or a view that makes each record when it is asked for.
        annotations: COCO json with masks, read by evaluation alone; None when there is none.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Sequence[Record]
    annotations: Path | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def where(self, wanted: Callable[[Record], bool]) -> Dataset:
        """The photos that are wanted; itself when all are, so that records which are made when asked for stay so."""
        kept = [index for index, record in enumerate(self.records) if wanted(record)]
        if len(kept) == len(self):
            return self
        return replace(self, records=tuple(self.records[index] for index in kept))

    @cached_property
    def digest(self) -> str:
        """Of ids, sizes and tags: by which version 0.1 told data sets apart."""
        return self._digest(lambda record: (str(record.image_id), record.size, record.tags))

    @cached_property
    def tags_digest(self) -> str:
        """Of ids and tags: what a network trained on this data set depends on, apart from the photos themselves."""
        return self._digest(lambda record: (str(record.image_id), record.tags))

    def _digest(self, said: Callable[[Record], tuple[Any, ...]]) -> str:
        """Of json.dumps([classes, listed]), where listed is what is said of all records, sorted; its first word is the
        id, and few records are there at a time."""
        ids = [str(record.image_id) for record in self.records]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for start in range(0, len(order), _BLOCK):
            listed = [said(self.records[index]) for index in order[start : start + _BLOCK]]
            digest.update(f"{', ' if start else ''}{json.dumps(listed)[1:-1]}".encode())
        digest.update(b"]]")
        return digest.hexdigest()[:16]

    @cached_property
    def known_digest(self) -> str | None:
        """Of all that is known beyond tags; None when nothing is."""
        known = sorted((str(record.image_id), str(record.known)) for record in self.records if record.known)
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16] if known else None

    @cached_property
    def absent_digest(self) -> str | None:
        """Of the classes that are said to be absent, whose tags may have been taken back; None when there are none."""
        absent = sorted((str(record.image_id), record.known.absent) for record in self.records if record.known.absent)
        return hashlib.sha256(json.dumps(absent).encode()).hexdigest()[:16] if absent else None

    @cached_property
    def by_id(self) -> dict[int | str, Record]:
        return {record.image_id: record for record in self.records}
