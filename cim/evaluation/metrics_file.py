"""metrics.json: named rows of numbers (CIM, WSDDN, oracle, ...) of one run, merged as they are computed.

Format: ``{"rows": {name: {"mAP@0.25": percent, ..., "per_class": {...}, "subset_multi": {...}, "CorLoc": percent}},
"settings": {name: how the row was made}}``. ``found``, ``merged``, ``partial`` and ``missed`` say what became of the
annotated instances (``cim.evaluation.diagnosis``), and ``subset_beside`` the same of those beside others of their
class. What begins with ``box_`` is judged on boxes (``cim.evaluation.boxes``); a row has nothing else where the
annotations have no masks. ``subset_multi`` is the same metric on the pictures that show two or more
instances; there a mean is over the classes that occur, since a small subset easily lacks some. COCO rows have
``AP, AP50, AP75, APS, APM, APL`` instead of the mAPs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cim.core.errors import CimError
from cim.core.files import read_json, write_json
from cim.evaluation.box_files import boxes_of_masks, guesses_of
from cim.evaluation.boxes import BoxRules, box_row
from cim.evaluation.coco_results import GroundTruth
from cim.evaluation.diagnosis import HEADLINE_FATES, add_fates, fates_of_split
from cim.evaluation.metrics import Backend, corloc, evaluate_coco, evaluate_voc

VOC_COLUMNS = ("mAP@0.25", "mAP@0.50", "mAP@0.70", "mAP@0.75")
BOX_COLUMNS = ("box_mAP", "box_CorLoc")
COCO_COLUMNS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
FATES = tuple(HEADLINE_FATES)
Metric = Literal["voc", "coco"]


def metric_row(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    metric: Metric,
    *,
    with_corloc: bool = False,
    backend: Backend = "faster",
    score_threshold: float | None = None,
    rules: BoxRules | None = None,
) -> dict[str, Any]:
    """All numbers of one checked result list; see the module's format.

    Args:
        metric: of the masks.
        with_corloc: also CorLoc of the masks; only of interest on training photos.
        score_threshold: judge the fate of instances under all detections above it (``diagnose``).
        rules: of the boxes; None: those of VOC 2007.
    """
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
    add_fates(row, truth, fates_of_split(truth, results, score_threshold=score_threshold))
    objects = boxes_of_masks(truth)
    guesses = guesses_of(results, objects, truth.categories, "results")
    add_boxes(row, box_row(objects, guesses, rules, score_threshold))
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


def path_from(path: Path, folder: Path) -> str:
    """A path inside ``folder`` as seen from there, so that the folder can be moved; another one in full."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def add_boxes(row: dict[str, Any], boxes: dict[str, Any]) -> None:
    """Write what was judged on boxes (``box_row``) into a row; values per class join those that are there."""
    row |= {key: value for key, value in boxes.items() if key != "per_class"}
    for name, values in boxes["per_class"].items():
        row.setdefault("per_class", {}).setdefault(name, {}).update(values)


def fates_table(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What became of the instances, by column and then by row of the metrics file, in percent; rows without are left
    out. Masks where the row has them, else boxes; ``beside ...``: of the instances beside others of their class.
    """
    table: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        masks = "found" in row
        values = {fate: row.get(fate if masks else f"box_{fate}") for fate in FATES}
        beside = row.get("subset_beside" if masks else "box_beside", {})
        values |= {f"beside: {fate}": beside.get(fate) for fate in FATES}
        known = {column: value for column, value in values.items() if value is not None}
        if known:
            table[name if masks else f"{name} (boxes)"] = known
    return table


def fates_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """:func:`fates_table` as Markdown; empty when no row has any."""
    table = fates_table(rows)
    columns = [c for c in (*FATES, *(f"beside: {f}" for f in FATES)) if any(c in values for values in table.values())]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[c]:.1f}" if c in values else "" for c in columns) + " |")
    return "\n".join(lines) if table else ""


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The standard columns that at least one row has, in order."""
    wanted = (*VOC_COLUMNS, *COCO_COLUMNS, "CorLoc", *BOX_COLUMNS)
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
