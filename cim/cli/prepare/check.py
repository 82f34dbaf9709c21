"""Tell what a config needs on disk for training, evaluation and export: there, missing or damaged."""

from __future__ import annotations

import argparse
import shlex

from cim.config.checks import Finding, Thoroughness, check_data
from cim.config.loading import load_config
from cim.core.errors import CimError

COLUMNS = ("for", "what", "state", "detail")


def main(args: argparse.Namespace) -> int:
    args.config = args.config or args.option
    if args.config is None:
        raise CimError("no config given", fix="cim check CONFIG")
    config = load_config(args.config, args.set)
    name = " ".join([shlex.quote(args.config), *(["--set", *map(shlex.quote, args.set)] if args.set else [])])
    findings = check_data(config, name, args.purposes, Thoroughness(args.deep, args.workers))
    print(table(findings))
    gaps = [finding for finding in findings if finding.blocks]
    for purpose in args.purposes:
        count = sum(purpose in gap.purposes for gap in gaps)
        print(f"{purpose}: {'ready' if not count else f'{count} to fix'}")
    if gaps:
        print("\nto fix, in this order:")
        print("\n".join(f"  {fix}" for fix in dict.fromkeys(gap.fix for gap in gaps if gap.fix)))
    return 2 if gaps else 0


def table(findings: list[Finding]) -> str:
    """Aligned columns; the last one is as wide as it needs to be."""
    rows = [COLUMNS] + [
        (", ".join(f.purposes), f.what, f.state.upper() if f.blocks else f.state, f.detail) for f in findings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)
