"""Which photo files something was made from, so that a replaced one is noticed.

Beside the manifest of a store lies a table with a row for each artefact: size and time of its photo file, and a hash of
the content. Size and time are looked at whenever a stage begins; the content is read again only where the time alone
differs, since a copied or touched photo is no other one. What has no row, as all that version 0.1 left, is taken as it
is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cim.core.errors import CimError, cannot_write
from cim.core.files import fingerprint, write_text
from cim.core.photo import check_file
from cim.datasets.base import Record
from cim.storage.store import PHOTOS, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoFile:
    """A photo file as something was made from it.

    Attributes:
        size: bytes; time: of its last change, ns; content: a hash.
        besides: what else that was made from.
    """

    size: int
    time: int
    content: str
    besides: str = ""

    @classmethod
    def of(cls, path: Path, besides: str = "") -> PhotoFile | None:
        """The file as it is now; to be asked before it is read, so that no later content passes for the one read.

        None where it cannot be read, which is told by whoever needs it.
        """
        try:
            check_file(path)  # a named pipe would never end
            state = path.stat()
            return cls(state.st_size, state.st_mtime_ns, fingerprint(path), besides)
        except (OSError, CimError):
            return None


def tags_of(record: Record) -> str:
    """What of a record, besides its photo, peaks and first labels depend on."""
    return ",".join(map(str, record.tags))


@dataclass(frozen=True)
class PhotoTable:
    """The table in a folder. Rows are added by any process; of one photo the last row counts."""

    root: Path

    def note(self, image_id: int | str, made_from: PhotoFile | None) -> None:
        """Add a row, if any, once the artefact is written: after a kill in between it is made again, or taken as it is.

        Raises:
            CimError: it cannot be written.
        """
        if made_from is not None:
            self._add({str(image_id): made_from})

    def rows(self) -> dict[str, PhotoFile]:
        """By image id as text; a line that a kill cut short says nothing.

        Raises:
            CimError: the table cannot be read.
        """
        found = {}
        try:
            with open(self.root / PHOTOS, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        image_id, size, time, content, besides = json.loads(line)
                    except (ValueError, TypeError):
                        continue
                    found[str(image_id)] = PhotoFile(size, time, content, besides)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CimError("cannot read", path=self.root / PHOTOS, found=error.strerror or error) from error
        return found

    def copy(self, other: Path) -> None:
        """Take the rows of another folder's table instead of those here.

        Raises:
            CimError: it cannot be read or written.
        """
        self.begin(PhotoTable(other).rows())

    def begin(self, rows: dict[str, PhotoFile]) -> None:
        """Rows instead of those that are there.

        Raises:
            CimError: it cannot be written.
        """
        write_text(self.root / PHOTOS, _lines(rows))

    def replaced(
        self, records: Iterable[Record], besides: Callable[[Record], str] | None = None, renew: bool = False
    ) -> list[Record]:
        """Those whose file, or what ``besides`` says of them, is another one than before.

        Args:
            renew: note the new times of files with the same content, so that they are not read again.

        Raises:
            CimError: the table cannot be read or, to ``renew``, not written.
        """
        rows, found, same = self.rows(), [], {}
        for record in records if rows else ():
            row = rows.get(str(record.image_id))
            if row is None:
                continue
            try:
                state = record.path.stat()
                other = state.st_size != row.size or (besides is not None and besides(record) != row.besides)
                if not other and state.st_mtime_ns != row.time:
                    other = fingerprint(record.path) != row.content
            except OSError:  # told by whoever reads it
                continue
            if other:
                found.append(record)
            elif state.st_mtime_ns != row.time:
                same[str(record.image_id)] = replace(row, time=state.st_mtime_ns)
        if renew and same:
            self._add(same)
        return found

    def _add(self, rows: dict[str, PhotoFile]) -> None:
        try:
            with open(self.root / PHOTOS, "ab", buffering=0) as file:  # one write, whole beside those of others
                file.write(_lines(rows).encode())
        except OSError as error:
            raise cannot_write(self.root / PHOTOS, error) from error


def _lines(rows: dict[str, PhotoFile]) -> str:
    """The break comes first: it ends what a kill cut short."""
    listed = ([image_id, row.size, row.time, row.content, row.besides] for image_id, row in rows.items())
    return "".join(f"\n{json.dumps(line)}" for line in listed)


def drop_replaced(store: Store, records: Iterable[Record], besides: Callable[[Record], str] | None = None) -> int:
    """Remove the artefacts of replaced photos, so that the stage that begins makes them again; how many.

    Raises:
        CimError: the store cannot be read or written.
    """
    dropped = [r for r in PhotoTable(store.root).replaced(records, besides, renew=True) if store.has(r.image_id)]
    for record in dropped:
        store.remove(record.image_id)
    if dropped:
        logger.info("%s made again: %s", store.kind, _told(dropped, _changed(besides)))
    return len(dropped)


def fresh(root: Path, records: Iterable[Record], besides: Callable[[Record], str] | None = None) -> bool:
    """Whether what lies in a folder was made from the photos that are there now.

    Raises:
        CimError: the table cannot be read.
    """
    return not PhotoTable(root).replaced(records, besides)


def refuse_replaced(
    store: Store, records: Iterable[Record], fix: str, besides: Callable[[Record], str] | None = None
) -> None:
    """Nothing is to be made from artefacts of photos that were replaced since.

    Raises:
        CimError: there are some; ``fix`` is the command that makes them again.
    """
    replaced = [r for r in PhotoTable(store.root).replaced(records, besides) if store.has(r.image_id)]
    if replaced:
        found = _told(replaced, _changed(besides))
        raise CimError(f"{store.kind} of photos as they were before", path=store.root, found=found, fix=fix)


def remember_photos(run_dir: Path, proposals: Path, records: Iterable[Record] = ()) -> None:
    """Note which photos a training sees, as far as the proposals know them.

    Args:
        records: looked at where there are no proposals yet.

    Raises:
        CimError: it cannot be written.
    """
    if (proposals / PHOTOS).is_file():
        PhotoTable(run_dir).copy(proposals)
    elif not (run_dir / PHOTOS).is_file():
        seen = ((str(record.image_id), PhotoFile.of(record.path)) for record in records)
        PhotoTable(run_dir).begin({image_id: photo for image_id, photo in seen if photo is not None})


def tell_replaced(run_dir: Path, records: Iterable[Record], what: str, fix: str) -> None:
    """Warn of a finished network that has seen photos which were replaced since.

    Raises:
        CimError: the table cannot be read or written.
    """
    if replaced := PhotoTable(run_dir).replaced(records, renew=True):
        logger.warning("%s is kept, trained before this: %s; to train it anew: %s", what, _told(replaced), fix)


def _changed(besides: object) -> str:
    return "replaced" if besides is None else "replaced or tagged anew"


def _told(records: Sequence[Record], changed: str = "replaced") -> str:
    one = f"photo {changed}, {records[0].path.name}"
    return one if len(records) == 1 else f"{len(records)} photos {changed}, e.g. {records[0].path.name}"
