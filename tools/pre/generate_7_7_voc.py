"""Boxes and 7x7 mask grids of all proposals of a VOC split, as the published ``cob/*.pkl``."""

from __future__ import annotations

import argparse
import sys

from cim.cli import run
from cim.preparation import open_tasks, prepare_parser, stage_runner, write_cob


def get_parser() -> argparse.ArgumentParser:
    example = "python tools/pre/generate_7_7_voc.py --data-root data --split trainaug"
    return prepare_parser(__doc__, example, "pickle to write (default: data/cob/<data set>_<split>.pkl)", "voc")


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    tree, split, tasks = open_tasks(args)
    output = args.output or tree.cob(split)
    code = write_cob(tasks, output, stage_runner(args), args.overwrite).exit_code()
    print(output)
    return code


if __name__ == "__main__":
    sys.exit(run(main))
