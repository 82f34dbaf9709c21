"""Runs side by side: the rows of their metrics.json, and how sure a difference between them is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cim.cli.judge.intervals import Entry, Method, tables
from cim.core.errors import CimError
from cim.core.files import atomic, read_json
from cim.evaluation.metrics_file import columns_of, fates_markdown, load_rows, markdown

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def main(args: argparse.Namespace) -> int:
    """Prints the tables."""
    runs = [GivenRuns.read(text) for text in args.runs]
    rows = collect([folder for run in runs for folder in run.folders])
    print(markdown(rows, subset=args.multi))
    fates = fates_markdown(rows)
    if fates:
        print(f"\nwhat became of the instances, percent (beside: those beside others of their class)\n\n{fates}")
    if args.resamples:
        for text in tables(methods(runs), args.annotations, args.resamples, args.seed):
            print(f"\n{text}")
    if args.plot:
        draw({name: row.get("subset_multi", {}) if args.multi else row for name, row in rows.items()}, args.plot)
        print(f"written: {args.plot}")
    return 0


@dataclass(frozen=True)
class GivenRuns:
    """What one argument names: a method's name, and its runs, one per seed."""

    name: str
    folders: list[Path]

    @classmethod
    def read(cls, text: str) -> GivenRuns:
        """From ``[NAME=]RUN[,RUN...]``; a folder that is really called so comes first.

        Raises:
            CimError: an empty name or run.
        """
        if Path(text).exists():
            return cls(_place(Path(text)).name, [Path(text)])
        name, _, listed = text.rpartition("=")
        parts = listed.split(",")
        if not all(parts) or text.startswith("="):
            raise CimError("bad run", expected="RUN, RUN,RUN,RUN (seeds of one method) or NAME=RUN,...", found=text)
        folders = [Path(part) for part in parts]
        return cls(name or "+".join(_place(folder).name for folder in folders), folders)


def collect(runs: list[Path]) -> dict[str, dict[str, Any]]:
    """All rows; with several runs each is named after its run, too."""
    rows: dict[str, dict[str, Any]] = {}
    names = [_place(run).name for run in runs]
    for run_path in runs:
        place = _place(run_path)
        label = place.name if names.count(place.name) == 1 else str(place)
        for name, row in load_rows(run_path).items():
            rows[name if len(runs) == 1 else f"{label}: {name}"] = row
    return rows


def methods(runs: list[GivenRuns]) -> list[list[Method]]:
    """What is compared with what: groups of methods, each with the first of its group.

    Rows of one name in several arguments; with a single argument its rows among themselves, ceilings left out.
    """
    made: list[dict[str, Method]] = []
    for run in runs:
        entries = [_entries(folder) for folder in run.folders]
        shared = [name for name in entries[0] if all(name in other for other in entries)]
        label = {name: name if len(runs) == 1 else f"{run.name}: {name}" for name in shared}
        made.append({name: Method(label[name], [one[name] for one in entries]) for name in shared})
    if len(made) == 1:
        group = [method for name, method in made[0].items() if not name.lower().startswith("oracle")]
        return [group] if len(group) > 1 else []
    names = dict.fromkeys(name for one in made for name in one if not name.lower().startswith("oracle"))
    groups = [[one[name] for one in made if name in one] for name in names]
    groups = [group for group in groups if len(group) > 1]
    # rows that have other names everywhere: the first of each
    return groups or [[next(iter(one.values())) for one in made if one]]


def _entries(run: Path) -> dict[str, Entry]:
    """Rows of a run by name, each with how it was made."""
    place = _place(run)
    content = read_json(run / "metrics.json" if run.is_dir() else run)
    settings = content.get("settings") or {}
    return {name: Entry(place, row, settings.get(name) or {}) for name, row in load_rows(run).items()}


def _place(run: Path) -> Path:
    return run.parent if run.is_file() else run


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Grouped bars, one group per metric."""
    from matplotlib.figure import Figure  # slow to import; no window system

    columns = columns_of(list(rows.values()))
    figure = Figure(figsize=(2.5 + 1.2 * len(columns) + 0.1 * len(rows) * len(columns), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(rows), 1)
    for number, (name, row) in enumerate(rows.items()):
        at = np.arange(len(columns)) + (number - (len(rows) - 1) / 2) * width
        values = [row.get(column, 0.0) for column in columns]
        bars = axes.bar(at, values, width, label=name, color=_COLOURS[number % len(_COLOURS)], edgecolor="black")
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(columns)), columns)
    axes.set(ylim=(0, 105), ylabel="percent")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
