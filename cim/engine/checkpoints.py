"""Training state on disk: written atomically, the last good ones kept, damaged ones passed over."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.leftovers import sweep

logger = logging.getLogger(__name__)

FORMAT = 1
_SINCE = ("tags", "trunk_file")  # what version 0.1 did not write down, and is not compared where it is missing
_SINCE_INSTEAD = {"photos_and_tags": "tags"}  # what is not compared where the other is there
FRESH_RUN = "choose another --set work_dir=... (cim run: --output), or delete this folder to start over"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain containers; keys "meta" and "model") atomically.

    Raises:
        CimError: the folder cannot be written or the disk is full; an older file of that name is untouched.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:  # given a name, torch would not say why it failed
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # met in finishing the file, after what the disk said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """A file written by :func:`save_checkpoint`, on the CPU; nothing in it is executed.

    Args:
        path: final.pth or a file of checkpoints/.
        lazy: map the file instead of reading it, to look at ``meta`` only.

    Returns:
        dict with "meta" (kind, classes, config, ...) and "model" (state dict); checkpoints also hold the
        training state.

    Raises:
        CimError: missing, damaged, or made by another program.
    """
    path = Path(path)
    if not path.is_file():
        raise CimError("no checkpoint here", path=path)
    try:
        if not lazy:
            _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # zip, pickle, runtime, end of file: all mean the same here
        raise CimError("damaged or foreign checkpoint", path=path, found=_line(error)) from error
    if not isinstance(state, dict) or not {"meta", "model"} <= state.keys():
        raise CimError("not a checkpoint of this project", path=path, expected="keys 'meta' and 'model'")
    return state


class Checkpoints:
    """The folder ``checkpoints/`` of one run: update_<number>.pth, the newest ``keep`` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(keep, 1)

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(p for p in self.folder.glob("update_*.pth") if re.fullmatch(r"update_\d+", p.stem))

    def save(self, update: int, state: dict[str, Any]) -> bool:
        """Save and drop the oldest; on failure warn and keep what is there. Whether it was saved."""
        try:
            save_checkpoint(self.folder / f"update_{update:08d}.pth", state)
        except CimError as error:
            logger.warning("checkpoint not saved, training goes on and tries again later: %s", error)
            return False
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return True

    def latest(self) -> dict[str, Any] | None:
        """The newest good checkpoint; None when there is none. Leftovers of killed saves are removed."""
        for folder in (self.folder, self.folder.parent):
            sweep(folder)
        for path in reversed(self.files()):
            try:
                return load_checkpoint(path)
            except CimError as error:
                logger.warning("%s; using the one before", error)
        return None


def check_same_run(found: dict[str, Any], expected: dict[str, Any], where: Path) -> None:
    """Refuse to continue or reuse a run that was started with other settings.

    Raises:
        CimError: naming the settings that differ.
    """
    changed = sorted(key for key in found.keys() | expected.keys() if _differs(key, found, expected))
    if changed:
        raise CimError(
            f"this run was made with other settings ({', '.join(changed)})",
            path=where,
            expected={k: expected.get(k) for k in changed},
            found={k: found.get(k) for k in changed},
            fix=FRESH_RUN,
        )


def _differs(key: str, found: dict[str, Any], expected: dict[str, Any]) -> bool:
    if key in _SINCE and key not in found:
        return False
    if _SINCE_INSTEAD.get(key) in found:
        return False
    one, other = found.get(key), expected.get(key)
    if key == "settings" and isinstance(one, dict) and isinstance(other, dict):
        return any(_differs(inner, one, other) for inner in one.keys() | other.keys())
    return one != other


def _verify(path: Path) -> None:
    """Compare every part of the file with its checksum, which torch itself does not."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"checksum of {bad} is wrong")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
