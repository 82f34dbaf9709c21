"""How long CIM trains, and how often every photo comes, from the photos and their tags: rules instead of numbers.

What a class needs is to be seen often enough, whatever the number of photos and of the other classes: 700 photos of
seven animals were done after four rounds, 400 visits of every class; 20 classes on 453 photos were far from done after
as many rounds (docs/RESULTS.md). So training lasts ``epochs`` rounds through the photos, or as long as it takes to see
an average class ``visits`` times, whichever is longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Length:
    """The rule and its limits.

    Attributes:
        epochs: rounds through the photos.
        visits: photos of a class that an average class is seen on, at least.
        step: share of the updates after which the learning rate falls.
        stretch: factor on the result, for less or more training than the rule says.
        least, most: limits of the number of updates before that.
    """

    epochs: float
    visits: float = 400.0
    step: float = 0.7
    least: int = 400
    most: int = 20_000
    stretch: float = 1.0

    def updates(self, tags: Sequence[Sequence[int]], images_per_update: int) -> int:
        """How many updates of ``images_per_update`` photos.

        Args:
            tags: of every photo that can be used; photos without any are not counted.
        """
        tagged = [found for found in tags if found]
        if not tagged:
            return max(round(self.stretch * self.least), 1)
        classes = len({tag for found in tagged for tag in found})
        per_photo = sum(map(len, tagged)) / len(tagged)
        images = max(self.epochs * len(tagged), self.visits * classes / per_photo)
        updates = min(max(math.ceil(images / images_per_update), self.least), self.most)
        return max(round(self.stretch * updates), 1)

    def steps(self, updates: int) -> tuple[int, ...]:
        """After which updates the learning rate falls."""
        return (max(round(self.step * updates), 1),)


def repeats(tags: Sequence[Sequence[int]], power: float = 0.5) -> np.ndarray:
    """How often every photo should come in one round, float64 [n], at least 1 (LVIS, CVPR 2019).

    A class on fewer photos than the mean class is raised by (mean / its photos) ** ``power``; a photo takes the
    highest of its classes. Classes of one size, or ``power`` 0: all 1.
    """
    counts: dict[int, int] = {}
    for found in tags:
        for tag in found:
            counts[tag] = counts.get(tag, 0) + 1
    mean = sum(counts.values()) / max(len(counts), 1)
    factor = {tag: max((mean / count) ** power, 1.0) for tag, count in counts.items()}
    return np.array([max((factor[tag] for tag in found), default=1.0) for found in tags])


def balanced_order(tags: Sequence[Sequence[int]], power: float = 0.5) -> tuple[int, ...]:
    """Indices of photos for one round, ascending: each comes at least once, those of rare classes more often.

    Fractions are carried over from photo to photo, so that a class comes as often as it should on the whole.
    """
    wanted = repeats(tags, power)
    ends = np.floor(np.cumsum(wanted - 1) + 1e-9).astype(int)
    extra = np.diff(ends, prepend=0)
    return tuple(int(i) for i in np.repeat(np.arange(len(wanted)), 1 + extra))
