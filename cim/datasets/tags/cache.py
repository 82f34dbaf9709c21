"""What stays of a large COCO json beside it, so that it is parsed once and not by every process: images and tags.

A hidden ``.<name>.cim-tags.npz``, true as long as size and time stamp of the json are those it was made from. One that
is stale, damaged or of another format is made again; where the folder cannot be written, every start parses.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.files import write_npz
from cim.core.leftovers import sweep
from cim.datasets.tags.table import Column, TagFile, TagTable, Texts

logger = logging.getLogger(__name__)

FORMAT = 2
SMALLEST = 2**22  # bytes; a smaller json is parsed in a tenth of a second and needs no second file


@dataclass(frozen=True)
class Stamp:
    """What tells a changed json: its length in bytes, and when it was last written, in ns."""

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """None where there is no such file."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


def cache_path(path: Path) -> Path:
    """The file beside a json."""
    return path.with_name(f".{path.name}.cim-tags.npz")


def kept_tags(path: Path, stamp: Stamp | None) -> TagFile | None:
    """What was kept of the json ``path``; None when nothing was, or nothing that is whole and fits ``stamp``."""
    if stamp is None or stamp.size < SMALLEST:
        return None
    try:
        data = cache_path(path).read_bytes()
    except OSError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            return _unpack(path, about, arrays) if about["key"] == _key(stamp) else None
    except Exception as error:  # zip, zlib, value, end of file: all mean a damaged file
        logger.info("%s is damaged and made again: %s", cache_path(path), error)
        return None


def keep_tags(file: TagFile, stamp: Stamp | None) -> None:
    """Write what :func:`kept_tags` reads, atomically; ``stamp`` is from before the json was parsed.

    Nothing is written for a small json or for one that has changed since.
    """
    if stamp is None or stamp.size < SMALLEST or Stamp.of(file.path) != stamp:
        return
    try:
        sweep(file.path.parent)
        write_npz(cache_path(file.path), **_pack(file, stamp))
    except CimError as error:
        logger.info("%s: its tags cannot be kept beside it (%s), every start parses it", file.path, error.found)
        return
    logger.info("%s: its tags are kept beside it, later starts need not parse it", file.path)


def _key(stamp: Stamp) -> list[int]:
    return [FORMAT, stamp.size, stamp.modified]


def _pack(file: TagFile, stamp: Stamp) -> dict[str, np.ndarray]:
    about = {
        "key": _key(stamp),
        "classes": file.classes,
        "category_ids": file.category_ids,
        "annotated": file.annotated,
    }
    table = file.images
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "tags": table.tags,
        "tag_ends": table.tag_ends,
    }
    for name in ("ids", "heights", "widths", "names"):
        column = getattr(table, name)
        if isinstance(column, Texts):
            arrays |= {name: column.data, f"{name}_ends": column.ends}
        else:
            arrays[name] = column
    return arrays


def _unpack(path: Path, about: dict[str, Any], arrays: Any) -> TagFile:
    """Raises :class:`ValueError` where something does not fit."""

    def column(name: str) -> Column:
        ends = f"{name}_ends"
        return Texts(arrays[name], arrays[ends]) if ends in arrays else arrays[name]

    names = column("names")
    if not isinstance(names, Texts):
        raise ValueError("file names that are no texts")
    table = TagTable(column("ids"), column("heights"), column("widths"), names, arrays["tags"], arrays["tag_ends"])
    classes, category_ids = tuple(about["classes"]), tuple(about["category_ids"])
    if len(classes) != len(category_ids) or not set(np.unique(table.tags)) <= set(range(len(classes))):
        raise ValueError("tags that do not fit the classes")
    return TagFile(path, classes, category_ids, table, about["annotated"])
