"""Containment of all pairs of proposals, as the published ``cob_asy_iou/<set>/<image>.pkl`` (float16 [N, N]).

Row i, column j says how much of proposal j lies inside proposal i.

Training with this project needs no such files: it computes the matrices from the region store when it needs them.
"""

from __future__ import annotations

import argparse
import sys

from cim.cli import run
from cim.preparation import open_tasks, prepare_parser, stage_runner, write_matrices


def get_parser() -> argparse.ArgumentParser:
    example = "python tools/pre/create_cob_asy_iou.py --dataset voc --data-root data --split trainaug"
    return prepare_parser(__doc__, example, "folder to write (default: data/cob_asy_iou/VOC2012 or coco2017)")


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    tree, _, tasks = open_tasks(args)
    output = args.output or tree.matrices("cob_asy_iou")
    code = write_matrices(tasks, output, "containment", stage_runner(args), args.overwrite).exit_code()
    print(output)
    return code


if __name__ == "__main__":
    sys.exit(run(main))
