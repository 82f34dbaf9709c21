"""One command at a time in a folder: an advisory lock that ends with its process, however that ends.

A command and the stages that it starts are one family: all of them share the lock, and whoever else comes must have it
alone. So a stage that outlives its killed command for a moment, to save what it has, still keeps others out. The file
says who came first, for the others to read, and goes with the last of the family.

POSIX record locks: unlike those of ``flock`` they are not passed on to forked workers of a loader, and they work across
the hosts of a network file system. Closing any descriptor of the file gives them up; nothing else opens it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cim.core.errors import CimError
from cim.core.leftovers import alive, machine, sweep_run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".cim.lock"
PATIENCE = 30.0  # seconds that a dead command's stages get to end
_FAMILY = "CIM_LOCKED_FOLDERS"  # environment variable: json list of folders that this process's command has locked
_PAUSE = 0.1  # seconds
_TOLD = ("host", "machine", "since", "command")


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Nobody else's command works in ``folder`` while the block runs; stages of the same command may. What killed
    writers left there is removed.

    Of processes that torchrun started the first asks for all. Where the folder cannot be written there is nothing to
    protect, and where the file system has no locks a warning says so.

    Raises:
        CimError: another command is at work there; which one, where and since when.
    """
    folder = Path(folder).resolve()
    if str(folder) in _family() or os.environ.get("RANK", "0") != "0":
        yield
        return
    before = os.environ.get(_FAMILY)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = None
    with suppress(OSError):  # whoever wants to write there will say that it cannot be done
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(folder, alone=True)
    os.environ[_FAMILY] = json.dumps([*_family(), str(folder)])
    try:
        if handle is not None:
            sweep_run(folder)
        yield
    finally:
        if before is None:
            del os.environ[_FAMILY]
        else:
            os.environ[_FAMILY] = before
        if handle is not None:
            _release(handle, folder)
        with suppress(OSError):  # a refused command leaves no empty folders
            for path in made:
                path.rmdir()


@contextmanager
def join() -> Iterator[None]:
    """Share the locks of the command that started this process, as long as the block runs.

    Raises:
        CimError: that command is dead, and another one has the folder.
    """
    with ExitStack() as stack:
        for folder in map(Path, _family()):
            handle = None
            with suppress(OSError):
                handle = _acquire(folder, alone=False)
            if handle is not None:
                stack.callback(_release, handle, folder)
        yield


def _family() -> list[str]:
    return json.loads(os.environ.get(_FAMILY, "[]"))


def _acquire(folder: Path, alone: bool) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    if fcntl is None:
        _warn(folder, alone, "on this system")
        return None
    path, deadline, told = folder / LOCK, time.monotonic() + PATIENCE, False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                _warn(folder, alone, f"here: {error.strerror}")
                return None
            dead = holder is not None and holder["machine"] == machine() and not alive(holder["pid"])
            if time.monotonic() > deadline or (holder is not None and not dead):
                raise _refusal(folder, holder) from None
            if not told and holder is not None:
                logger.info("waiting for the last stage of a killed command to end: %s", holder["command"])
                told = True
            time.sleep(_PAUSE)
            continue
        if _is_at(handle, path):
            if alone:
                _introduce(handle)
                fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return handle
        os.close(handle)  # the one before removed the file in the meantime


def _release(handle: int, folder: Path) -> None:
    with suppress(OSError):
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails unless this is the last of the family
        if _is_at(handle, folder / LOCK):
            (folder / LOCK).unlink()
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _introduce(handle: int) -> None:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] == "__main__.py":  # python -m cim
        words[0] = "cim"
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    where = {"host": socket.gethostname(), "machine": machine()}
    text = json.dumps({"pid": os.getpid(), **where, "since": since, "command": shlex.join(words)})
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())


def _holder(handle: int) -> dict[str, Any] | None:
    """Who introduced itself; None while it is about to."""
    try:
        told = json.loads(os.read(handle, 2**16))
        return {"pid": int(told["pid"])} | {name: str(told[name]) for name in _TOLD}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _refusal(folder: Path, holder: dict[str, Any] | None) -> CimError:
    found, fix = None, "wait until it ends"
    if holder is not None:
        found = f"{holder['command']} (process {holder['pid']} on {holder['host']}, since {holder['since']})"
        fix = f"wait until it ends, or stop it (on {holder['host']}: kill {holder['pid']})"
    return CimError("another command is at work in this folder", path=folder, found=found, fix=fix)


def _warn(folder: Path, alone: bool, why: str) -> None:
    if alone:  # once for a command and all its stages
        logger.warning("no file locks %s; see to it yourself that one command at a time works in %s", why, folder)
