"""Proposals from a COCO-style json: a list of ``{"image_id", "segmentation", "score"}``.

The file is scanned once for where each image's entries stand, and images are then read one at a time, so a
file of many gigabytes needs little memory and every worker reads only its own images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.run_lengths import as_rle, valid_rles
from cim.core.types import Rle

_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")
_EXPECTED = "a json list of {image_id, segmentation, score}"


@dataclass(frozen=True)
class RleFile:
    """A proposals json and the place of every image in it.

    Attributes:
        path: the file.
        places: image id -> (byte offset, length) of its entries, in the file's order.
    """

    path: Path
    places: dict[int | str, list[tuple[int, int]]]

    @classmethod
    def open(cls, path: str | Path) -> RleFile:
        """Scan a file.

        Raises:
            CimError: missing, not json, or entries without image_id and segmentation.
        """
        path = Path(path)
        places: dict[int | str, list[tuple[int, int]]] = {}
        for number, (entry, offset, length) in enumerate(_entries(path)):
            if not isinstance(entry, dict) or not {"image_id", "segmentation"} <= entry.keys():
                found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
                raise CimError(f"entry {number} is no proposal", path=path, expected=_EXPECTED, found=found)
            image_id = entry["image_id"]
            if not isinstance(image_id, (int, str)):
                raise CimError(f"entry {number} has a bad image_id", path=path, found=repr(image_id))
            places.setdefault(image_id, []).append((offset, length))
        return cls(path, places)

    def load(self, image_id: int | str, size: tuple[int, int] | None = None) -> RegionSet:
        """Proposals of one image in the file's order; none when the file has none for it.

        Args:
            image_id: as in the file.
            size: (H, W) of the photo; needed for polygons and for images without entries, else checked.

        Raises:
            CimError: a mask of another size, or a damaged one.
        """
        return read_entries(self.path, self.places.get(image_id, []), image_id, size)


def read_entries(
    path: Path, places: list[tuple[int, int]], image_id: int | str, size: tuple[int, int] | None
) -> RegionSet:
    """Proposals at the given (byte offset, length) places of a json file; see :meth:`RleFile.load`."""
    entries = []
    with open(path, "rb") as file:
        for offset, length in places:
            file.seek(offset)
            entries.append(json.loads(file.read(length)))
    names = (f"proposal {number} of image {image_id}" for number in range(len(entries)))
    rles = [_as_rle(entry["segmentation"], size, name, path) for entry, name in zip(entries, names, strict=True)]
    if not rles:
        if size is None:
            raise CimError(f"no proposals for image {image_id}", path=path)
        return RegionSet.from_masks(np.zeros((0, *size), bool))
    expected = tuple(size or rles[0]["size"])
    for number, rle in enumerate(rles):
        if tuple(rle["size"]) != expected:
            raise CimError(
                f"proposal {number} of image {image_id} is not of the photo's size",
                path=path,
                expected=f"{expected[0]} x {expected[1]} (H x W)",
                found=f"{rle['size'][0]} x {rle['size'][1]}",
            )
    try:
        scores = np.array([float(entry.get("score", 0.0)) for entry in entries], np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise CimError(f"a score that is no number, of image {image_id}", path=path, found=error) from None
    return RegionSet.from_masks(_decode(rles, image_id, path), scores)


def _decode(rles: list[Rle], image_id: int | str, path: Path) -> np.ndarray:
    from pycocotools import mask as coco_mask

    good = valid_rles(rles)
    if not good.all():
        raise CimError(f"damaged mask of image {image_id}", path=path, found=f"in proposal {int(good.argmin())}")
    return coco_mask.decode(rles).transpose(2, 0, 1)  # a view; from_masks scans it in memory order


def _as_rle(segmentation: Any, size: tuple[int, int] | None, where: str, path: Path) -> Rle:
    """Compressed RLE of a compressed RLE, an uncompressed RLE or a list of polygons."""
    try:
        if isinstance(segmentation, list) and size is None:
            raise ValueError("polygons need the photo's size")
        return as_rle(segmentation, size or (0, 0))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CimError(f"bad mask: {where}", path=path, found=" ".join(str(error).split())) from error


def _skip(text: str, at: int) -> int:
    """Where the next value begins, at or after ``at``."""
    found = _BETWEEN.match(text, at)
    return at if found is None else found.end()


def _entries(path: Path) -> Iterator[tuple[Any, int, int]]:
    """(value, byte offset, length) of every element of the list, holding little more than one chunk of text.

    Bytes are read as latin-1, so that positions in the text are positions in the file.
    """
    decoder = json.JSONDecoder()
    try:
        with open(path, encoding="latin1", newline="") as file:
            text, start = file.read(_CHUNK), 0  # text[at:] is still to do; text begins at byte `start`
            at = _skip(text, 0)
            if text[at : at + 1] != "[":
                raise CimError("not a proposals file", path=path, expected=_EXPECTED, found=repr(text[at : at + 20]))
            at += 1
            while True:
                at = _skip(text, at)
                if text[at : at + 1] == "]":
                    return
                try:
                    value, end = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    value, end = None, len(text)
                except (ValueError, RecursionError) as error:  # endless digits, lists in lists in lists
                    raise CimError("damaged json", path=path, found=error) from error
                if end < len(text):
                    part = text[at:end]
                    yield value if part.isascii() else json.loads(part.encode("latin1")), start + at, end - at
                    at = end
                    continue
                more = file.read(max(_CHUNK, len(text) - at))  # doubles, so that a long entry is not parsed too often
                if not more:
                    raise CimError(
                        "truncated or damaged json", path=path, found=f"after byte {start + at}", fix="make it again"
                    )
                start, text, at = start + at, text[at:] + more, 0
    except FileNotFoundError:
        raise CimError("missing file", path=path) from None
    except UnicodeDecodeError as error:
        raise CimError("json is not in UTF-8", path=path, found=error) from error
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from error
