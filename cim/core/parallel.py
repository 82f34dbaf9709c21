"""One function over many images, in parallel, with a progress bar; a bad image harms no other."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from tqdm import tqdm

from cim.core.errors import CimError, StorageError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 10  # how long a Dask scheduler may take to answer, or to have a worker
_AHEAD = 500  # tasks that a Dask scheduler knows of at a time
_PATIENCE = 20  # seconds without a result after which it is asked whether it still has workers
_EACH = 4  # tasks that wait for every local process, so that none has to

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class StageReport:
    """Outcome of a stage: how many items were done, and the message of every failed one."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def exit_code(self) -> int:
        """Logs the failures, one line each; 2 when there are any."""
        for name, message in self.failed.items():
            logger.error("failed: %s: %s", name, message)
        if self.failed:
            logger.error("%d of %d failed, the others are done", len(self.failed), self.done + len(self.failed))
        return 2 if self.failed else 0


def run_stage(
    function: Callable[[Any], None],
    items: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    description: str = "",
    workers: int = 1,
    scheduler: str | None = None,
) -> StageReport:
    """Call ``function`` on every item and collect the :class:`CimError` of those that fail.

    Args:
        function: picklable; writes its own artefact, returns nothing. Other exceptions are bugs and propagate.
        items: what is still to do.
        names: how failures are listed (default: ``str(item)``).
        workers: local processes at most; 1 runs in this process.
        scheduler: address of a Dask scheduler; runs there instead (needs ``dask.distributed``).

    Raises:
        StorageError: the disk is full, or may not be written: one line, not one for every item.
        CimError: a local worker was killed; the scheduler's package is missing, or the scheduler cannot be reached,
            has no workers, or lost its tasks. What is done stays.
    """
    names = [str(item) for item in items] if names is None else list(names)
    report, messages = StageReport(), {}
    outcomes = _outcomes(function, enumerate(items), min(workers, len(items)), scheduler)
    for index, message in tqdm(outcomes, total=len(items), desc=description, unit="image", leave=True):
        if message is None:
            report.done += 1
        else:
            messages[index] = message
    for index in sorted(messages):
        name = names[index]
        report.failed[f"{name} (item {index})" if name in report.failed else name] = messages[index]
    return report


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``function`` of every item, in their order, by ``workers`` processes; few items are read ahead.

    Raises:
        CimError: a worker was killed.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    with _pool(function, workers) as submit:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(submit(item))
            if len(waiting) > _EACH * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _map_as_done(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The same, each as soon as it is there."""
    if workers <= 1:
        yield from map(function, items)
        return
    with _pool(function, workers) as submit:
        pending: set[Future[Result]] = set()
        for item in items:
            pending.add(submit(item))
            if len(pending) > _EACH * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def _outcomes(
    function: Callable[[Any], None], numbered: Iterable[tuple[int, Any]], workers: int, scheduler: str | None
) -> Iterator[tuple[int, str | None]]:
    if scheduler is not None:
        return _on_dask(function, numbered, scheduler)
    return _map_as_done(partial(_guarded, function), numbered, workers)


# ---------------------------------------------------------------------- local processes


@contextlib.contextmanager
def _pool(function: Callable[[Item], Result], workers: int) -> Iterator[Callable[[Item], Future[Result]]]:
    """Processes that know ``function``; gives what hands them an item. They are gone when the block is left.

    Raises:
        CimError: one of them was killed; then all are ended.
    """
    executor = ProcessPoolExecutor(workers, _context(), _begin, (function,))
    try:
        yield lambda item: executor.submit(_call, item)
    except BrokenProcessPool as error:
        fix = "the same command continues; with --workers 1 it needs least memory"
        raise CimError("a worker process was killed (no memory?)", fix=fix) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _context() -> BaseContext:
    """How local processes start. Forked ones are there at once, with all libraries loaded; new interpreters take
    seconds. But only Linux's libraries bear being forked, and CUDA does not once it is in use."""
    torch = sys.modules.get("torch")  # who has not loaded it has not begun with CUDA
    fork = sys.platform == "linux" and not (torch is not None and torch.cuda.is_initialized())
    return multiprocessing.get_context("fork" if fork else "spawn")


_work: list[Callable[[Any], Any]] = []
"""In a worker process: its function, which need not come with every item."""


def _begin(function: Callable[[Any], Any]) -> None:
    """First thing in a worker: it computes in one thread, since there is a process for every core (and since threads
    that the parent had are not there in a fork), and lives no longer than its parent."""
    import threadpoolctl  # here, because its parent can do without

    threadpoolctl.threadpool_limits(1)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):  # quietly, whatever the parent does then
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work.append(function)


def _call(item: Any) -> Any:
    return _work[0](item)


def _end_with_parent() -> None:
    """Even where the parent was killed and could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# ---------------------------------------------------------------------- many machines


def _on_dask(
    function: Callable[[Any], None], numbered: Iterable[tuple[int, Any]], address: str
) -> Iterator[tuple[int, str | None]]:
    """What a killed worker had under way, Dask does again elsewhere."""
    try:
        from dask.distributed import CancelledError, Client, KilledWorker, TimeoutError
        from dask.distributed import wait as wait_for
    except ImportError:
        raise CimError("--scheduler needs Dask", fix="pip install 'cim[cluster]'") from None
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as error:
            raise CimError("cannot reach the Dask scheduler", path=address, found=error) from error
        waiting, pending = iter(numbered), set[Any]()
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            while True:
                pending |= {
                    client.submit(_guarded, function, pair, pure=False)
                    for pair in itertools.islice(waiting, _AHEAD - len(pending))
                }
                if not pending:
                    return
                with contextlib.suppress(TimeoutError):
                    done, pending = wait_for(pending, timeout=_PATIENCE, return_when="FIRST_COMPLETED")
                    yield from (future.result() for future in done)
                    continue
                if not client.ncores():  # nobody is at work any more
                    raise TimeoutError
        except TimeoutError as error:
            fix = "start workers; the same command continues"
            raise CimError("the Dask scheduler has no workers", path=address, fix=fix) from error
        except KilledWorker as error:
            fix = "give workers more memory; the same command continues"
            raise CimError("several Dask workers died of one image", path=address, found=error, fix=fix) from error
        except (CancelledError, OSError) as error:
            fix = "once it runs, the same command continues"
            raise CimError("the Dask scheduler stopped or was restarted", path=address, fix=fix) from error


def _guarded(function: Callable[[Any], None], pair: tuple[int, Any]) -> tuple[int, str | None]:
    index, item = pair
    try:
        function(item)
    except StorageError:  # no other item would fare better
        raise
    except CimError as error:
        return index, str(error)
    return index, None
