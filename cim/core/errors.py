"""The one error that users see: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


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
        state = (self.message, self.path, self.expected, self.found, self.fix)
        return _rebuild, state


def _rebuild(message: str, path: str | Path | None, expected: object, found: object, fix: str | None) -> CimError:
    return CimError(message, path=path, expected=expected, found=found, fix=fix)
