"""Boxes and 7x7 mask grids of all proposals of a split, as the published ``cob/*.pkl``."""

from __future__ import annotations

import argparse

from cim.cli.prepare.published import open_tasks, stage_runner
from cim.proposals.published_tree import write_cob


def main(args: argparse.Namespace) -> int:
    tree, split, tasks = open_tasks(args)
    output = args.output or tree.cob(split)
    code = write_cob(tasks, output, stage_runner(args), args.overwrite).exit_code()
    print(output)
    return code
