"""One function over many images, in parallel, with a progress bar; a bad image harms no other."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from cim.core.errors import CimError, StorageError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 10  # how long a Dask scheduler may take to answer, or to have a worker
_AHEAD = 500  # tasks that a Dask scheduler knows of at a time
_PATIENCE = 20  # seconds without a result after which it is asked whether it still has workers


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
        workers: local processes; 1 runs in this process.
        scheduler: address of a Dask scheduler; runs there instead (needs ``dask.distributed``).

    Raises:
        StorageError: the disk is full, or may not be written: one line, not one for every item.
        CimError: a local worker was killed; the scheduler's package is missing, or the scheduler cannot be reached,
            has no workers, or lost its tasks. What is done stays.
    """
    names = [str(item) for item in items] if names is None else list(names)
    report, messages = StageReport(), {}
    outcomes = _outcomes(function, enumerate(items), workers, scheduler)
    for index, message in tqdm(outcomes, total=len(items), desc=description, unit="image", leave=True):
        if message is None:
            report.done += 1
        else:
            messages[index] = message
    for index in sorted(messages):
        name = names[index]
        report.failed[f"{name} (item {index})" if name in report.failed else name] = messages[index]
    return report


def close_workers() -> None:
    """End the worker processes that joblib keeps for the next stage; a process that was forked must do so to end."""
    get_reusable_executor(max_workers=1, reuse=True).shutdown(wait=True, kill_workers=True)


def _outcomes(
    function: Callable[[Any], None], numbered: Iterable[tuple[int, Any]], workers: int, scheduler: str | None
) -> Iterator[tuple[int, str | None]]:
    if scheduler is not None:
        yield from _on_dask(function, numbered, scheduler)
    elif workers <= 1:
        yield from (_guarded(function, pair) for pair in numbered)
    else:
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size="auto")
        with killed_worker_told():
            yield from parallel(joblib.delayed(_guarded)(function, pair) for pair in numbered)


@contextlib.contextmanager
def killed_worker_told() -> Iterator[None]:
    """For blocks that wait for joblib's processes: joblib ends them all when one of them is killed.

    Raises:
        CimError: one was killed.
    """
    try:
        yield
    except BrokenProcessPool as error:
        fix = "the same command continues; with --workers 1 it needs least memory"
        raise CimError("a worker process was killed (no memory?)", fix=fix) from error


def _on_dask(
    function: Callable[[Any], None], numbered: Iterable[tuple[int, Any]], address: str
) -> Iterator[tuple[int, str | None]]:
    """What a killed worker had under way, Dask does again elsewhere. joblib's Dask backend is no help: it takes a
    cancelled task for a result, and waits for ever where the scheduler forgot one."""
    try:
        from dask.distributed import CancelledError, Client, KilledWorker, TimeoutError, wait
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
                    done, pending = wait(pending, timeout=_PATIENCE, return_when="FIRST_COMPLETED")
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
