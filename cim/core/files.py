"""Writing files so that a kill, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError, cannot_write
from cim.core.leftovers import SUFFIX, prefix


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The old file stays whole until then; on any error the temporary one is removed. What a killed writer leaves, a later
    one sweeps (``cim.core.leftovers``).

    Raises:
        StorageError: the disk is full, or may not be written.
        CimError: the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(SUFFIX + path.suffix, prefix(path), path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; artefacts are shared
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Atomically; NumPy scalars and arrays become plain numbers and lists."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, default=_plain)


def read_json(path: str | Path, fix: str | None = None) -> Any:
    """Parsed json.

    Raises:
        CimError: missing or not json; ``fix`` says what makes the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise CimError("missing file", path=path, fix=fix) from None
    except (ValueError, RecursionError) as error:  # no json or UTF-8, endless digits, lists in lists in lists
        raise CimError("not a json file", path=path, found=error, fix=fix) from error
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error, fix=fix) from error


def as_json(value: Any) -> Any:
    """What :func:`read_json` gives back for a value that :func:`write_json` wrote: lists for tuples, plain numbers."""
    return json.loads(json.dumps(value, default=_plain))


def write_text(path: str | Path, text: str) -> None:
    """Atomically, UTF-8; of file names that are none, the odd bytes are spelt out."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def append(path: str | Path, content: bytes) -> None:
    """At the end of a file that this process alone writes; whole or not at all, unless the process is killed.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(content) != len(content):  # a full disk takes what fits, and says no only to the next
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(before)
            raise


def npz_content(**arrays: np.ndarray) -> bytes:
    """What :func:`write_npz` writes."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # the stubs take any name for allow_pickle
    return content.getvalue()


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Compressed NumPy archive, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(npz_content(**arrays))


def file_state(path: str | Path) -> str:
    """A file with its size and time: another text once it was written anew."""
    state = Path(path).stat()
    return f"{Path(path).resolve()} ({state.st_size} bytes, {state.st_mtime_ns})"


def fingerprint(path: str | Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not fit into json")
