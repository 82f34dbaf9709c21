"""IoU or containment of all pairs of proposals, as the published ``cob_iou`` and ``cob_asy_iou``."""

from __future__ import annotations

import argparse

from cim.cli.prepare.published import open_tasks, stage_runner
from cim.proposals.published_tree import write_matrices

FOLDERS = {"iou": "cob_iou", "containment": "cob_asy_iou"}


def main(args: argparse.Namespace) -> int:
    tree, _, tasks = open_tasks(args)
    output = args.output or tree.matrices(FOLDERS[args.which])
    code = write_matrices(tasks, output, args.which, stage_runner(args), args.overwrite).exit_code()
    print(output)
    return code
