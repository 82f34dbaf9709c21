"""Training as long as it helps: the learning rate falls once the losses of held-out images no longer do.

Until then these images are not trained on; afterwards, at the lower rate, all are. A gain counts if it is larger than
its standard error over the images. What was seen of the losses is part of the state of a run, and everything else
follows from it, so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from cim.engine.loader import Source
from cim.engine.schedule import Schedule

SMOOTH = 3  # looks whose means are compared: single ones go up and down


@dataclass(frozen=True)
class Patience:
    """When the learning rate falls for the first time.

    Attributes:
        every: updates between two looks at the held-out images.
        looks: how many without a gain are waited for.
        least, most: looks after which it falls at the earliest, at the latest.
    """

    every: int
    looks: int
    least: int
    most: int

    def turn(self, losses: Sequence[Sequence[float]]) -> int | None:
        """The update after which the rate falls; None: not yet.

        Args:
            losses: of every image [M] in all looks so far, one look every ``every`` updates.
        """
        gained_at = 0
        smooth = [np.mean(losses[max(n - SMOOTH, 0) : n], axis=0) for n in range(1, len(losses) + 1)]
        for n, latest in enumerate(smooth):
            if gained(smooth[gained_at], latest):
                gained_at = n
            looks = n + 1
            if looks >= self.least and (looks >= self.most or n - gained_at >= self.looks):
                return looks * self.every
        return None

    def settle(self, planned: Schedule, losses: Sequence[Sequence[float]]) -> Schedule:
        """The schedule as far as it is known: that of the latest turn until there is one. What comes after a turn
        grows and shrinks with what came before."""
        turn = self.turn(losses) or self.most * self.every
        scale = turn / planned.steps[0]
        steps = (turn, *(round(at * scale) for at in planned.steps[1:]))
        return replace(planned, updates=max(round(planned.updates * scale), turn), steps=steps)


def gained(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether losses [M] of the same images fell by more than the standard error of the mean difference."""
    fall = before - after
    error = fall.std(ddof=1) / math.sqrt(len(fall)) if len(fall) > 1 else 0.0
    return bool(fall.mean() > error)


@dataclass(frozen=True)
class HeldOut:
    """Images that decide how long to train.

    Attributes:
        patience: the rule.
        source: the other images, which are trained on till the rate falls.
        losses: of every held-out one, under a network in eval mode.
    """

    patience: Patience
    source: Source
    losses: Callable[[nn.Module], list[float]]
