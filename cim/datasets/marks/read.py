"""Any file or folder of marks, told apart by its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cim.core.errors import CimError
from cim.datasets.marks.coco import is_coco, read_coco_marks
from cim.datasets.marks.cvat import read_cvat
from cim.datasets.marks.given import Given
from cim.datasets.marks.label_studio import is_label_studio, read_label_studio
from cim.datasets.marks.labelme import is_labelme, read_labelme
from cim.datasets.marks.points_csv import read_points_csv

FORMS = "points csv (image,label,x,y), LabelMe json, Label Studio json, CVAT for images xml, COCO json"


def read_marks(path: str | Path) -> Iterator[Given]:
    """The instances that a file describes, or the LabelMe jsons of a folder.

    Raises:
        CimError: missing, none of these forms, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.json") if not file.name.startswith("."))
        if not files:
            raise CimError("no marks in this folder", path=path, expected="LabelMe json files")
        for file in files:
            content = _json(file)
            if not is_labelme(content):
                raise CimError("not LabelMe's json", path=file, fix="name a file of another form by itself")
            yield from read_labelme(file, content, file.relative_to(path).parent.as_posix())
        return
    if not path.is_file():
        raise CimError("no such file of marks", path=path, fix="set data.known to what is there")
    yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Given]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_points_csv(path)
    if suffix == ".xml":
        return read_cvat(path)
    content = _json(path) if suffix == ".json" else None
    if is_labelme(content):
        return read_labelme(path, content)
    if is_coco(content):
        return read_coco_marks(path, content)
    if is_label_studio(content):
        return read_label_studio(path, content)
    raise CimError("a file of marks of no known form", path=path, expected=FORMS)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CimError("not a json file (truncated?)", path=path, found=error) from None
    except OSError as error:
        raise CimError("cannot read", path=path, found=error.strerror or error) from None
