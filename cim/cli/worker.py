"""Commands in processes of their own that need not load the libraries again.

One server process imports them once and forks for every command: a command starts in milliseconds, gives all its
memory back when it ends, and takes nothing with it when it is killed. The server never computes anything itself, so
that what it hands on (threads, CUDA, random numbers) is as untouched as in a fresh process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cim.core.locks import join

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

Start = Callable[[Sequence[str]], Any]
"""Runs a command given as words and ends with SystemExit; importable by name in another process."""

_GLANCE = 0.2  # seconds between two looks at what a command has said


@cache
def _server() -> ForkServerContext | SpawnContext:
    """The server that forks, started; where there is none (Windows), every command loads the libraries itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cim.cli.preload"])
    ensure_running()
    return context


def warm_up() -> None:
    """Let the server begin to load the libraries, beside whatever this process does next."""
    _server()


def cim_command(words: Sequence[str]) -> None:
    """A command of ``cim``; ends with its exit code."""
    from cim.cli.main import main  # which imports the flow's own command

    sys.exit(main(words))


def run_apart(words: Sequence[str], start: Start = cim_command) -> int:
    """Exit code of a command in a process of its own, as :func:`wait_for` gives it."""
    return wait_for(start_apart(words, start))


def start_apart(words: Sequence[str], start: Start = cim_command, said: Path | None = None) -> BaseProcess:
    """A command, begun in a process of its own. When this process dies, the command is told to stop.

    Args:
        words: of the command.
        start: what runs it.
        said: a file that takes what it prints (standard output and errors).
    """
    process = _server().Process(target=_guarded, args=(start, list(words), dict(os.environ), said))
    process.start()
    return process


def wait_for(process: BaseProcess, said: BinaryIO | None = None) -> int:
    """Exit code of a command that was begun (negative: the signal that ended it).

    SIGTERM is passed on. Ctrl-C, which the command gets itself, is left to it: it saves what it has.

    Args:
        process: of :func:`start_apart`.
        said: the file that takes what it prints; it is shown from there on, as it comes.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                process.join(_GLANCE if said else None)
                code = process.exitcode
                if said:
                    _show(said)
                if code is not None:  # it has ended
                    return code
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(said: BinaryIO) -> None:
    """What has come since, on standard errors."""
    sys.stderr.flush()
    with open(2, "wb", closefd=False) as errors:
        errors.write(said.read())


def _guarded(start: Start, words: list[str], environment: Mapping[str, str], said: Path | None) -> None:
    if said is not None:
        with said.open("ab") as file:
            for output in (1, 2):
                os.dup2(file.fileno(), output)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    os.environ.update(environment)  # the server's is that of its start
    with join():
        start(words)


def _stop_with_parent() -> None:
    """SIGTERM for this process when the one that it works for is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
