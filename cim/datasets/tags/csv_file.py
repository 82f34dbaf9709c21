"""tags.csv: a header ``image,labels`` and one line per photo; labels part at spaces, semicolons and quoted commas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from cim.core.errors import CimError

COLUMNS = ("image", "labels")


def csv_rows(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line number, image, labels) of every row that is not blank; labels are sorted and each is named once.

    An empty cell means that the photo shows none of the classes: a negative.

    Raises:
        CimError: not a csv, a missing column, more values than columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            header = [column.strip() for column in rows.fieldnames or ()]
            rows.fieldnames = header
            for column in COLUMNS:
                if column not in header:
                    raise CimError(
                        f"no column '{column}'", path=path, expected=",".join(COLUMNS), found=",".join(header)
                    )
            for row in rows:
                if row.get(None):
                    raise CimError(
                        "more values than columns",
                        path=f"{path}, line {rows.line_num}",
                        fix='put several labels in quotes: a.jpg,"cat,dog"',
                    )
                if any("\n" in (row[column] or "") for column in COLUMNS):
                    raise CimError("a quote that is not closed", path=f"{path}, line {rows.line_num} or before")
                text, name = (row["labels"] or "").strip(), (row["image"] or "").strip()
                labels = tuple(sorted(set(filter(None, re.split(r"[\s;,]+", text)))))
                if text and not labels:
                    where, fix = f"{path}, line {rows.line_num}", "give it a label, or none at all: a photo of no class"
                    raise CimError("photo without a label", path=where, found=name, fix=fix)
                yield rows.line_num, name, labels
    except (UnicodeDecodeError, csv.Error) as error:
        raise CimError("not a csv file in UTF-8", path=path, found=error) from None
