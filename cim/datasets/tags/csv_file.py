"""tags.csv: a header ``image,labels`` and one line per photo; labels part at spaces, semicolons and quoted commas.

A label may say how many there are: ``dog*3``; or that there are none: ``!dog`` (``dog*0``).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cim.core.errors import CimError
from cim.datasets.known import MOST

COLUMNS = ("image", "labels")
_DELIMITERS = (",", ";", "\t")  # of spreadsheets, too, where the comma is for decimals


def csv_rows(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line number, image, labels) of every row that is not blank; labels are sorted and each is named once.

    An empty cell means that the photo shows none of the classes: a negative.

    Raises:
        CimError: not a csv, a missing column, more values than columns.
    """
    for line, (name, text) in table_rows(path, COLUMNS, 'put several labels in quotes: a.jpg,"cat,dog"'):
        labels = tuple(sorted(set(filter(None, re.split(r"[\s;,]+", text)))))
        if text and not labels:
            where, fix = f"{path}, line {line}", "give it a label, or none at all: a photo of no class"
            raise CimError("photo without a label", path=where, found=name, fix=fix)
        yield line, name, labels


def table_rows(path: Path, columns: Sequence[str], fix: str | None = None) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line number, the wanted columns' values without spaces around them) of every row that is not blank.

    UTF-8 with or without a mark at its start, lines of any system, parted by commas, semicolons or tabs: what
    spreadsheets write.

    Args:
        fix: of a row with too many values.

    Raises:
        CimError: not a csv, a missing column, more values than columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=_delimiter(file), strict=True)
            header = [column.strip() for column in rows.fieldnames or ()]
            rows.fieldnames = header
            for column in columns:
                if column not in header:
                    raise CimError(
                        f"no column '{column}'", path=path, expected=",".join(columns), found=",".join(header)
                    )
            for row in rows:
                if row.get(None):
                    raise CimError("more values than columns", path=f"{path}, line {rows.line_num}", fix=fix)
                if any("\n" in (row[column] or "") for column in columns):
                    raise CimError("a quote that is not closed", path=f"{path}, line {rows.line_num} or before")
                yield rows.line_num, tuple((row[column] or "").strip() for column in columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CimError("not a csv file in UTF-8", path=path, found=error) from None


def _delimiter(file: TextIO) -> str:
    """What parts the header, which stays unread; a header of one column has none."""
    header = file.readline()
    file.seek(0)
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def counted(labels: Sequence[str], where: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Labels without their numbers, sorted, each once; and the numbers: ``dog*3 cat !cow`` has ("cat", "dog"),
    {"dog": 3, "cow": 0}.

    Raises:
        CimError: no number after the ``*``, one out of reason, two different ones, or a class that is there and not.
    """
    names: set[str] = set()
    counts: dict[str, int] = {}
    for label in labels:
        name, star, number = label.partition("*")
        if name.startswith("!"):
            if star or name == "!":
                raise CimError("not a label", path=where, expected="!label of a class that is not there", found=label)
            name, star, number = name[1:], "*", "0"
        if not star:
            names.add(name)
            continue
        if not name or not re.fullmatch(r"[0-9]+", number):
            raise CimError("not a count", path=where, expected="label*number, e.g. dog*3", found=label)
        if len(number) > 9 or int(number) > MOST:
            raise CimError("a count beyond reason", path=where, expected=f"0 to {MOST}", found=label[:40])
        if counts.setdefault(name, int(number)) != int(number):
            raise CimError("two counts of one class", path=where, found=f"{name}*{counts[name]} and {label}")
    absent = {name for name, count in counts.items() if not count}
    if both := sorted(names & absent):
        raise CimError("a class that is there and not there", path=where, found=f"{both[0]} and !{both[0]}")
    return tuple(sorted(names | (counts.keys() - absent))), counts
