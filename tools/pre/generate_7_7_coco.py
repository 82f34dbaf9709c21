"""Boxes and 7x7 mask grids of all proposals of a COCO split, as the published ``cob/*.pkl``.

Per image only N x 49 bytes of grids and N x 8 of boxes are kept, so the one pickle that the format asks for fits
in memory (train2017 with 1,000 proposals per image: about 7 GB; masks themselves never accumulate).
"""

from __future__ import annotations

import argparse
import sys

from cim.cli import run
from cim.preparation import open_tasks, prepare_parser, stage_runner, write_cob


def get_parser() -> argparse.ArgumentParser:
    example = "python tools/pre/generate_7_7_coco.py --data-root data --split train2017"
    return prepare_parser(__doc__, example, "pickle to write (default: data/cob/<data set>_<split>.pkl)", "coco")


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    tree, split, tasks = open_tasks(args)
    output = args.output or tree.cob(split)
    code = write_cob(tasks, output, stage_runner(args), args.overwrite).exit_code()
    print(output)
    return code


if __name__ == "__main__":
    sys.exit(run(main))
