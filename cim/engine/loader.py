"""From a data set to the stream of images that training eats: numbered, seeded by number, read ahead by workers."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from cim.core.errors import CimError
from cim.engine import distributed

logger = logging.getLogger(__name__)

_ORDER, _SAMPLE, _STEP = 0, 1, 2  # what a derived seed is for
_SHARED, _SHARED_MB = Path("/dev/shm"), 512
_OPEN_FILES = 16384


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
    """
    if workers:
        _prepare_sharing()
    sequence = ImageSequence(len(source), seed)
    return iter(
        DataLoader(
            _Reader(source, seed),
            sampler=_Positions(sequence, images_per_update, start, stop),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=_as_is,
            worker_init_fn=_quiet_worker,
        )
    )


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
class _Positions:
    """(position, index) of every image that this process reads, in order."""

    sequence: ImageSequence
    images_per_update: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for update in range(self.start, self.stop):
            for position in share(update, self.images_per_update):
                yield position, self.sequence.index(position)


def _prepare_sharing() -> None:
    """Workers hand tensors over in shared memory, each one an open file: allow many, warn where room is short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free / 2**20) < _SHARED_MB:
        logger.warning(
            "only %.0f MB free in %s; if loader workers die of a bus error, give the container more (docker: "
            "--shm-size=4g) or read without workers",
            free,
            _SHARED,
        )


def _as_is(item: Any) -> Any:
    return item


def _quiet_worker(_: int) -> None:
    """A worker leaves Ctrl-C to its parent. On SIGTERM it ends as if done: a whole group of processes may have got
    the signal, and the loader would raise for a worker that died of it, in the middle of an update."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
