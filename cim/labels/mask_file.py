"""The masks of a label file, by photo, without holding more than those of one photo in memory."""

from __future__ import annotations

import tempfile
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.run_lengths import as_rle, as_text, valid_rles
from cim.core.types import Rle
from cim.datasets.base import Dataset
from cim.datasets.tags.json_lists import Unusual, read_lists
from cim.labels.label_files import read_labels

_BLOCK = 2**17  # characters of masks that are checked together
_COLUMNS = 7  # of the table of masks


@dataclass(frozen=True, slots=True)
class Scored:
    """A mask of a class 0..C-1, as COCO's compressed run lengths (``counts``) over the whole photo; score 0..1."""

    class_id: int
    mask: str
    score: float


Masks = Mapping[int | str, Sequence[Scored]]  # by image id, best first


class MaskFile(Masks):
    """The masks of a label file on photos of a data set; areas where nothing is known are left out.

    The file is read once, entry by entry; of a mask four numbers stay, and its run lengths lie in a file without a name
    that goes with this object. May be asked from several threads.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        """Reads and checks the file.

        Raises:
            CimError: what :func:`cim.labels.label_files.read_labels` raises; photos of another size or classes that the
                data set does not have; no room for a temporary file.
        """
        spool = _Spool()
        try:
            lists = read_lists(path, ("images", "annotations", "categories"), spool.take)
            spool.check()
            spool.agree(lists["images"] or [], lists["categories"] or [])
        except (Unusual, OSError, KeyError, TypeError, ValueError, RecursionError):
            content = read_labels(path)  # as a whole: it says best what is wrong
            spool, lists = _Spool(), content
            try:
                deque(map(spool.take, content["annotations"]), maxlen=0)
            except Unusual as error:
                raise CimError("bad annotation file", path=path, found=error) from None
            except OSError as error:
                found, fix = error.strerror or error, "free space, or set TMPDIR to a larger place"
                raise CimError("cannot write", path=tempfile.gettempdir(), found=found, fix=fix) from None
        self._file, self._lock = spool.file, threading.Lock()
        self._rows = _rows(path, dataset, lists["images"] or [], lists["categories"] or [], spool)

    def __getitem__(self, image_id: int | str) -> list[Scored]:
        found = []
        with self._lock:
            for class_id, score, start, length in self._rows[image_id]:
                self._file.seek(int(start))
                found.append(Scored(int(class_id), self._file.read(int(length)).decode("ascii"), float(score)))
        return found

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class _Spool:
    """Run lengths on disk, and of each mask where they lie and what it is of."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as whoever reads from it
        self.images: dict[int | str, int] = {}  # id of an image -> number
        self.table = array("d")  # seven numbers a mask: image, category, score, start, length, height, width
        self._end, self._waiting, self._length = 0, list[Rle](), 0

    def take(self, entry: dict[str, Any]) -> Any:
        """As an object hook: annotations go, all else stays.

        Raises:
            Unusual: a mask that is no run lengths, or anything missing that has no default.
        """
        if "image_id" not in entry:
            return entry
        if int(entry.get("iscrowd", 0)):
            return None
        image, category, score = entry["image_id"], entry["category_id"], entry.get("score", 1.0)
        kinds = isinstance(image, int | str) and type(category) is int and isinstance(score, int | float)
        if not kinds or not isinstance(entry["segmentation"], dict):
            raise Unusual("an annotation that is not plain")
        rle = as_rle(entry["segmentation"], (0, 0))
        counts = as_text(rle["counts"]).encode("ascii")
        number = self.images.setdefault(image, len(self.images))
        self.table.extend((number, category, score, self._end, len(counts), *rle["size"]))
        self.file.write(counts)
        self._end += len(counts)
        self._waiting.append(rle)
        self._length += len(counts)
        if self._length > _BLOCK:
            self.check()
        return None

    def check(self) -> None:
        """Look through the masks of which that was not done yet.

        Raises:
            Unusual: a damaged one.
        """
        if not valid_rles(self._waiting).all():
            raise Unusual("a damaged mask")
        self._waiting, self._length = [], 0

    def agree(self, images: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]) -> None:
        """Raises:
        Unusual: no masks, or some of unknown images or categories.
        """
        known = {image["id"] for image in images}
        if not self.table or not self.images.keys() <= known:
            raise Unusual("no annotations, or some of unknown images")
        if not set(self.table[1::_COLUMNS]) <= {category["id"] for category in categories}:
            raise Unusual("an unknown category")


def _rows(
    path: Path,
    dataset: Dataset,
    images: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    spool: _Spool,
) -> dict[int | str, np.ndarray]:
    """By image id, float64 [n, 4]: class, score, start and length of each mask, best first."""
    class_ids = {name: class_id for class_id, name in enumerate(dataset.classes)}
    names = {category["id"]: str(category["name"]) for category in categories}
    sources = {image["id"]: image.get("source_id", image["id"]) for image in images}
    if not spool.images:
        return {}
    table = np.frombuffer(spool.table).reshape(-1, _COLUMNS)
    table = table[np.lexsort((-table[:, 2], table[:, 0]))]
    ends = np.searchsorted(table[:, 0], np.arange(len(spool.images)), "right")
    found: dict[int | str, np.ndarray] = {}
    for image, part in zip(spool.images, np.split(table, ends[:-1]), strict=True):
        record = dataset.by_id.get(sources[image])
        if record is None:
            continue
        strange = [names[int(row[1])] for row in part if names[int(row[1])] not in class_ids]
        if strange or (part[:, 5:] != record.size).any():
            message, fix = "labels of other photos or classes than there are now", "run cim run again"
            name = (strange or [names[int(part[0, 1])]])[0]
            raise CimError(message, path=path, found=f"'{name}' on {record.path.name}", fix=fix)
        class_column = [class_ids[names[int(number)]] for number in part[:, 1]]
        found[record.image_id] = np.column_stack([class_column, part[:, 2:5]])
    return found
