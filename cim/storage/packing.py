"""A store from one form into the other: a file for each entry, or all in one.

What is to go does so only after what replaces it is whole and was compared, and one step makes the change: as long as
the pack is there, it counts. A conversion that was killed leaves the store in one form, with files of the other beside
it, which the same command, run again, puts in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.leftovers import sweep
from cim.storage.entries import PACK, Folder, Pack


def pack(root: Path) -> int:
    """All entries of the store in one file; how many there are. Needs room for both forms.

    Raises:
        CimError: the disk is full or fails; the store is as it was.
    """
    sweep(root)
    folder, file = Folder(root), root / PACK
    names = folder.names()
    if not names and not file.is_file():
        return 0
    if file.is_file():  # packed before: take up what something added since, drop what a kill left
        there = set(Pack(file).names())
        Pack(file).write_all(_contents(folder, [name for name in names if name not in there]))
    else:
        newest = folder.newest()
        with atomic(file) as temporary:
            made = Pack(temporary)
            made.fill(_contents(folder, names))
            _compare(folder, made, names)
            os.utime(temporary, ns=(newest, newest))  # what was made from the store stays younger than it
    for name in names:
        folder.path(name).unlink()
    return len(Pack(file).names())


def unpack(root: Path) -> int:
    """A file for each entry again; how many there are. Needs room for both forms.

    Raises:
        CimError: the disk is full or fails, or the pack is damaged; the store is as it was.
    """
    sweep(root)
    folder, packed = Folder(root), Pack(root / PACK)
    if not packed.file.is_file():
        return len(folder.names())
    packed.settle()
    names, newest = packed.names(), packed.newest()
    for name, content in _contents(packed, names):
        folder.write(name, content)
        os.utime(folder.path(name), ns=(newest, newest))
    _compare(packed, folder, names)
    packed.file.unlink()
    return len(names)


def _contents(source: Folder | Pack, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in tqdm(names, desc="entries", unit="entry", disable=not names):
        content = source.read(name)
        if content is None:
            raise CimError("an entry went while the store was converted", path=source.path(name), fix="run it again")
        yield name, content


def _compare(source: Folder | Pack, made: Folder | Pack, names: Sequence[str]) -> None:
    for name in tqdm(names, desc="compared", unit="entry", disable=not names):
        if source.read(name) != made.read(name):
            raise CimError("written and read back differently", path=made.path(name), fix="check the disk")
