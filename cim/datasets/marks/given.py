"""One marked instance as a file gives it, and as a :class:`Mark` once it is known to lie in its photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.run_lengths import as_rle, as_text, mask_areas, valid_rles
from cim.core.types import Rle
from cim.datasets.known import Mark

SLACK = 2.0  # pixels that boxes and outlines may leave the photo by: tools round, and people overshoot

Point = tuple[float, float]


@dataclass(frozen=True)
class Given:
    """What a file says of one instance; pixels. Nothing but a label: the class is there, how many is not known.

    Attributes:
        where: file and line, or file and entry, for messages.
        photo: as the file names it.
        label: name of the class.
        points: inside the instance.
        box: x1, y1, x2, y2.
        outlines: polygons whose union it is.
        mask: anything that :func:`cim.core.run_lengths.as_rle` takes, or bool [H, W]; None: not given.
        size: (H, W) of the photo that was marked; None: not told.
        count: how many instances of the class the photo has, 0: none; None: not told. With it, this is no instance.
        rejected: this is no instance of the class, and its mask says what is none.
    """

    where: str
    photo: str
    label: str
    points: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    outlines: tuple[tuple[Point, ...], ...] = ()
    mask: Any = None
    size: tuple[int, int] | None = None
    count: int | None = None
    rejected: bool = False

    @property
    def open(self) -> bool:
        """Does it say no more than a tag?"""
        return self.count is None and not (self.points or self.box or self.outlines or self.mask is not None)

    def mark(self, class_id: int, size: tuple[int, int]) -> Mark:
        """As a mark of a class in a photo of (H, W) pixels.

        Raises:
            CimError: made on another size, outside the photo, or without pixels.
        """
        if self.size is not None and tuple(self.size) != tuple(size):
            message, fix = "marked on another size of the photo (H, W)", "use the photo that was marked"
            raise CimError(message, path=self.where, expected=size, found=self.size, fix=fix)
        for x, y in self.points:
            if not (0 <= x < size[1] and 0 <= y < size[0]):
                expected = f"x from 0 to below {size[1]}, y from 0 to below {size[0]}"
                raise CimError("point outside the photo", path=self.where, expected=expected, found=f"{x:g}, {y:g}")
        return Mark(class_id, self.points, self._box(size), self._mask(size))

    def _box(self, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
        if self.box is None:
            return None
        x1, y1, x2, y2 = self.box
        (x1, y1), (x2, y2) = self._inside((x1, y1), size), self._inside((x2, y2), size)
        if not (x1 < x2 and y1 < y2):
            raise CimError("box without pixels", path=self.where, found=", ".join(f"{v:g}" for v in self.box))
        return x1, y1, x2, y2

    def _mask(self, size: tuple[int, int]) -> str | None:
        if self.outlines:
            if any(len(outline) < 3 for outline in self.outlines):
                raise CimError("outline of fewer than three points", path=self.where)
            flat = [[v for point in outline for v in self._inside(point, size)] for outline in self.outlines]
            rle = as_rle(flat, size)
        elif self.mask is not None:
            rle = self._run_lengths(size)
        else:
            return None
        if not mask_areas([rle])[0]:
            raise CimError("mask without pixels", path=self.where)
        return as_text(rle["counts"])

    def _run_lengths(self, size: tuple[int, int]) -> Rle:
        mask = self.mask
        if isinstance(mask, np.ndarray):
            flat = np.asarray(mask, bool).ravel(order="F")
            edges = np.flatnonzero(np.diff(flat, prepend=False))
            mask = {"size": mask.shape, "counts": np.diff([0, *edges, flat.size]).tolist()}
        try:
            rle = as_rle(mask, size)
            found = tuple(rle["size"])
            whole = found != tuple(size) or bool(valid_rles([rle])[0])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CimError("damaged mask", path=self.where, found=error) from None
        if found != tuple(size):
            raise CimError("mask of another size than the photo (H, W)", path=self.where, expected=size, found=found)
        if not whole:
            raise CimError("damaged mask", path=self.where)
        return rle

    def _inside(self, point: Point, size: tuple[int, int]) -> Point:
        """The corner, moved into the photo if it is hardly outside."""
        moved = min(max(point[0], 0.0), float(size[1])), min(max(point[1], 0.0), float(size[0]))
        if not (abs(moved[0] - point[0]) <= SLACK and abs(moved[1] - point[1]) <= SLACK):
            found = f"{point[0]:g}, {point[1]:g}"
            raise CimError(
                "outline or box outside the photo", path=self.where, expected=f"{size[1]} x {size[0]}", found=found
            )
        return moved
