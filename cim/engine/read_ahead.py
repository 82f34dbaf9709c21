"""Items of a data set read ahead by worker processes, with as much shared memory as the machine has.

What workers need of /dev/shm comes in two sizes: semaphores of some bytes each, without which there can be no workers,
and the tensors that they hand over. Containers often give 64 MB, and a tensor that finds no room there is the end of a
worker (bus error); where room is short, tensors go through pipes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from cim.core.errors import CimError

logger = logging.getLogger(__name__)

_SHARED, _SHARED_MB = Path("/dev/shm"), 512
_OPEN_FILES = 16384


class WorkerDied(CimError):
    """A loader worker was killed."""


def read_ahead(
    dataset: Dataset[Any], workers: int, prefetch: int, sampler: Sampler[Any] | None = None
) -> Iterator[Any]:
    """The items of a data set, in order, one by one.

    Args:
        dataset: picklable.
        workers: processes that read; 0: this one.
        prefetch: items that each worker reads ahead.
        sampler: keys of the items, in order; None: 0, 1, ...

    Raises:
        WorkerDied: one was killed.
    """
    workers = _possible(workers)
    by_pipe = bool(workers) and not _room_for_tensors()
    loader: DataLoader[Any] = DataLoader(
        _Pickled(dataset) if by_pipe else dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
    )
    try:
        for item in loader:
            yield pickle.loads(item) if by_pipe else item  # from our own worker
    except (RuntimeError, EOFError, ConnectionError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in text:
            raise
        found = text.split("\n")[0] or type(error).__name__
        fix = "the same command continues; where memory is short: fewer workers"
        raise WorkerDied("a loader worker died", found=found, fix=fix) from error


@dataclass(frozen=True)
class _Pickled(Dataset[bytes]):
    """Items as bytes, which no shared memory is taken for."""

    dataset: Dataset[Any]

    def __getitem__(self, key: Any) -> bytes:
        return pickle.dumps(self.dataset[key], pickle.HIGHEST_PROTOCOL)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # ours have a length


def _possible(workers: int) -> int:
    """So many, or none where the system has no semaphores for them."""
    if workers:
        try:
            multiprocessing.get_context().Lock()
        except (OSError, ImportError) as error:
            logger.warning(
                "%s cannot be used (%s): photos are read without worker processes, as with workers=0; docker: "
                "--shm-size=4g",
                _SHARED,
                getattr(error, "strerror", None) or error,
            )
            return 0
    return workers


def _room_for_tensors() -> bool:
    """Whether workers can hand tensors over in shared memory, each one an open file: allow many."""
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free / 2**20) < _SHARED_MB:
        logger.info("only %.0f MB free in %s: loader workers hand photos over in pipes", free, _SHARED)
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def _as_is(item: Any) -> Any:
    return item


def _quiet_worker(_: int) -> None:
    """A worker leaves Ctrl-C to its parent. On SIGTERM it ends as if done: a whole group of processes may have got
    the signal, and the loader would raise for a worker that died of it, in the middle of an update."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
