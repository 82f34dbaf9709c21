"""The two forms in which a store keeps its entries: a file each, or all of them in one.

The one file is an SQLite database, which Python brings along: a write is a transaction, so that a kill loses the entry
being written and no other, and processes take turns by themselves. Every call opens it anew, in a fraction of a
millisecond, which leaves nothing to be shared with threads, forked workers or pickles.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cim.core.errors import CimError, cannot_write
from cim.core.files import atomic

PACK = "pack.sqlite"
ENDINGS = (".npz", ".npy")
_PATIENCE = 120.0  # seconds that one process lets others write before it
_TABLE = "CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, content BLOB NOT NULL)"
_PUT = "INSERT OR REPLACE INTO entries VALUES (?, ?)"


@dataclass(frozen=True)
class Folder:
    """A file for each entry; other files may lie beside them."""

    root: Path

    def path(self, name: str) -> Path:
        """Where an entry lies."""
        return self.root / name

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def names(self) -> list[str]:
        """Of all entries, in order, from one look at the folder."""
        return sorted(entry.name for entry in self._listed())

    def newest(self) -> int:
        """When the last entry was written, in ns; 0 without any."""
        return max((entry.stat().st_mtime_ns for entry in self._listed()), default=0)

    def read(self, name: str) -> bytes | None:
        """Content of an entry; None where there is none.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Raises:
        CimError: the folder cannot be written, or the disk is full.
        """
        with atomic(self.path(name)) as temporary:
            temporary.write_bytes(content)

    def remove(self, name: str) -> None:
        """Raises:
        CimError: the folder cannot be written.
        """
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise CimError("cannot remove", path=self.path(name), found=error.strerror or error) from error

    def _listed(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.root) as entries:
            yield from (e for e in entries if e.name.endswith(ENDINGS) and not e.name.startswith("."))


@dataclass(frozen=True)
class Pack:
    """All entries in one file."""

    file: Path

    @classmethod
    def create(cls, file: Path) -> Pack:
        """An empty one; one that is there stays as it is.

        Raises:
            CimError: it cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(file, error) from error
        with _open(file, "rwc") as database:
            database.execute(_TABLE)
        return cls(file)

    def path(self, name: str) -> Path:
        """What messages call the place of an entry."""
        return self.file / name

    def has(self, name: str) -> bool:
        with _open(self.file) as database:
            return database.execute("SELECT 1 FROM entries WHERE name = ?", (name,)).fetchone() is not None

    def names(self) -> list[str]:
        """Of all entries, in order.

        Raises:
            CimError: damaged, or a name that no store gives: packs come from anywhere, and names become files.
        """
        with _open(self.file) as database:  # the index answers, contents are not read
            names = [name for (name,) in database.execute("SELECT name FROM entries ORDER BY name")]
        if foreign := [name for name in names if not _is_ours(name)]:
            raise CimError("not a pack of ours", path=self.file, expected="names of files", found=repr(foreign[0]))
        return names

    def newest(self) -> int:
        """When the last entry was written, in ns."""
        return self.file.stat().st_mtime_ns

    def read(self, name: str) -> bytes | None:
        """Content of an entry; None where there is none.

        Raises:
            CimError: damaged, or it cannot be read.
        """
        with _open(self.file) as database:
            row = database.execute("SELECT content FROM entries WHERE name = ?", (name,)).fetchone()
        if row is not None and not isinstance(row[0], bytes):
            raise CimError("damaged entry", path=self.path(name), expected="bytes", found=type(row[0]).__name__)
        return None if row is None else row[0]

    def write(self, name: str, content: bytes) -> None:
        """Raises:
        CimError: it cannot be written, the disk is full, or it is damaged.
        """
        self.write_all([(name, content)])

    def remove(self, name: str) -> None:
        """Raises:
        CimError: it cannot be written, or it is damaged.
        """
        with _open(self.file, writes=True) as database:
            database.execute("DELETE FROM entries WHERE name = ?", (name,))

    def write_all(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """All of them or, on an error or a kill, none."""
        with _open(self.file, writes=True) as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany(_PUT, entries)
            database.execute("COMMIT")

    def fill(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """:meth:`write_all` into a new file that nobody else knows: quicker, and worthless if it is interrupted."""
        with _open(self.file, writes=True) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(_TABLE)
            database.execute("BEGIN")
            database.executemany(_PUT, entries)
            database.execute("COMMIT")
        with open(self.file, "rb+") as file:
            os.fsync(file.fileno())

    def settle(self) -> None:
        """Undo what a killed writer left half done, so that the file alone is all there is.

        Raises:
            CimError: another process writes, or it is damaged.
        """
        with _open(self.file, writes=True) as database:
            database.execute("BEGIN EXCLUSIVE")
            database.execute("SELECT count(*) FROM entries").fetchone()
            database.execute("ROLLBACK")


def entries_at(root: Path) -> Folder | Pack:
    """The entries of a store, in the form that they have now."""
    file = root / PACK
    return Pack(file) if file.is_file() else Folder(root)


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and name.endswith(ENDINGS) and name[0] != "." and not {"/", "\\", "\0"} & set(name)


def _as_os_error(error: sqlite3.OperationalError) -> OSError:
    """With the number that the system gives where a file lies on such a disk."""
    number = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS}.get(getattr(error, "sqlite_errorname", ""))
    return OSError(str(error)) if number is None else OSError(number, str(error))


@contextmanager
def _open(file: Path, mode: str = "rw", writes: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that makes no transaction unasked. One that only reads also undoes what a killed writer left, where
    the file may be written."""
    try:
        address = f"{file.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(address, timeout=_PATIENCE, isolation_level=None, uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")  # a pack may come from anywhere
            yield database
    except sqlite3.Error as error:
        if (writes or mode == "rwc") and isinstance(error, sqlite3.OperationalError):
            raise cannot_write(file, _as_os_error(error)) from error
        fix = "put a copy in its place, or make the store again (--overwrite)"
        raise CimError("cannot read the pack", path=file, found=error, fix=fix) from error
