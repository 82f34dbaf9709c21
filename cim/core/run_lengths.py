"""COCO's compressed run lengths: made, checked before the C decoder sees them, measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cim.core.types import RawRle, Rle

_AREAS_AT_ONCE = 255
_MOST_PIXELS = 2**31 - 1  # what the C code counts in 32 bits
_BEYOND = 1  # how far polygons may leave their image, in its longer sides; the C code walks all the way


def as_rle(mask: Any, size: tuple[int, int]) -> Rle:
    """Compressed RLE (``counts`` as str) of polygons, uncompressed or compressed RLE.

    Raises:
        ValueError, KeyError, TypeError: not a mask.
    """
    if isinstance(mask, list):
        height, width = _checked_size(size)
        rle = coco_mask.merge(coco_mask.frPyObjects(_checked_polygons(mask, height, width), height, width))  # type: ignore[arg-type]  # the stubs say list[int]
        return {"size": list(rle["size"]), "counts": as_text(rle["counts"])}
    height, width = _checked_size(mask["size"])
    counts = mask["counts"]
    if isinstance(counts, list):
        if any(type(run) is not int or run < 0 for run in counts):
            raise ValueError("runs that are no whole numbers from 0")
        if sum(counts) != height * width:
            raise ValueError(f"runs add up to {sum(counts)}, not to {height} x {width}")
        return compressed([{"size": [height, width], "counts": counts}], (height, width))[0]
    return {"size": [height, width], "counts": _as_bytes(counts).decode("ascii")}


def _checked_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in size)
    except OverflowError as error:  # infinity, which json can hold
        raise ValueError(error) from None
    if min(height, width) < 0 or height * width > _MOST_PIXELS:
        raise ValueError(f"a mask of {height} x {width}")
    return height, width


def _checked_polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    """What the C code may be given: it trusts its input."""
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("polygon with fewer than three points")
    values = [[float(value) for value in polygon] for polygon in polygons]
    room = _BEYOND * max(height, width)
    if not all(-room <= value <= room + max(height, width) for polygon in values for value in polygon):  # nan fails
        raise ValueError("polygon far outside its image")
    return values


def compressed(rles: list[RawRle], size: tuple[int, int]) -> list[Rle]:
    """Uncompressed run lengths (at least one, all of one size) as compressed ones, ``counts`` as str."""
    height, width = int(size[0]), int(size[1])
    encoded: list[Rle] = coco_mask.frPyObjects(rles, height, width)  # type: ignore[arg-type]  # the stubs forget these
    return [{"size": [height, width], "counts": as_text(rle["counts"])} for rle in encoded]


def valid_rles(rles: Iterable[Rle]) -> np.ndarray:
    """Which compressed run lengths are whole, bool [n]: no foreign byte, no negative run, runs fill the image.

    The C decoder trusts its input and reads beyond the end of a damaged string, so this looks first. All strings
    are decoded together: a byte carries 5 bits, a flag for "more follows" and, in the last one, the sign; runs after
    the third are differences to the run two before.
    """
    rles = list(rles)
    texts = [_as_bytes(rle["counts"]) for rle in rles]
    lengths = np.array([len(t) for t in texts], np.int64)
    pixels = np.array([int(rle["size"][0]) * int(rle["size"][1]) for rle in rles], np.int64)
    good = lengths > 0
    if not good.any():
        return good
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int16) - 48
    owner = np.repeat(np.arange(len(rles), dtype=np.int32), lengths)
    last = np.cumsum(lengths)[good] - 1
    more = (codes & 32) != 0
    good[owner[(codes < 0) | (codes > 63)]] = False
    good[owner[last[more[last]]]] = False
    ends = ~more
    ends[last] = True  # an unfinished value must not run into the next string
    finish = np.flatnonzero(ends)
    start = np.concatenate([[0], finish[:-1] + 1])
    digit = np.arange(len(codes)) - np.repeat(start, finish - start + 1)
    good[owner[digit > 6]] = False  # more than 35 bits: no image has that many pixels
    value = np.add.reduceat((codes & 31).astype(np.int64) << (5 * np.minimum(digit, 6)), start)
    value -= np.where(codes[finish] & 16, np.int64(1) << (5 * np.minimum(digit[finish] + 1, 7)), 0)
    return good & _runs_fill(value, owner[finish], pixels)


def mask_areas(rles: Sequence[Rle]) -> np.ndarray:
    """Pixels of compressed run lengths, float64 [n].

    In portions, because pycocotools 2.0.11 with NumPy 2 refuses more than 255 masks at once.
    """
    parts = [coco_mask.area(list(rles[i : i + _AREAS_AT_ONCE])) for i in range(0, len(rles), _AREAS_AT_ONCE)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def mask_box(rle: Rle) -> tuple[float, float, float, float]:
    """xyxy, exclusive, of compressed run lengths; zeros without pixels."""
    x, y, w, h = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, x + w, y + h


def _runs_fill(value: np.ndarray, owner: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Whether differences ``value`` of the strings ``owner`` (ascending) give runs >= 0 that sum to ``pixels``."""
    first = np.searchsorted(owner, np.arange(len(pixels), dtype=owner.dtype))
    index = np.arange(len(value)) - first[owner]
    runs = value.copy()
    for chain in (index % 2 == 1, (index % 2 == 0) & (index > 0)):  # run 0 stands alone: run 2 is absolute
        member = np.flatnonzero(chain)
        if not len(member):
            continue
        total = np.cumsum(value[member])
        of = owner[member]
        head = np.searchsorted(of, np.arange(len(pixels), dtype=of.dtype))[of]  # where this string's chain begins
        runs[member] = total - (total[head] - value[member][head])
    negative = np.bincount(owner, runs < 0, minlength=len(pixels)) > 0
    sums = np.bincount(owner, np.clip(runs, -1, 2**40).astype(np.float64), minlength=len(pixels))
    return ~negative & (sums == pixels)


def as_text(counts: str | bytes) -> str:
    """Compressed counts as json holds them."""
    return counts if isinstance(counts, str) else counts.decode("ascii")


def _as_bytes(counts: str | bytes) -> bytes:
    return counts if isinstance(counts, bytes) else counts.encode("ascii")
