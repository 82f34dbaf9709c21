"""Where a report comes from, and its sections of numbers: tables, classes, diagnosis, precision and recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.evaluation.diagnosis import DETECTION_KINDS, TRUTH_KINDS
from cim.evaluation.metrics import VOC_IOUS, precision_curves
from cim.evaluation.metrics_file import FATES, columns_of, fates_table, load_rows
from cim.labels.worth import Ranking
from cim.pictures.charts import Line, line_chart
from cim.pictures.photo_set import ImageId, PhotoSet


@dataclass(frozen=True)
class Source:
    """Where a run's report is made from.

    Attributes:
        run: the run folder (``work_dir``).
        photo_set: photos and annotations of the evaluated split; None when unknown.
        results: its COCO result file.
        train_photo_set: photos of the training split, for pseudo labels; None when unknown.
        config: resolved settings, as text; None when unknown.
        title: heading.
        missing: why the photo_set is unknown.
        ranking: of the training photos by what is doubtful in them; None when they are unknown.
    """

    run: Path
    photo_set: PhotoSet | None = None
    results: Path | None = None
    train_photo_set: Callable[[], PhotoSet] | None = None
    config: str | None = None
    title: str = "Report"
    missing: str = "pass --annotations and --images"
    ranking: Callable[[], Ranking] | None = None

    @cached_property
    def found(self) -> dict[ImageId, list[dict[str, Any]]]:
        """Checked detections by image."""
        if self.photo_set is None or not self.photo_set.annotated:
            raise Absent("no annotated masks of this split", self.missing)
        if self.results is None or not self.results.is_file():
            raise Absent("no detections yet", "cim score CONFIG")
        return self.photo_set.results(self.results)


class Absent(Exception):
    """A section has nothing to show: why, and the command that changes it."""

    def __init__(self, why: str, command: str) -> None:
        super().__init__(why)
        self.why, self.command = why, command


def _rows(source: Source) -> dict[str, dict[str, Any]]:
    if not (source.run / "metrics.json").is_file():
        raise Absent("no metrics yet", "cim evaluate CONFIG")
    return load_rows(source.run)


def summary(source: Source) -> dict[str, Any]:
    """Tables, headline and counts from metrics.json."""
    rows = _rows(source)
    tables = [_table("All photos", rows)]
    multi = {name: row["subset_multi"] for name, row in rows.items() if row.get("subset_multi")}
    if multi:
        tables.append(_table("Photos with two or more instances", multi))
    fates = fates_table(rows)
    if fates:
        tables.append(_fates(fates))
    main = _main_row(rows)
    columns = columns_of([rows[main]])
    middle = next((c for c in ("mAP@0.50", "AP50", *columns) if c in rows[main]), None)
    headline = None if middle is None else (middle, rows[main][middle])
    counts = {key: rows[main][key] for key in ("images", "instances", "detections") if key in rows[main]}
    empty = rows[main].get("classes_without_ground_truth") or []
    return {"tables": tables, "main": main, "headline": headline, "counts": counts, "empty": empty}


def _table(caption: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Cells with one digit; the best of a column (ceilings aside) is marked."""
    columns = columns_of(list(rows.values()))
    best = {}
    for column in columns:
        values = [row[column] for name, row in rows.items() if column in row and not _is_ceiling(name)]
        best[column] = max(values, default=None)
    lines = [
        (name, _is_ceiling(name), [_cell(row.get(c), best[c], _is_ceiling(name)) for c in columns])
        for name, row in rows.items()
    ]
    return {"caption": f"{caption}. Percent, more is better", "columns": columns, "lines": lines}


def _fates(table: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What became of the instances; the most found and the least of everything else are marked."""
    columns = list(dict.fromkeys(column for values in table.values() for column in values))
    best = {}
    for column in columns:
        values = [row[column] for name, row in table.items() if column in row and not _is_ceiling(name)]
        best[column] = (max if column.endswith("found") else min)(values, default=None)
    lines = [
        (name, _is_ceiling(name), [_cell(row.get(c), best[c], _is_ceiling(name)) for c in columns])
        for name, row in table.items()
    ]
    caption = "What became of the annotated instances (beside: those beside others of their class). Percent of them"
    return {"caption": caption, "columns": columns, "lines": lines}


def _fates_by_class(row: dict[str, Any]) -> list[tuple[str, int | None, list[str]]]:
    """Class, instances and their fates as text, then the same of the instances beside others of their class."""
    beside = row.get("subset_beside", {}).get("per_class", {})
    lines: list[tuple[str, int | None, list[str]]] = []
    for name, values in row.get("per_class", {}).items():
        if "found" in values:
            more = beside.get(name, {})
            cells = [f"{part[fate]:.0f}" if fate in part else "" for part in (values, more) for fate in FATES]
            lines.append((name, values.get("instances"), cells))
    return lines


def _cell(value: float | None, best: float | None, ceiling: bool) -> tuple[str, bool]:
    return ("", False) if value is None else (f"{value:.1f}", value == best and not ceiling)


def _is_ceiling(name: str) -> bool:
    return name.lower().startswith("oracle")


def _main_row(rows: dict[str, dict[str, Any]]) -> str:
    """CIM's row, or the first."""
    if not rows:
        raise Absent("no metrics yet", "cim evaluate CONFIG")
    return next((name for name in rows if name.startswith("CIM")), next(iter(rows)))


def classes(source: Source) -> dict[str, Any]:
    """Average precision per class, best first, of the main row and of one other."""
    rows = _rows(source)
    main = _main_row(rows)
    per_class: dict[str, dict[str, Any]] = rows[main].get("per_class", {})
    keys = {key for values in per_class.values() for key in values}
    metric = next((key for key in ("AP@0.50", "AP", "box_AP") if key in keys), None)
    if metric is None:
        raise Absent("no values per class", "cim evaluate CONFIG")
    other = next((name for name in rows if name != main and not _is_ceiling(name)), None)
    beside = rows[other].get("per_class", {}) if other else {}
    bars = [
        (name, values.get(metric), beside.get(name, {}).get(metric), values.get("instances", values.get("box_objects")))
        for name, values in per_class.items()
    ]
    bars.sort(key=lambda bar: -1.0 if bar[1] is None else bar[1], reverse=True)
    return {
        "main": main,
        "other": other,
        "metric": metric,
        "bars": bars,
        "fates": _fates_by_class(rows[main]),
        "fate_columns": [*FATES, *(f"beside: {fate}" for fate in FATES)],
    }


def diagnosis(source: Source) -> dict[str, Any]:
    """Shares of every kind of detection and instance from diagnosis.json."""
    path = source.run / "diagnosis.json"
    if not path.is_file():
        raise Absent("no diagnosis yet", "cim evaluate CONFIG")
    content = read_json(path)
    try:
        rows: dict[str, dict[str, Any]] = content["rows"]
        main = _main_row(rows)
        parts = [
            ("Of what was detected", [(n, _shares(r["detections"], DETECTION_KINDS)) for n, r in rows.items()]),
            ("Of what is there", [(n, _shares(r["ground_truth"], TRUTH_KINDS)) for n, r in rows.items()]),
        ]
        strata = [
            (title, [(name, _shares(part["ground_truth"], TRUTH_KINDS)) for name, part in rows[main][key].items()])
            for key, title in (("by_size", "By size of the object"), ("by_instances", "By instances in the photo"))
            if key in rows[main]
        ]
        point = rows[main]["operating_point"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CimError(
            "not a diagnosis file", path=path, found=repr(error), fix="delete it and evaluate again"
        ) from None
    return {"main": main, "parts": parts, "strata": strata, "point": point, "kinds": (*DETECTION_KINDS, "missed")}


def _shares(summary: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    shares = {kind: float(summary["shares"][kind]) for kind in kinds}
    return {"count": summary["count"], "shares": shares}


def curves(source: Source) -> dict[str, Any]:
    """Precision-recall charts: the mean at four IoUs, and every class at 0.5."""
    results = [mark for marks in source.found.values() for mark in marks]
    assert source.photo_set is not None  # found raises otherwise
    precision = precision_curves(source.photo_set.truth, results)  # [T, 101, K]
    recall = np.linspace(0, 1, precision.shape[1])
    present = np.asarray((precision >= 0).all((0, 1)))
    if not present.any():
        raise Absent("no annotated instance", source.missing)
    mean = precision[:, :, present].mean(2)
    lines = [Line(f"IoU {iou:.2f}", recall, row, k) for k, (iou, row) in enumerate(zip(VOC_IOUS, mean, strict=True))]
    half = VOC_IOUS.index(0.5)
    small = [
        (name, line_chart([Line("", recall, precision[half, :, k])], "recall", "precision", (0, 1), (0, 1.02)))
        for k, name in enumerate(source.photo_set.truth.categories.values())
        if present[k]
    ]
    return {"mean": line_chart(lines, "recall", "precision", (0, 1), (0, 1.02)), "per_class": small}
