"""Photos that decide how long a network trains (:mod:`cim.engine.held_out`); CIM: does it still learn to tell what they
show?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from cim.config.schema import TrainConfig
from cim.engine.held_out import HeldOut, Patience
from cim.engine.schedule import Schedule
from cim.mining.losses import mil_loss
from cim.training.scene_source import Mixed, among_scenes
from cim.training.source import CIMSource

FEWEST = 20  # photos: fewer do not agree on any gain, and training ended early (docs/RESULTS.md)
MOST = 100  # photos: with more every look takes longer and says the same
LOOKS = 20  # until the learning rate would fall as planned
LEAST, LATEST = 0.5, 2.0  # of what is planned
WAITED = 4  # looks without a gain


def patience_of(share: float, planned: Schedule, photos: int) -> Patience | None:
    """When the rate falls, of a training on so many photos; None: as planned, nothing is held out."""
    if not planned.steps or not count_held_out(share, photos):
        return None
    every = max(planned.steps[0] // LOOKS, 1)
    least, most = (max(math.ceil(part * planned.steps[0] / every), 1) for part in (LEAST, LATEST))
    return Patience(every, WAITED, least, most)


def count_held_out(share: float, photos: int) -> int:
    """How many of so many photos are held out; none where they would be too few to say anything."""
    count = min(int(share * photos), MOST)
    return count if count >= FEWEST else 0


def draw_held_out(share: float, photos: Sequence[int], seed: int) -> frozenset[int]:
    """Which of these photos are held out."""
    drawn = np.random.default_rng([seed, len(photos)]).permutation(photos)
    return frozenset(drawn[: count_held_out(share, len(photos))].tolist())


def hold_out(
    photos: CIMSource,
    trained_on: CIMSource | Mixed,
    train: TrainConfig,
    planned: Schedule,
    stable: bool,
    device: torch.device,
) -> HeldOut | None:
    """What :func:`cim.engine.fit.fit` asks for; None: nothing is held out.

    Args:
        trained_on: the photos, or they among scenes, which are never held out.
        stable: of the loss, see :mod:`cim.mining.losses`.
    """
    if not train.held_out:  # before all photos are looked through
        return None
    proposed = photos.regions.seen()
    tagged = [n for n, record in enumerate(photos.dataset) if record.tags and proposed(record.image_id)]
    patience = patience_of(train.held_out, planned, len(tagged))
    if patience is None:
        return None
    numbers = draw_held_out(train.held_out, tagged, train.seed)
    order = range(len(photos.dataset)) if photos.order is None else photos.order
    rest = replace(photos, order=tuple(n for n in order if n not in numbers))
    losses = ImageLabelLosses(replace(photos, order=tuple(sorted(numbers))), device, stable)
    return HeldOut(patience, among_scenes(rest, trained_on), losses)


@dataclass(frozen=True)
class ImageLabelLosses:
    """The loss of the image labels (METHOD section 6) of every photo of a source, drawn the same each time."""

    photos: CIMSource
    device: torch.device
    stable: bool

    def __call__(self, model: nn.Module) -> list[float]:
        losses = list[torch.Tensor]()
        for number in range(len(self.photos)):
            sample = self.photos.sample(number, np.random.default_rng(number))
            if sample is not None:
                scores = model(sample := sample.to(self.device))
                losses.append(mil_loss(scores.cls.float(), scores.det.float(), sample.tags, self.stable))
        return torch.stack(losses).tolist() if losses else [0.0]  # no proposals in any: nothing to go by
