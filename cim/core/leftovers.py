"""Temporary files of writers that were killed: told by their names, and removed once their writer is dead.

A temporary name says which process writes, and on which machine. Whether a process of another machine still lives
cannot be known here; what it has not touched for a day counts as left.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

SUFFIX = ".tmp"
MANIFEST = "manifest.json"  # every store has one (cim/storage/store.py)
_DEPTH = 3  # folders below a run's that something is written in
_DAY = 24 * 60 * 60  # seconds
_LONGEST = 100  # bytes of the final name that a temporary one begins with
_OURS = re.compile(r"\..+?\.(?:(?P<pid>\d+)-(?P<machine>[0-9a-f]{8})\.)?[a-z0-9_]{8}\.tmp(?:\.[^.]+)?")
"""Names of version 0.1 lack the process."""


def prefix(path: Path) -> str:
    """What the temporary name of ``path`` begins with; tempfile adds something random, and :data:`SUFFIX` follows."""
    name = os.fsencode(path.name)[:_LONGEST].decode(errors="ignore")
    return f".{name}.{os.getpid()}-{machine()}."


@cache
def machine() -> str:
    """Eight hex digits for where a process number means something: this host, or this container on it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def alive(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    if os.name == "nt":  # where signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sweep(folder: Path) -> int:
    """Remove what dead writers left directly in a folder; how many there were."""
    swept = 0
    for entry in _entries(folder):
        if entry.name.startswith(".") and (match := _OURS.fullmatch(entry.name)) and _left(entry, match):
            _remove(entry)
            swept += 1
    return swept


def sweep_run(folder: Path, depth: int = _DEPTH) -> int:
    """:func:`sweep` a folder and those in it. Stores, which may hold a file per photo, are swept when they are opened
    to be written."""
    swept = sweep(folder)
    for entry in _entries(folder) if depth else ():
        if entry.is_dir(follow_symlinks=False) and not Path(entry.path, MANIFEST).exists():
            swept += sweep_run(Path(entry.path), depth - 1)
    return swept


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _left(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    if match["pid"] is not None and match["machine"] == machine():
        return not alive(int(match["pid"]))
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    return False


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        with suppress(OSError):
            Path(entry.path).unlink()
