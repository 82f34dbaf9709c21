"""Runs side by side: the rows of their metrics.json as a Markdown table and as a plot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.files import atomic
from cim.evaluation.metrics_file import columns_of, fates_markdown, load_rows, markdown

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def main(args: argparse.Namespace) -> int:
    """Prints the table."""
    rows = collect(args.runs)
    print(markdown(rows, subset=args.multi))
    fates = fates_markdown(rows)
    if fates:
        print(f"\nwhat became of the instances, percent (beside: those beside others of their class)\n\n{fates}")
    if args.plot:
        draw({name: row.get("subset_multi", {}) if args.multi else row for name, row in rows.items()}, args.plot)
        print(f"written: {args.plot}")
    return 0


def collect(runs: list[Path]) -> dict[str, dict[str, Any]]:
    """All rows; with several runs each is named after its run, too."""
    rows: dict[str, dict[str, Any]] = {}
    for run_path in runs:
        place = run_path.parent if run_path.is_file() else run_path
        for name, row in load_rows(run_path).items():
            rows[name if len(runs) == 1 else f"{place.name}: {name}"] = row
    return rows


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
