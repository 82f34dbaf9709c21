"""The one error that users see: what is wrong, where, and what to do about it.

And what a machine runs out of, told by it: room on a disk, leave to write there, memory.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_OF_ALL_FILES = (*_NO_ROOM, *_NOT_WRITABLE, errno.EIO)
_OF_MEMORY = (  # what PyTorch, Linux, C++ and Python itself say, and the loader of libraries
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "bad_alloc",
    "alloc_failed",
    "can't start new thread",
    "failed to map segment",
)
_CV_NO_MEMORY = -4  # cv2.Error.StsNoMem
_LONGEST = 200  # characters of what a library says


class CimError(Exception):
    """Bad input or a missing artefact, told in one line.

    Args:
        message: what is wrong, without a full stop.
        path: the file or folder concerned.
        expected: what should have been there.
        found: what was there instead.
        fix: the command or step that mends it.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.message, self.path = message, path
        self.expected, self.found, self.fix = expected, found, fix
        parts = [message if path is None else f"{message}: {path}"]
        if expected is not None:
            parts.append(f"expected {expected}")
        if found is not None:
            parts.append(f"found {found}")
        if fix is not None:
            parts.append(f"to fix: {fix}")
        super().__init__(" ".join(line.strip() for line in "; ".join(parts).splitlines()))

    def __reduce__(self) -> tuple[Callable[..., CimError], tuple[Any, ...]]:
        # keyword arguments survive a trip through a worker process
        state = (type(self), self.message, self.path, self.expected, self.found, self.fix)
        return _rebuild, state


def _rebuild(
    kind: type[CimError], message: str, path: str | Path | None, expected: object, found: object, fix: str | None
) -> CimError:
    return kind(message, path=path, expected=expected, found=found, fix=fix)


class StorageError(CimError):
    """The disk takes nothing more: whatever else would be written there fails just so, and nobody need try."""


def cannot_write(path: str | Path, error: OSError, elsewhere: str = "choose another output folder") -> CimError:
    """What to raise for an error met in writing ``path``; a :class:`StorageError` where it is the disk's.

    Args:
        elsewhere: how to write to another place.
    """
    found: object = error.strerror or error
    fix = f"free space, then the same command continues; or {elsewhere}"
    if error.errno in _NO_ROOM:
        found = f"{found}{_room(Path(path))}"
    elif error.errno in _NOT_WRITABLE:
        fix = f"make it writable, then the same command continues; or {elsewhere}"
    kind = StorageError if error.errno in _OF_ALL_FILES else CimError
    return kind("cannot write", path=path, found=found, fix=fix)


def disk_error(error: OSError) -> CimError | None:
    """:func:`cannot_write` for an error that nobody made one of, if nothing but a disk's state can have caused it."""
    if error.errno not in (*_NO_ROOM, errno.EROFS):
        return None
    return cannot_write(error.filename or "a file", error)


def memory_error(error: BaseException, where: str, fix: str) -> CimError | None:
    """One line for an error that means too little memory, Python's or a library's; None for any other.

    Args:
        where: what was at work.
        fix: what to lower.
    """
    text = str(error)
    short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if isinstance(error, (RuntimeError, ImportError, OSError)):
        short = short or any(words in text.lower() for words in _OF_MEMORY)
    if type(error).__module__ == "cv2":
        short = getattr(error, "code", None) == _CV_NO_MEMORY
    if not short:
        return None
    lines = text.strip().splitlines() or [type(error).__name__]
    told = lines[-1] if "Original Traceback" in text else lines[0]  # of a loader worker: its own words come last
    return CimError(f"not enough memory for {where}", found=told[:_LONGEST], fix=fix)


def _room(path: Path) -> str:
    """What is left where ``path`` was to go."""
    for folder in path.absolute().parents:
        try:
            return f" ({shutil.disk_usage(folder).free / 2**20:,.1f} MB free in {folder})"
        except OSError:  # not there yet
            continue
    return ""
