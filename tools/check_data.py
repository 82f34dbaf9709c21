"""Tell what a config needs on disk for training, evaluation and export: there, missing or damaged."""

from __future__ import annotations

import argparse
import shlex
import sys

from cim.checks import PURPOSES, Finding, Thoroughness, check_data
from cim.cli import add_config_args, parser, run
from cim.config import load_config
from cim.errors import CimError

COLUMNS = ("for", "what", "state", "detail")


def get_parser() -> argparse.ArgumentParser:
    result = parser(
        f"{__doc__} Exit code 2 when something required is absent.",
        "python tools/check_data.py configs/resnet50_voc.yaml --for training",
    )
    add_config_args(result)
    next(action for action in result._actions if action.dest == "config").nargs = "?"
    result.add_argument("--config", dest="option", metavar="CONFIG", help="the same, as an option")
    result.add_argument("--for", dest="purposes", nargs="+", choices=PURPOSES, default=PURPOSES, help="default: all")
    result.add_argument("--deep", action="store_true", help="decode every photo, open every artefact")
    result.add_argument("--workers", type=int, default=4, help="processes (default: %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    args.config = args.config or args.option
    if args.config is None:
        raise CimError("no config given", fix="python tools/check_data.py CONFIG")
    config = load_config(args.config, args.set)
    name = " ".join([args.config, *(["--set", *map(shlex.quote, args.set)] if args.set else [])])
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


if __name__ == "__main__":
    sys.exit(run(main))
