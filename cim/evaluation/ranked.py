"""Average precision from ranked detections that know their photo and whether they hit, for one draw of photos or many.

A draw says how often each photo counts. Only hits matter to the curve: between two of them precision falls. For hit p
of photo i, the number of detections ranked up to it is linear in the draw, so a thousand draws are one small product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

COCO_RECALLS = np.linspace(0.0, 1.0, 101)  # as the COCO code writes them
VOC2007_RECALLS = np.arange(11) / 10  # as VOCap of the 2007 development kit means them
_SLAB = 2_000_000  # numbers of a table held at once


@dataclass(frozen=True, eq=False)
class Ranked:
    """Detections of one class at one IoU threshold, best first; those that neither count nor hurt are left out.

    Attributes:
        photo: int64 [n], row of the detection's photo, 0..I-1.
        hit: bool [n], whether it takes an object that no better one took; the others are false.
        positives: int64 [I], objects of the class per photo.
    """

    photo: NDArray[np.int64]
    hit: NDArray[np.bool_]
    positives: NDArray[np.int64]

    def average_precision(self, draws: NDArray[np.int64], recalls: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over ``recalls`` of the best precision at that recall or above.

        A photo drawn twice stands there twice, each detection beside its copy.

        Args:
            draws: int64 [R, I], how often each photo counts.
            recalls: float64 [T], ascending, from 0.

        Returns:
            float64 [R], 0..1; NaN where a draw has no object of the class.
        """
        found = np.full(len(draws), np.nan)
        rows = max(1, _SLAB // max(int(self.hit.sum()) if self._fits else len(self.hit), 1))
        for begin in range(0, len(draws), rows):
            found[begin : begin + rows] = self._of(draws[begin : begin + rows].astype(np.float64), recalls)
        return found

    @property
    def _fits(self) -> bool:
        """Whether a table of photos and hits is small enough to be kept; else draws are counted one by one."""
        return int(self.hit.sum()) * len(self.positives) <= _SLAB

    @cached_property
    def _at_hits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For every photo and hit: the photo's detections, and hits, ranked up to it, float64 [I, P]."""
        places = np.flatnonzero(self.hit)
        above, hits = (np.zeros((len(self.positives), len(places) + 1)) for _ in range(2))
        step = np.searchsorted(places, np.arange(len(self.photo)))  # the first hit at or after each detection
        np.add.at(above, (self.photo, step), 1)
        np.add.at(hits, (self.photo[places], np.arange(len(places))), 1)
        return above[:, :-1].cumsum(1), hits[:, :-1].cumsum(1)

    def _counts(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Detections and hits ranked up to every hit, each [R, P]."""
        if self._fits:
            above, hits = self._at_hits
            return draws @ above, draws @ hits
        weights = draws[:, self.photo]
        return weights.cumsum(1)[:, self.hit], (weights * self.hit).cumsum(1)[:, self.hit]

    def _of(self, draws: NDArray[np.float64], recalls: NDArray[np.float64]) -> NDArray[np.float64]:
        positives = draws @ self.positives
        above, taken = self._counts(draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = taken / positives[:, None]
            precision = np.nan_to_num(taken / above)  # 0 of 0: hits of photos that were not drawn, before any other
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(recalls, recall, side="right")  # how many of the recalls are at or below
        steps = np.diff(reached, axis=1, prepend=0)
        return np.where(positives > 0, (best * steps).sum(1) / len(recalls), np.nan)


def every_photo_once(photos: int) -> NDArray[np.int64]:
    """The draw that is the data set itself, int64 [1, I]."""
    return np.ones((1, photos), np.int64)


def draw_photos(photos: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap draws (Efron 1979): each draws I photos out of I with replacement, int64 [R, I]."""
    if not photos:
        return np.zeros((resamples, 0), np.int64)
    generator = np.random.default_rng(seed)
    chances = np.full(photos, 1 / photos)
    return generator.multinomial(photos, chances, size=resamples).astype(np.int64)
