"""Points as a csv: ``image,label,x,y``, one line per instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cim.core.errors import CimError
from cim.datasets.marks.given import Given
from cim.datasets.tags.csv_file import table_rows

COLUMNS = ("image", "label", "x", "y")


def read_points_csv(path: Path) -> Iterator[Given]:
    """One instance per row.

    Raises:
        CimError: not such a csv; a row without image, label or numbers.
    """
    for line, (name, label, *place) in table_rows(path, COLUMNS):
        where = f"{path}, line {line}"
        if not name or not label:
            raise CimError("point without image or label", path=where, expected=",".join(COLUMNS))
        try:
            x, y = (float(text.replace(",", ".")) for text in place)  # a decimal comma, from a spreadsheet
        except ValueError:
            found = ", ".join(place)[:40]
            raise CimError("not a point", path=where, expected="x and y in pixels", found=found) from None
        yield Given(where, name, label, points=((x, y),))
