"""From a data set to the stream of images that training eats: numbered, seeded by number, read ahead by workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from cim.core.errors import CimError
from cim.engine import distributed
from cim.engine.read_ahead import read_ahead

_ORDER, _SAMPLE, _STEP = 0, 1, 2  # what a derived seed is for


class Source(Protocol):
    """Where images come from; picklable, called in the loader's worker processes."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Any | None:
        """Image ``index`` as the step wants it, every random choice drawn from ``rng``; None: nothing to learn."""


class ImageSequence:
    """The endless, numbered sequence of images: one random permutation of the data set after another."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._epoch = -1
        self._order: np.ndarray = np.zeros(0, np.int64)

    def index(self, position: int) -> int:
        """Image at ``position``."""
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.length)
        return int(self._order[offset])


def step_seed(seed: int, position: int) -> int:
    """Seed of every random draw in the step that starts with the image at ``position``."""
    return int(np.random.SeedSequence([seed, _STEP, position]).generate_state(1, np.uint64)[0] >> 1)


def share(update: int, images: int) -> range:
    """Positions of an update of ``images`` images that fall to this process."""
    return range(update * images + distributed.rank(), (update + 1) * images, distributed.world())


def stream(
    source: Source, *, images_per_update: int, start: int, stop: int, seed: int, workers: int
) -> Iterator[tuple[int, Any]]:
    """(position, sample) of this process's images of the updates ``start`` .. ``stop`` - 1, read ahead.

    A sample is what ``source`` gave: None when there is nothing to learn, a :class:`CimError` when it raised one.

    Raises:
        WorkerDied: a worker was killed.
    """
    positions = _Positions(ImageSequence(len(source), seed), images_per_update, start, stop)
    return read_ahead(_Reader(source, seed), workers, 4, positions)


@dataclass(frozen=True)
class _Reader(Dataset[tuple[int, Any]]):
    """Map from (position, index) to (position, sample or None or the error met): what loader workers run."""

    source: Source
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        position, index = key
        try:
            return position, self.source.sample(index, np.random.default_rng([self.seed, _SAMPLE, position]))
        except CimError as error:  # raised again in the training process, where it stays one readable line
            return position, error

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class _Positions(Sampler[tuple[int, int]]):
    """(position, index) of every image that this process reads, in order."""

    sequence: ImageSequence
    images_per_update: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for update in range(self.start, self.stop):
            for position in share(update, self.images_per_update):
                yield position, self.sequence.index(position)
