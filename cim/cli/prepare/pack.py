"""Stores as one file each, for file systems that suffer from many small ones; and back."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cim.core.errors import CimError
from cim.core.locks import LOCK, hold
from cim.storage.packing import pack, unpack
from cim.storage.store import Store

_DEPTH = 3  # folders that a store lies below its run's
_OF_A_RUN = ("config.yaml", "prm", "train", LOCK)


def main(args: argparse.Namespace) -> None:
    for root in args.stores:
        if Store.kind_at(root) is None:
            raise CimError(
                "no store here", path=root, expected="a folder with a manifest.json, such as RUN/first_labels"
            )
    for root in args.stores:
        with ExitStack() as stack:
            for folder in _locked(root.resolve()):
                stack.enter_context(hold(folder))
            count = unpack(root) if args.undo else pack(root)
        print(f"{count} entries, {'a file each' if args.undo else 'one file'}: {root}")


def _locked(root: Path) -> Iterator[Path]:
    """The folders in which a command may write that uses the store: those of runs around it, and its own."""
    yield from (folder for folder in root.parents[:_DEPTH] if any((folder / name).exists() for name in _OF_A_RUN))
    yield root
