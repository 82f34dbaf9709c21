"""metrics.json: named rows of numbers (CIM, WSDDN, oracle, ...) of one run, merged as they are computed.

Format: ``{"rows": {name: {"mAP@0.25": percent, ..., "per_class": {...}, "subset_multi": {...}, "CorLoc": percent}},
"settings": {name: how the row was made}}``. ``subset_multi`` is the same metric on the pictures that show two or more
instances; there a mean is over the classes that occur, since a small subset easily lacks some. COCO rows have
``AP, AP50, AP75, APS, APM, APL`` instead of the mAPs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.evaluation.coco_results import GroundTruth
from cim.evaluation.metrics import Backend, corloc, evaluate_coco, evaluate_voc

VOC_COLUMNS = ("mAP@0.25", "mAP@0.50", "mAP@0.70", "mAP@0.75")
COCO_COLUMNS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
Metric = Literal["voc", "coco"]


def metric_row(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    metric: Metric,
    *,
    with_corloc: bool = False,
    backend: Backend = "faster",
) -> dict[str, Any]:
    """All numbers of one result list; see the module's format."""
    evaluate = evaluate_voc if metric == "voc" else evaluate_coco
    row = evaluate(truth, results, backend)
    several = truth.images_with(2)
    multi = evaluate(truth, results, backend, image_ids=several) if several else {"images": 0}
    row["subset_multi"] = {name: value for name, value in multi.items() if name != "per_class"}
    for name in [name for name in multi if name.startswith("mAP_present")]:
        row["subset_multi"][name.replace("mAP_present", "mAP")] = row["subset_multi"].pop(name)
    if with_corloc:
        located = corloc(truth, results)
        row["CorLoc"] = located["CorLoc"]
        for name, value in located["per_class"].items():
            row["per_class"][name]["CorLoc"] = value
    return row


def load_rows(path: str | Path) -> dict[str, dict[str, Any]]:
    """Rows of a metrics.json, or of the one in a run folder.

    Raises:
        CimError: missing, damaged or another kind of file.
    """
    path = Path(path) / "metrics.json" if Path(path).is_dir() else Path(path)
    content = read_json(path, fix="cim evaluate CONFIG")
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise CimError("not a metrics file", path=path, expected='{"rows": {name: {...}}}')
    return rows


def merge_entries(path: str | Path, sections: dict[str, dict[str, Any]]) -> None:
    """Update the named entries of every section of a json file ({section: {name: entry}}); others stay.

    Raises:
        CimError: the file that is there is damaged.
    """
    path = Path(path)
    content = read_json(path, fix="delete it") if path.is_file() else {}
    if not isinstance(content, dict):
        raise CimError("not a file of this tool", path=path, expected="an object", fix="delete it")
    for section, entries in sections.items():
        content[section] = {**content.get(section, {}), **entries}
    write_json(path, content, indent=1)


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The standard columns that at least one row has, in order."""
    wanted = (*VOC_COLUMNS, *COCO_COLUMNS, "CorLoc")
    return [name for name in wanted if any(name in row for row in rows)]


def markdown(rows: dict[str, dict[str, Any]], subset: bool = False) -> str:
    """A table, one row each, values with one digit; ``subset``: of the pictures with two or more instances."""
    shown = {name: row.get("subset_multi", {}) if subset else row for name, row in rows.items()}
    columns = columns_of(list(shown.values()))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in shown.items():
        cells = [f"{row[column]:.1f}" if column in row else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
